"""Guided samplers of azula and deepinv, called as the library's are, for `benchmarks/posteriors.py`.

`pip install --no-deps azula deepinv` (and what they import: einops, torchvision). The denoiser is the exact one and the
levels are those of the other methods of the table; all else is as it comes. azula brings samplers of its own; deepinv's
guidance is the gradient of a data-fidelity term, and is put into the same ancestral chain.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import sde_gen as sg
from sde_gen.inverse import Posterior

Method = Callable[..., sg.Samples]
STEPS = 100


def installed() -> tuple[dict[str, Method], list[str]]:
    """The methods of the peers that are here, and a sentence for each that is not."""
    found: dict[str, Method] = {}
    missing = []
    for name, methods in (("azula", _azula), ("deepinv", _deepinv)):
        if find_spec(name) is None:
            missing.append(f"{name} is not installed, so its methods are left out")
        else:
            found |= methods()
    return found, missing


def grid(posterior: Posterior, end: float | None = None) -> Tensor:
    """100 levels; azula's samplers end at a time instead of with a denoised estimate, so there is one more."""
    times = sg.KarrasRho().times(posterior.perturbation, STEPS, *posterior.times_within())
    return times if end is None else torch.cat([times, times.new_tensor([end])])


def _azula() -> dict[str, Method]:
    from azula import guidance, sample
    from azula.denoise import Denoiser, DiracPosterior
    from azula.linalg.covariance import IsotropicCovariance

    class Exact(Denoiser):
        def __init__(self, model: sg.ScoreModel) -> None:
            super().__init__()
            self.model, self.calls = model, 0

        def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return self.model.perturbation.curves(t)

        def forward(self, x_t: Tensor, t: Tensor, **more: Any) -> Any:
            self.calls += 1
            return DiracPosterior(mean=self.model(x_t, t.expand(len(x_t))).denoised)

    def run(make: Callable[..., Any]) -> Method:
        def method(posterior: Posterior, shape: tuple[int, ...], seed: int = 0, dtype: Any = None) -> sg.Samples:
            torch.manual_seed(seed)
            exact = Exact(posterior.base)
            a = posterior.operator.matrix(shape[1:])
            y = posterior.operator.read(posterior.y[None].double(), shape[1:])
            sampler = make(exact, y, a, float(posterior.noise_std))
            times = grid(posterior, posterior.perturbation.t_min)
            # `timesteps` is a property: the same class with other times.
            kind = type("OnGrid", (type(sampler),), {"timesteps": property(lambda _: times)})
            sampler.__class__ = kind
            x = posterior.perturbation.prior_std * torch.randn(shape, dtype=torch.float64)
            return sg.Samples(sampler(x).detach(), exact.calls, 0.0)

        return method

    def mmps(exact: Any, y: Tensor, a: Tensor, std: float) -> Any:
        cov = IsotropicCovariance(torch.tensor(std**2, dtype=torch.float64))
        guided = guidance.MMPSDenoiser(exact, y, lambda x: x @ a.T, cov)
        return sample.DDPMSampler(guided, silent=True)

    def pgdm(exact: Any, y: Tensor, a: Tensor, std: float) -> Any:
        inverse = torch.linalg.pinv(a)
        return guidance.PGDMSampler(exact, y, lambda x: x @ a.T, lambda v: v @ inverse.T, eta=1.0, silent=True)

    def diffpir(exact: Any, y: Tensor, a: Tensor, std: float) -> Any:
        guided = guidance.DiffPIRDenoiser(exact, y, lambda x: x @ a.T, std**2)
        return sample.DDPMSampler(guided, silent=True)

    return {"azula MMPS": run(mmps), "azula PGDM": run(pgdm), "azula DiffPIR": run(diffpir)}


def _deepinv() -> dict[str, Method]:
    import deepinv

    def run(term: Callable[..., Any]) -> Method:
        def method(posterior: Posterior, shape: tuple[int, ...], seed: int = 0, dtype: Any = None) -> sg.Samples:
            p, base, times = posterior.perturbation, posterior.base, grid(posterior)
            alpha, sigma = p.curves(times)
            of_x, of_data, std = p.posterior(times[1:], times[:-1])
            like = torch.empty(shape, dtype=torch.float64)
            levels, at = base.levels(alpha, sigma, like), [0]

            def denoiser(x: Tensor, sigma_t: Any, *_: Any, **__: Any) -> Tensor:
                k = at[0]
                return levels.denoised(k, alpha[k] * x.double()).to(x.dtype)

            a = posterior.operator.matrix(shape[1:]).float()
            physics = deepinv.physics.LinearPhysics(
                A=lambda x, **_: x @ a.T, A_adjoint=lambda v, **_: v @ a,
                noise_model=deepinv.physics.GaussianNoise(sigma=float(posterior.noise_std)),
            )  # fmt: skip
            y = posterior.operator.read(posterior.y[None].float(), shape[1:]).expand(shape[0], -1)
            fidelity = term(denoiser=denoiser)
            g = torch.Generator().manual_seed(seed)
            x = p.prior_std * torch.randn(shape, dtype=torch.float64, generator=g)
            for k in range(len(times)):
                at[0] = k
                rho = float(sigma[k] / alpha[k])
                slope, denoised = fidelity.grad(x / alpha[k], y, physics, torch.tensor(rho), get_model_outputs=True)
                guided = denoised.double() - rho**2 * slope.double()
                if k == len(times) - 1:
                    return sg.Samples(guided.detach(), levels.calls, 0.0)
                z = torch.randn(shape, dtype=torch.float64, generator=g)
                x = (of_x[k] * x + of_data[k] * guided + std[k] * z).detach()
            return sg.Samples(x, levels.calls, 0.0)

        return method

    terms = deepinv.sampling
    return {"deepinv PiGDM": run(terms.PiGDMDataFidelity), "deepinv MMPS": run(terms.MomentMatchingDataFidelity)}
