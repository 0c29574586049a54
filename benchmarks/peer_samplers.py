"""Deterministic samplers of diffusers and azula on a mixture with known score under VP(0.1, 20), in the same frame.

Each is given the exact model at the very noise level it steps from (diffusers rounds the time it hands to the network;
here it is spared that), a final step onto sigma = 0, and its choice of grids. Calls are counted where the model is
asked.
"""

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import sde_gen as sg

P = sg.VP()
Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]


class Counted:
    """The exact denoiser D(x, alpha, sigma), counting calls."""

    def __init__(self, law: sg.GaussianMixture) -> None:
        self.law, self.calls = law, 0

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        return self.law.denoise(x, alpha, sigma)


def _betas() -> list[float]:
    """A table of 1,000 whose alphas are those of VP at t = (i + 1)/1000."""
    squared = P.alpha(torch.arange(1, 1001, dtype=torch.float64) / 1000) ** 2
    before = torch.cat([torch.ones(1, dtype=torch.float64), squared[:-1]])
    return (1 - squared / before).tolist()


def _diffusers(name: str, kind: str, options: dict[str, object]) -> Callable[[Counted, Tensor, int], Tensor]:
    import diffusers

    diffusers.utils.logging.set_verbosity_error()

    def run(denoiser: Counted, x: Tensor, nfe: int) -> Tensor:
        steps = (nfe + 1) // 2 if kind == "heun" else nfe
        scheduler = getattr(diffusers, name)(trained_betas=_betas(), **options)
        scheduler.set_timesteps(steps)
        scaled = kind in ("scaled", "heun")  # these keep x/alpha
        first = float((1 + float(scheduler.sigmas[0]) ** 2) ** 0.5) if scaled else 1.0
        x = x * first
        for i, t in enumerate(scheduler.timesteps):
            index = scheduler.step_index if scheduler.step_index is not None else i
            s = scheduler.sigmas[index].double()
            alpha = (1 + s**2) ** -0.5
            y = x * alpha if scaled else x
            if scaled:
                scheduler.scale_model_input(x, t)
            noise = (y - alpha * denoiser(y, alpha, s * alpha)) / (s * alpha)
            x = scheduler.step(noise, t, x).prev_sample.double()
        return x

    return run


def _pndm(denoiser: Counted, x: Tensor, nfe: int) -> Tensor:
    import diffusers

    scheduler = diffusers.PNDMScheduler(trained_betas=_betas(), skip_prk_steps=True, timestep_spacing="linspace")
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(max(nfe - 1, 1))  # its second step asks the model twice
    for t in scheduler.timesteps:
        alpha = scheduler.alphas_cumprod[int(t)].sqrt()
        sigma = (1 - alpha**2).sqrt()
        noise = (x - alpha * denoiser(x, alpha, sigma)) / sigma
        x = scheduler.step(noise, int(t), x).prev_sample
    return x


def _azula(name: str, order: int | None, warp: str, stop: float) -> Callable[[Counted, Tensor, int], Tensor]:
    import azula.denoise
    import azula.noise
    import azula.sample

    grids = {"uniform": sg.UniformTime(), "quadratic": sg.Quadratic(), "lambda": sg.UniformLambda(),
             "rho7": sg.KarrasRho(), "rho3": sg.KarrasRho(rho=3.0)}  # fmt: skip

    def run(denoiser: Counted, x: Tensor, nfe: int) -> Tensor:
        steps = nfe // 2 if name == "HeunSampler" else nfe - 1
        if steps < 1:
            raise ValueError("too few calls")
        times = grids[warp].times(P, steps + 1, stop, 1.0)

        class Schedule(azula.noise.Schedule):
            def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
                # t is the number of the time, from `steps` down to 0; its samplers only visit whole ones
                at = times.flip(0)[t.round().long()]
                return P.alpha(at), P.sigma(at)

        class Exact(azula.denoise.Denoiser):
            def __init__(self) -> None:
                super().__init__()
                self.schedule = Schedule()

            def forward(self, x: Tensor, t: Tensor, **kwargs: object) -> object:
                alpha, sigma = self.schedule(t)
                return azula.denoise.DiracPosterior(denoiser(x, alpha, sigma))

        options = {} if order is None else {"order": order}
        sampler = getattr(azula.sample, name)(Exact(), start=float(steps), stop=0.0, steps=steps, silent=True,
                                              dtype=torch.float64, **options)  # fmt: skip
        x = sampler(x)
        return denoiser(x, P.alpha(times[-1]), P.sigma(times[-1]))

    return run


def samplers() -> Iterator[tuple[str, Callable[[Counted, Tensor, int], Tensor]]]:
    """Every configuration that is tried."""
    spacings = {"linspace": {"timestep_spacing": "linspace"}, "trailing": {"timestep_spacing": "trailing"},
                "karras": {"use_karras_sigmas": True}, "exponential": {"use_exponential_sigmas": True}}  # fmt: skip
    for grid, options in spacings.items():
        for order in (2, 3):
            yield f"diffusers DPM++ {order}M, {grid}", _diffusers(
                "DPMSolverMultistepScheduler", "plain",
                {"solver_order": order, "final_sigmas_type": "zero", **options})  # fmt: skip
            yield (
                f"diffusers UniPC {order}, {grid}",
                _diffusers(
                    "UniPCMultistepScheduler", "plain", {"solver_order": order, "final_sigmas_type": "zero", **options}
                ),
            )
            yield (
                f"diffusers DEIS {order}, {grid}",
                _diffusers("DEISMultistepScheduler", "plain", {"solver_order": order, **options}),
            )
        if "timestep_spacing" not in options:
            yield (
                f"diffusers DPM++ 2S, {grid}",
                _diffusers(
                    "DPMSolverSinglestepScheduler", "plain", {"solver_order": 2, "final_sigmas_type": "zero", **options}
                ),
            )
        if grid != "exponential":
            yield f"diffusers Heun, {grid}", _diffusers("HeunDiscreteScheduler", "heun", options)
            yield f"diffusers LMS, {grid}", _diffusers("LMSDiscreteScheduler", "scaled", options)
    yield "diffusers DPM++ 3M, lu", _diffusers(
        "DPMSolverMultistepScheduler", "plain",
        {"solver_order": 3, "final_sigmas_type": "zero", "use_lu_lambdas": True})  # fmt: skip
    yield "diffusers PNDM (PLMS)", _pndm
    for warp in ("uniform", "quadratic", "lambda", "rho7", "rho3"):
        for stop in (1e-3, 1e-4):
            where = f"{warp} to {stop:g}"
            yield f"azula Euler (DDIM), {where}", _azula("EulerSampler", None, warp, stop)
            yield f"azula Heun, {where}", _azula("HeunSampler", None, warp, stop)
            for name in ("xEAB", "vAB", "zAB", "zEAB", "REAB"):
                for order in (2, 3, 4):
                    yield f"azula {name}({order}), {where}", _azula(f"{name}Sampler", order, warp, stop)


def results(law: sg.GaussianMixture, start: Tensor, nfe: int) -> Iterator[tuple[str, Tensor, int]]:
    """Name, samples and calls made of each that runs with at most `nfe` calls."""
    for name, run in samplers():
        denoiser = Counted(law)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                x = run(denoiser, start, nfe)
        except (ValueError, IndexError, RuntimeError, AssertionError, NotImplementedError):
            continue  # some refuse a small number of steps
        if denoiser.calls <= nfe and bool(x.isfinite().all()):
            yield name, x, denoiser.calls
