"""One network and one stream of noise, for two libraries."""

import torch

import sde_gen as sg

F64 = torch.float64
DIM = 3


class Network(torch.nn.Module):
    """A noise estimate that bends in x and in the noise level."""

    def __init__(self, dtype=F64):
        super().__init__()
        gen = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(DIM, DIM, generator=gen, dtype=F64).to(dtype), requires_grad=False)

    def forward(self, x, c_noise):
        return 0.7 * x + 0.3 * torch.tanh(x @ self.weight) * torch.cos(0.4 * c_noise)[:, None].to(x.dtype)


def model_of(p, dtype=F64):
    return sg.ScoreModel(Network(dtype), p)


def states(p=None, n=5, dtype=F64):
    x = torch.randn(n, DIM, generator=torch.Generator().manual_seed(1), dtype=F64)
    return (x if p is None else x * p.prior_std).to(dtype)


class Noise:
    """z(step, draw), the same for whoever asks; as a `NoiseSource` and as a replacement of a peer's own draw."""

    def __call__(self, like, step, draw):
        gen = torch.Generator().manual_seed(1000 * (step + 2) + draw)
        return torch.randn(like.shape, generator=gen, dtype=F64).to(like.dtype)

    def in_order(self):
        """For a peer that draws once a step: its k-th draw is z(k, 0)."""
        count = iter(range(10**6))

        def draw(*args, **kwargs):
            like = args[0] if isinstance(args[0], torch.Tensor) else torch.empty(args[0], dtype=kwargs.get("dtype"))
            return self(like, next(count), 0)

        return draw
