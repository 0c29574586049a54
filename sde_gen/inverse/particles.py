r"""Sequential Monte Carlo on the ancestral chain: the law a guess was meant to have, and its evidence.

The chain :math:`x_s \sim N(a x_t + b D,\; c^2 I)` is moved with a proposal P in the place of D, and N particles
carry what that changes as weights,

.. math:: w \mathrel{*}= \frac{\psi_s(x_s)}{\psi_t(x_t)}\,
          \frac{N(x_s;\, a x_t + b D,\, c^2)}{N(x_s;\, a x_t + b P,\, c^2)}\;
          e^{\kappa(x_t)\, b^2/c^2},

with potentials psi that are guesses on the way and exact at its end, and a rate kappa where several models are one.
They are resampled, systematically, when few carry the weight. The product of the mean weights is an
unbiased estimate of the evidence of the chain. Wu et al. 2023, arXiv:2306.17775; for the rate, Skreta et al. 2025,
arXiv:2503.02819.

The mean of a step is that of the forward process's posterior, as in ancestral sampling. With rho = sigma/alpha its
variance is :math:`c^2 = \alpha_s^2 (\rho_t^2 - \rho_s^2)\,\rho_s/\rho_t`, the geometric mean of what is right for data
at a point (ancestral, with :math:`\rho_s^2/\rho_t^2`) and for data much wider than rho (with 1). So the law of 100
steps has the variance of Gaussian data to 0.5 %, and not to 7 % as with the ancestral one.

What is corrected is said by the levels of a model, in two methods that any model of yours may have:

- ``twist(k, x)``, for states (B, *shape) at level k, returns (D, P, log psi, kappa): two denoised estimates, and two
  tensors (B,) in float64, or 0.0;
- ``log_final(x0)`` returns the logarithm of the potential of the data themselves, (B,), float64, or 0.0.
"""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.bars import shown
from sde_gen.checks import checked
from sde_gen.conditions import NOTHING, Condition, Rows, gathered
from sde_gen.errors import CollapseWarning, ConfigError, NonFiniteError
from sde_gen.inverse.mixture import MixtureLevels
from sde_gen.inverse.posterior import METHODS, Posterior
from sde_gen.inverse.systems import Particles, effective, opposite, systematic, uniform
from sde_gen.inverse.tilted import Tilted
from sde_gen.model import ScoreModel, evaluating
from sde_gen.perturbations import Chain, Perturbation
from sde_gen.rng import SeededNoise
from sde_gen.samplers.grids import ArctanLambda, ChainNodes, as_grid
from sde_gen.samplers.noise import NoiseSource, ShiftedNoiseSource

#: Numbers of all particles held at once unless `chunk` says otherwise: they carry the graph of a network.
_CHUNK_NUMBERS = 2**20
#: Particles from which on, and effective ones below which, a system that has collapsed is warned of.
_MANY, _ALONE = 8, 1.5


