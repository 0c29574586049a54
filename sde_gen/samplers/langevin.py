r"""Langevin dynamics at a fixed noise level: the corrector, and the annealed Langevin sampler.

One step of size e is :math:`x + e\,\nabla\log p_t(x) + \sqrt{2e}\, z`, which leaves p_t invariant up to O(e). Both
rules link e to the noise level by a signal-to-noise ratio r:

* `Langevin` (Song et al. 2021, arXiv:2011.13456): :math:`e = 2 a (r |z|/|score|)^2` with norms of each sample;
* `AnnealedLangevin` (Song & Ermon 2019, arXiv:1907.05600): :math:`e \propto \sigma^2`.

A step size that depends on the state does not leave p_t invariant. In few dimensions it fails outright: where a sample
comes close to a mode its score vanishes and the step explodes (a 2-D Gaussian of variance 0.25 under VP ends with a
variance of 1.8 at r = 0.16 over 200 steps). The ratio |z|/|score| of a sample is therefore capped at `cap` times sigma,
its size at equilibrium where the noise dominates; the same case then ends at 0.31, and images are hardly touched.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.checks import checked
from sde_gen.errors import ConfigError
from sde_gen.model import combine
from sde_gen.samplers.grid_sampler import GridSampler, Run, Step
from sde_gen.samplers.metropolis import langevin_chain
from sde_gen.shapes import trailing

#: A corrector's move at one time: (k, x) -> x.
Move = Callable[[int, Tensor], Tensor]


class Corrector(abc.ABC):
    """Moves a state towards p_t at a fixed time."""

    @abc.abstractmethod
    def mover(self, run: Run) -> Move:
        """The move of this corrector on `run.times`; called once a run. It draws with draw index 1, 2, ..."""


@dataclass(frozen=True)
class Langevin(Corrector):
    """Langevin corrector.

    Args:
        snr: r > 0. 0.16 is usual for VE on images; VP wants about 0.01 with step="adaptive".
        steps: Langevin steps at each time, >= 1.
        step: "adaptive", e = 2 a (r |z|/|score|)^2, or "fixed", e = 2 a (r sigma)^2 (the ALD corrector of Song et al.),
            which is linear in the state. a is the squared forward scale to t from the time that follows (1 - beta on
            the DDPM chain; 1 for VE).
        norm: "sample" takes |z| and |score| of each sample; "batch" their means over the batch, as the original code
            did, so that a sample depends on its batch.
        cap: largest |z|/|score| of a sample in units of sigma, > 0, or None for no limit; not used by norm="batch".

    Raises:
        ConfigError: for values outside these.
    """

    snr: float = checked(0.16, above=0.0)
    steps: int = checked(1, low=1)
    step: str = checked("adaptive", choices=("adaptive", "fixed"))
    norm: str = checked("sample", choices=("sample", "batch"))
    cap: float | None = checked(1.0, above=0.0)

    def __post_init__(self) -> None:
        checks.fields(self)

    def mover(self, run: Run) -> Move:
        p, e, t = run.perturbation, run.levels, run.times
        # The last time is followed by the data itself.
        a2 = torch.cat([(p.transition(t[1:], t[:-1])[0]).square(), e.alpha[-1:].square()])
        # score = (alpha x0hat - x)/sigma^2 with x0hat = skip x + out raw
        of_x = ((e.alpha * e.skip - 1) / e.sigma.square()).tolist()
        of_raw = (e.alpha * e.out / e.sigma.square()).tolist()
        scale, level = (2 * a2 * self.snr**2).tolist(), e.sigma.tolist()
        noise = run.draw

        def move(k: int, x: Tensor) -> Tensor:
            for j in range(self.steps):
                score = combine(x, of_x[k], e.raw(k, x), of_raw[k])
                z = noise(x, k, 1 + j)
                if self.step == "fixed":
                    size = scale[k] * level[k] ** 2
                    x = torch.add(x, score, alpha=size).add_(z, alpha=(2 * size) ** 0.5)
                else:
                    ratio = _norm(z, self.norm) / _norm(score, self.norm)
                    if self.norm == "sample" and self.cap is not None:
                        ratio = ratio.clamp_max(self.cap * level[k])
                    root = trailing(ratio * scale[k] ** 0.5, x.ndim)  # sqrt(e)
                    x = x + root * (root * score + 2**0.5 * z)
            return x

        return move


def _norm(x: Tensor, kind: str) -> Tensor:
    each = torch.linalg.vector_norm(x.flatten(1), dim=1)
    # Not exactly zero: a score of zero everywhere is a stationary point, where any step size will do.
    each = each.clamp_min(torch.finfo(x.dtype).tiny ** 0.5)
    return each if kind == "sample" else each.mean()


@dataclass(frozen=True)
class AnnealedLangevin(GridSampler):
    """Annealed Langevin dynamics: n Langevin steps at each noise level, from the prior down, then Tweedie's denoising.

    In y = x/alpha with rho = sigma/alpha the step is e_i = step_size (rho_i/rho_L)^2; step_size = 2 r^2 rho_L^2 links
    it to the corrector's signal-to-noise ratio, e_i = 2 r^2 rho_i^2 (r = 0.176 is 6.2e-6 at rho_L = 0.01). On NCSN's
    levels, alpha = 1, this is the original algorithm; elsewhere x is rescaled between levels so that y stays.

    Langevin steps bring more noise than a level keeps: a unit Gaussian ends about a sixth too wide. The rule
    "consistent" (Jolicoeur-Martineau et al. 2021, arXiv:2009.05475) adds what the next level lacks instead, with
    c = e_i/rho_i^2 the share of the noise that a step takes away,

        y + c (D - y) + sqrt(rho'^2 - (1 - c)^2 rho_i^2) z,

    rho' = rho_i within a level and rho_{i+1} in its last step, where c is at least 1 - rho'/rho_i. "metropolis" is the
    original with steps that may be refused, so that each leaves p_t as it is (n + 1 calls a level).

    Args:
        steps: number of levels; all of a chain's by default.
        steps_per_level: n >= 1.
        snr: r > 0; by default 0.176, and 0.08 for the rule "consistent", which errs in proportion to r^2.
        step_size: e at the last level, > 0, instead of snr.
        rule: "langevin", "consistent" or "metropolis".

    Raises:
        ConfigError: for values outside these ranges, or a step of 2 rho^2 or more, which diverges.
    """

    steps_per_level: int = checked(5, low=1)
    snr: float | None = checked(None, above=0.0, below=1.0)
    step_size: float | None = checked(None, above=0.0)
    rule: str = checked("langevin", choices=("langevin", "consistent", "metropolis"))

    is_stochastic = True
    default_steps = 232
    uses_chain_nodes = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.snr is None:
            object.__setattr__(self, "snr", 0.08 if self.rule == "consistent" else 0.176)

    def stepper(self, run: Run) -> Step:
        move = self._mover(run)
        grow = (run.levels.alpha[1:] / run.levels.alpha[:-1]).tolist()

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            x = move(k, x)[0]
            return (x if grow[k] == 1.0 else x * grow[k]), None

        return step

    @property
    def acts_on_last_time(self) -> bool:
        return True

    def last_stepper(self, run: Run) -> Step:
        move, last, e = self._mover(run), len(run.times) - 1, run.levels

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            x, denoised = move(last, x)
            if not self.denoise:
                return x, None
            return (e.denoised(last, x) if denoised is None else denoised), None

        return step

    def _mover(self, run: Run) -> Callable[[int, Tensor], tuple[Tensor, Tensor | None]]:
        """The moves at one level, (k, x) -> (x, x0hat there if it is known)."""
        e = run.levels
        rho = e.sigma / e.alpha
        final = float(rho[-1])
        if final == 0:
            raise ConfigError(
                "AnnealedLangevin: its last level needs noise, but sigma = 0 at the last time of the grid"
            )
        # Share of rho^2, the same at all levels: y + share (D - y) + sqrt(2 share) rho z.
        share = 2 * (self.snr or 0.0) ** 2 if self.step_size is None else self.step_size / final**2
        if not 0 < share < 2:
            raise ConfigError(
                f"AnnealedLangevin: a step of {share:.4g} sigma^2 diverges; it must be below 2: lower step_size "
                f"(below {2 * final**2:.4g} at the last level, sigma = {final:.4g}) or set snr instead"
            )
        if self.rule == "metropolis":
            chain = langevin_chain(e, run.noise, (share * e.sigma.square()).tolist())
            return lambda k, x: chain(k, x, self.steps_per_level)
        shares = torch.full((2, len(rho)), share, dtype=torch.float64)  # within a level, and in its last step
        stds = ((2 * share) ** 0.5 * e.sigma).expand(2, -1)
        if self.rule == "consistent":
            down = torch.cat([rho[1:], rho[-1:]]) / rho  # after the last level there is no lower one
            shares[1] = shares[1].maximum(1 - down)
            kept = torch.stack([torch.ones_like(down), down])
            # kept^2 - (1 - share)^2 in factors, the first of which is 0 to the last digit where the share is the least.
            stds = e.sigma * ((kept - 1 + shares) * (kept + 1 - shares)).clamp_min(0.0).sqrt()
        of_x = (1 - shares + shares * e.alpha * e.skip).tolist()
        of_raw = (shares * e.alpha * e.out).tolist()
        of_z = stds.tolist()
        raw, noise, scratch = e.raw, run.draw, run.buffers()

        def move(k: int, x: Tensor) -> tuple[Tensor, None]:
            for j in range(self.steps_per_level):
                i = int(j == self.steps_per_level - 1)
                new = combine(x, of_x[i][k], raw(k, x), of_raw[i][k], scratch[x is scratch[0]])
                x = new.add_(noise(x, k, j), alpha=of_z[i][k])
            return x, None

        return move
