"""Published samplers of inverse problems, for `benchmarks/posteriors.py` and `benchmarks/digits_posteriors.py`.

They are written here as in their papers, small, because they were measured and found no place in the library:

- replacement and RePaint (Lugmayr et al. 2022, arXiv:2201.09865), for masks alone;
- DPS (Chung et al. 2022, arXiv:2209.14687), with norms of each sample, step zeta = 0.3;
- DDRM (Kawar et al. 2022, arXiv:2201.11793), eta = 0.85, eta_b = 1;
- DiffPIR (Zhu et al. 2023, arXiv:2305.08995), lambda = 7, zeta = 0.1;
- DAPS (Zhang et al. 2024, arXiv:2407.01521), its inner Langevin steps replaced by the exact Gaussian draw.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import sde_gen as sg
from sde_gen.inverse import Posterior

GRID = sg.KarrasRho()


class Chain:
    """The model that a posterior guides, at K levels, its ancestral or deterministic steps, and a generator."""

    def __init__(self, posterior: Posterior, shape: tuple[int, ...], seed: int, steps: int, eta: float = 1.0) -> None:
        p, model = posterior.perturbation, posterior.base
        self.times = GRID.times(p, steps, *posterior.times_within())
        alpha, sigma = p.curves(self.times)
        like = torch.empty(shape, dtype=torch.float64)
        self.levels, self.generator = model.levels(alpha, sigma, like), torch.Generator().manual_seed(seed)
        self.std = p.posterior(self.times[1:], self.times[:-1])[2] * eta
        self.of_x = (sigma[1:].square() - self.std.square()).clamp_min(0).sqrt() / sigma[:-1]
        self.of_data = alpha[1:] - self.of_x * alpha[:-1]
        self.alpha, self.sigma, self.rho = alpha, sigma, sigma / alpha
        self.a = posterior.operator.matrix(shape[1:])
        y = posterior.y.double() if posterior.given else posterior.y[None].double()  # a row for each sample, or one
        self.y, self.s = posterior.operator.read(y, shape[1:]), float(posterior.noise_std)
        self.like = like

    def noise(self, like: Tensor | None = None) -> Tensor:
        return torch.randn((self.like if like is None else like).shape, dtype=torch.float64, generator=self.generator)

    def start(self) -> Tensor:
        return self.noise() * self.sigma[0]

    def step(self, k: int, x: Tensor, denoised: Tensor) -> Tensor:
        return self.of_x[k] * x + self.of_data[k] * denoised + self.std[k] * self.noise()

    def done(self, x: Tensor, products: int = 0) -> sg.Samples:
        return sg.Samples(x, self.levels.calls, 0.0, products=products)


def repaint(jumps: int, steps: int = 100) -> Callable[..., sg.Samples]:
    """Replacement of what is seen, and `jumps` rounds at each level."""

    def run(posterior: Posterior, shape: tuple[int, ...], seed: int = 0, dtype: Any = None) -> sg.Samples:
        c = Chain(posterior, shape, seed, steps)
        seen = c.a.argmax(1)
        p, x = posterior.perturbation, c.start()
        for k in range(len(c.times)):
            for j in range(jumps):
                spread = (c.sigma[k] ** 2 - (c.alpha[k] * c.s) ** 2).clamp_min(0).sqrt()  # y is noisy already
                x = x.clone()
                x[:, seen] = c.alpha[k] * c.y + spread * c.noise(x[:, seen])
                denoised = c.levels.denoised(k, x)
                if k == len(c.times) - 1:
                    return c.done(denoised)
                x = c.step(k, x, denoised)
                if j < jumps - 1:
                    forth, b = p.transition(c.times[k + 1], c.times[k])
                    x = forth * x + b * c.noise()
        return c.done(x)

    return run


def dps(
    posterior: Posterior, shape: tuple[int, ...], seed: int = 0, dtype: Any = None, steps: int = 1000, zeta: float = 0.3
) -> sg.Samples:
    """A step of size zeta down the gradient of |y - A D|."""
    c = Chain(posterior, shape, seed, steps)
    x = c.start()
    for k in range(len(c.times)):
        with torch.enable_grad():
            at = x.requires_grad_()
            denoised = c.levels.denoised(k, at)
            (g,) = torch.autograd.grad((c.y - denoised @ c.a.T).norm(dim=1).sum(), at)
        x, denoised = x.detach(), denoised.detach()
        x = (c.step(k, x, denoised) if k < len(c.times) - 1 else denoised) - zeta * g
    return c.done(x, len(c.times))


def ddrm(posterior: Posterior, shape: tuple[int, ...], seed: int = 0, dtype: Any = None) -> sg.Samples:
    """Each singular direction on its own, by whether it is seen better than the level's noise."""
    c, eta = Chain(posterior, shape, seed, 100), 0.85
    u, values, vh = torch.linalg.svd(c.a, full_matrices=True)
    r = len(values)
    y, ratio = (c.y @ u)[:, :r] / values, c.s / values
    x = (c.noise() * c.rho[0]) @ vh.T
    x[:, :r] = torch.where(
        c.rho[0] > ratio, y + (c.rho[0] ** 2 - ratio**2).clamp_min(0).sqrt() * c.noise(x[:, :r]), x[:, :r]
    )
    for k in range(len(c.times)):
        denoised = c.levels.denoised(k, c.alpha[k] * (x @ vh))
        if k == len(c.times) - 1:
            return c.done(denoised)
        d, after, z = denoised @ vh.T, c.rho[k + 1], c.noise()
        new = d + (1 - eta**2) ** 0.5 * after * (x - d) / c.rho[k] + eta * after * z
        blind = d[:, :r] + (1 - eta**2) ** 0.5 * after * (y - d[:, :r]) / ratio + eta * after * z[:, :r]
        seen = y + (after**2 - ratio**2).clamp_min(0).sqrt() * z[:, :r]
        new[:, :r] = torch.where(after >= ratio, seen, blind)
        x = new
    return c.done(x)