@dataclass(frozen=True)
class TwistedSMC:
    """Particles that correct a guided model: called like a sampler, right for any number of modes.

    Each sample is drawn from a system of its own, so samples are independent, and sample i depends only on (model,
    settings, seed, i). On `Posterior(model, ...)` with exact scores the law tends to the posterior as particles and
    steps grow.

    Args:
        particles: N, in each system, >= 1.
        steps: times visited, >= 1; each particle takes a network call at each.
        twist: "mmps" or "pigdm" instead of the method of a `Posterior`; "none" moves particles by the model alone,
            without gradients of the network, and weights them with the potentials of "pigdm".
        resample: share of N that the effective number must fall below, in [0, 1]; 0 never resamples.
        return_all: whether all particles are returned too.
        grid: a `TimeGrid`, its name or a list of times; by default `ArctanLambda()`, of width 2 where there is no
            likelihood, and on a chain nodes even in lambda.

    Raises:
        ConfigError: for values outside these; when called, for a model that says nothing particles could correct.

    Warns:
        CollapseWarning: when most systems were carried by a single particle at some time.
    """

    particles: int = checked(16, low=1)
    steps: int = checked(100, low=1)
    twist: str | None = checked(None, choices=METHODS)
    resample: float = checked(0.5, low=0.0, high=1.0)
    return_all: bool = checked(False)
    grid: Any = None

    def __post_init__(self) -> None:
        checks.fields(self)
        if self.grid is not None:
            object.__setattr__(self, "grid", as_grid(self.grid))

    def times(self, model: ScoreModel) -> Tensor:
        """The times visited with this model, descending, float64."""
        p, steps = model.perturbation, self.steps
        # A likelihood acts down to its own noise; models are weighed against each other where the data have their size.
        width = 3.0 if isinstance(model, Posterior | Tilted) else 2.0
        grid = self.grid or (ChainNodes("lambda") if isinstance(p, Chain) else ArctanLambda(width=width))
        if isinstance(p, Chain) and isinstance(grid, ChainNodes):
            steps = min(steps, p.length)
        return grid.times(p, grid.length or steps, *model.times_within())

    @torch.no_grad()
    def __call__(
        self,
        model: ScoreModel,
        shape: Sequence[int],
        *,
        seed: int = 0,
        noise: NoiseSource | None = None,
        condition: Mapping[str, Any] | Condition | None = None,
        progress: bool = False,
        chunk: int | None = None,
        first: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **named: Any,
    ) -> Particles:
        """Draw samples.

        Args:
            model: a `Posterior`, or another model whose levels say what is to be corrected.
            shape: (n, *shape) of the samples, one of each of n systems.
            seed: whole number in [0, 2^64).
            noise: source of all Gaussian draws instead of the seed; it is asked for those of half of the particles,
                (n, ceil(N/2), *shape), for (n, 1), and with a `Mixture` for (n, N).
            condition, named: keyword arguments of the network, with a row for each sample.
            progress: whether to show a progress bar on standard error.
            chunk: most systems held at once; by default chosen from their size.
            first: index of the first sample, for jobs that share one seed.
            dtype, device: of the samples; by default float32 on the model's device.

        Raises:
            ConfigError: for arguments that do not fit together.
            NonFiniteError: if a state or a weight becomes NaN or infinite.
        """
        began, where = time.perf_counter(), "TwistedSMC"
        if not isinstance(model, ScoreModel):
            raise ConfigError(f"{where}: model must be a ScoreModel, got {type(model).__name__}")
        if model.starts_late:
            raise ConfigError(f"{where}: particles begin from noise alone, and {model!r} from data; give its base")
        if self.twist is not None:
            if not isinstance(model, Posterior):
                raise ConfigError(f"{where}: twist={self.twist!r} is of a Posterior; leave it out for {model!r}")
            model = model.using(self.twist)
        sizes = checks.integers(where, "shape", shape, low=1)
        if len(sizes) < 2:
            raise ConfigError(f"{where}: shape must be (n, *shape) of whole numbers, got {shape!r}")
        first = checks.integer(where, "first", first, low=0)
        dtype = dtype or torch.get_default_dtype()
        like = torch.empty((), dtype=dtype, device=model.device if device is None else device).expand(sizes)
        told = Condition.of(where, gathered(where, model.network, condition, named, TwistedSMC.__call__), len(like))
        told = told.beside(model.given, where, len(like)) if told or model.given else NOTHING
        source = SeededNoise(seed, first) if noise is None else noise
        size = max(1, _CHUNK_NUMBERS // (self.particles * like[0].numel())) if chunk is None else chunk
        if checks.integer(where, "chunk", size) < len(like) and not isinstance(source, ShiftedNoiseSource):
            size = len(like)
        parts = []
        with evaluating(model):
            for begin in range(0, len(like), size):
                rows = slice(begin, begin + size)
                part = source.starting_at(first + begin) if isinstance(source, ShiftedNoiseSource) else source
                parts.append(self._run(model, like[rows], part, told[rows], first + begin, progress))
        x, evidence, ess, ancestors, states, weights, experts = (torch.cat([p[i] for p in parts]) for i in range(7))
        calls, products = (max(part[i] for part in parts) * self.particles for i in (7, 8))
        least = float(ess.amin(1).median())
        if self.particles >= _MANY and least < _ALONE:
            warnings.warn(
                f"{where}: at some time {least:.2g} of {self.particles} particles carried the weight of a system; "
                "samples and evidence are not to be trusted: use more particles or steps, or plain guidance",
                CollapseWarning,
                stacklevel=3,
            )
        own = any(isinstance(leaf, Rows) for _, leaf in told.leaves())
        every = evidence.logsumexp(0) - math.log(len(evidence))
        spread = (evidence - every).exp().std() / len(evidence) ** 0.5 if len(evidence) > 1 else every * math.nan
        return Particles(
            x=x, nfe=calls, seconds=time.perf_counter() - began, products=products,
            log_evidence=evidence if own else every, log_evidence_error=spread * math.nan if own else spread,
            system_log_evidence=evidence, ess=ess, ancestors=ancestors,
            particles=states if self.return_all else None, log_weights=weights if self.return_all else None,
            experts=experts if experts.numel() else None,
        )  # fmt: skip

    def _run(
        self, model: ScoreModel, like: Tensor, source: NoiseSource, condition: Condition, first: int, progress: bool
    ) -> tuple[Any, ...]:
        """x, evidence, ess, ancestors, particles, weights, experts of some systems; a particle's calls and products."""
        p, times, (n, *shape) = model.perturbation, self.times(model), like.shape
        alpha, sigma = p.curves(times)
        of_x, of_data, std = (c.tolist() for c in middle_steps(p, times))
        gains = [*((b / c) ** 2 for b, c in zip(of_data, std, strict=True)), float((alpha[-1] / sigma[-1]).square())]
        steps = len(times)
        wide, flat = like[:, None].expand(n, self.particles, *shape), (n * self.particles, *shape)
        levels = model.levels(alpha, sigma, wide.reshape(flat), condition.repeated(self.particles))
        if not hasattr(levels, "twist"):
            raise ConfigError(f"TwistedSMC: nothing is to be corrected in {model!r}; it takes a Posterior(model, ...)")
        if isinstance(model.trained_under, Chain):
            model.warn_between_nodes(alpha.log() - sigma.log())
        weights = torch.zeros(n, self.particles, dtype=torch.float64, device=like.device)
        evidence, before = torch.zeros_like(weights[:, 0]), 0.0
        roots = torch.arange(self.particles, device=like.device).expand_as(weights)
        few, sound = [], []
        x = (opposite(source, wide, -1) * float(sigma[0])).reshape(flat)
        asked: Any = levels
        mixture, experts = _mixture(levels), weights[:, :0]
        if mixture is not None:
            mixture.begin()
        for k in shown(range(steps - 1), "TwistedSMC") if progress else range(steps - 1):
            denoised, proposal, potential, rate = asked.twist(k, x)
            weights = weights + self._rows(potential - before + gains[k] * rate)
            before = potential
            few.append(effective(weights))
            mean, pull = x * of_x[k] + proposal * of_data[k], None
            if proposal is not denoised:
                pull = (proposal - denoised) * (of_data[k] / std[k])
            # Where nothing is resampled, every particle is its own ancestor.
            lost = (few[-1] < self.resample * self.particles)[:, None]
            chosen = systematic(weights, uniform(source(wide[:, :1].reshape(n, -1)[:, :1], k, 1)))
            chosen = torch.where(lost, chosen, torch.arange(self.particles, device=like.device))
            total = weights.logsumexp(1) - math.log(self.particles)
            evidence = evidence + torch.where(lost[:, 0], total, 0.0)
            weights = torch.where(lost, 0.0, weights)
            roots = roots.gather(1, chosen)
            place = (chosen + self.particles * torch.arange(n, device=like.device)[:, None]).reshape(-1)
            before = before[place] if isinstance(before, Tensor) else before
            z, pull = opposite(source, wide, k).reshape(flat), None if pull is None else pull[place]
            if mixture is not None:
                z = z + mixture.branch(uniform(source(weights, k, 2)).reshape(-1), of_data[k] / std[k], place)
                weights = weights + self._rows(mixture.weigh(z, pull))
            elif pull is not None:
                change = (pull * (z + 0.5 * pull)).flatten(1).sum(1, dtype=torch.float64)
                weights = weights - self._rows(change)
            x = mean[place].add_(z, alpha=std[k])
            sound.append(weights.sum(1))
        denoised, _, _, rate = asked.twist(steps - 1, x)
        if mixture is not None:
            denoised = denoised + mixture.branch(uniform(source(weights, steps - 1, 2)).reshape(-1), 1.0)
        weights = weights + self._rows(asked.log_final(denoised) - before + gains[-1] * rate)
        few.append(effective(weights))
        total = weights.logsumexp(1)
        evidence, weights = evidence + total - math.log(self.particles), weights - total[:, None]
        sound.append(evidence + denoised.reshape(n, -1).sum(1))
        self._refuse_non_finite(torch.stack(sound), times.tolist(), first)
        states = denoised.reshape(wide.shape)
        pick = systematic(weights, uniform(source(wide[:, :1].reshape(n, -1)[:, :1], steps, 1)), 1)
        x = states[torch.arange(n, device=like.device), pick[:, 0]]
        alive = torch.zeros_like(weights).scatter_(1, roots, 1.0).sum(1)
        if mixture is not None:
            experts = torch.einsum("np,npj->nj", weights.exp(), mixture.shares.reshape(*weights.shape, -1))
        return x, evidence, torch.stack(few, 1), alive, states, weights, experts, levels.calls, levels.products

    def _rows(self, change: Tensor | float) -> Tensor | float:
        """What was added to the log-weight of each particle, (n, N)."""
        return change.reshape(-1, self.particles) if isinstance(change, Tensor) else change

    @staticmethod
    def _refuse_non_finite(sound: Tensor, times: list[float], first: int) -> None:
        finite = sound.isfinite()
        if not bool(finite.all()):
            step = int((~finite.all(1)).nonzero()[0])
            raise NonFiniteError(step, times[step], [first + i for i in (~finite.all(0)).nonzero()[:, 0].tolist()])


def _mixture(levels: Any) -> MixtureLevels | None:
    """That of a `Mixture`, or of one that is guided."""
    while levels is not None and not isinstance(levels, MixtureLevels):
        levels = getattr(levels, "base", None)
    return levels


def middle_steps(p: Perturbation, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a, b and c of the chain's steps from each time to the next, float64."""
    of_x, of_data, std = p.posterior(times[1:], times[:-1])
    return of_x, of_data, std * (0.5 * p.half_log_snr(times).diff()).exp()