def diffpir(posterior: Posterior, shape: tuple[int, ...], seed: int = 0, dtype: Any = None) -> sg.Samples:
    """A proximal step for the observation at each level, then part of the noise anew."""
    c, weight, zeta = Chain(posterior, shape, seed, 100), 7.0, 0.1
    x, eye = c.start(), torch.eye(c.a.shape[1], dtype=torch.float64)
    for k in range(len(c.times)):
        denoised = c.levels.denoised(k, x)
        if k == len(c.times) - 1:
            return c.done(denoised)
        pull = weight * c.s**2 / c.rho[k] ** 2
        d = torch.linalg.solve(c.a.T @ c.a + pull * eye, (c.y @ c.a + pull * denoised).T).T
        noise = (x - c.alpha[k] * d) / c.sigma[k]
        x = c.alpha[k + 1] * d + c.sigma[k + 1] * ((1 - zeta) ** 0.5 * noise + zeta**0.5 * c.noise())
    return c.done(x)


def daps(posterior: Posterior, shape: tuple[int, ...], seed: int = 0, dtype: Any = None) -> sg.Samples:
    """Data from the flow, a Gaussian draw around them given y, and noise of the next level on top."""
    c, p, inner = Chain(posterior, shape, seed, 100), posterior.perturbation, 5
    x, eye = c.start(), torch.eye(c.a.shape[1], dtype=torch.float64)
    for k in range(len(c.times)):
        last = k == len(c.times) - 1
        times = c.times[-1:] if last else GRID.times(p, inner, float(c.times[-1]), float(c.times[k]))
        alpha, sigma = p.curves(times)
        levels = c.levels.at(alpha, sigma)
        for j in range(len(times)):
            denoised = levels.denoised(j, x)
            if j < len(times) - 1:
                x = alpha[j + 1] * denoised + sigma[j + 1] * (x - alpha[j] * denoised) / sigma[j]
        root = torch.linalg.cholesky(c.a.T @ c.a / c.s**2 + eye / c.rho[k] ** 2)
        mean = torch.cholesky_solve((c.y @ c.a / c.s**2 + denoised / c.rho[k] ** 2).T, root).T
        x0 = mean + torch.linalg.solve_triangular(root.T, c.noise().T, upper=True).T
        if last:
            return c.done(x0)
        x = c.alpha[k + 1] * x0 + c.sigma[k + 1] * c.noise()
    return c.done(x)


METHODS: dict[str, Callable[..., sg.Samples]] = {
    "replacement": repaint(1), "RePaint, 10": repaint(10), "DPS, 1000": dps, "DDRM": ddrm, "DiffPIR": diffpir,
    "DAPS, 100 x 5": daps,
}  # fmt: skip
