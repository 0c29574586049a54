r"""The reverse SDE with adaptive steps: a step size, an error estimate and a Brownian path for each sample.

A step is that of `StochasticHeun`. What it adds to its first-order part, :math:`\alpha_s M_1 [D(\hat x_s) - D_t]`,
estimates the local error; the step is taken if the root mean square of that relative to
:math:`atol + rtol \max(|x_t|, |\hat x_s|)`, E, is at most 1, and the next one is :math:`0.9\,E^{-0.9}` times as long.
Jolicoeur-Martineau et al. 2021, arXiv:2105.14080.

A rejected step must not forget its noise: drawing anew would prefer the noises that are accepted. The path is kept
instead. Noise over :math:`[\lambda, \lambda + h]` enters as :math:`\sigma_s\sqrt{1-e^{-2\eta^2h}}\,\xi`, the increment
of a Brownian motion with clock :math:`e^{2\eta^2\lambda}`. A shorter step needs its value at a point between: with w
the share of the clock that comes before that point, the Brownian bridge is the rotation

.. math:: \xi_1 = \sqrt{w}\,\xi + \sqrt{1-w}\,z, \qquad \xi_2 = \sqrt{1-w}\,\xi - \sqrt{w}\,z

of the old normal and a new one, and :math:`\xi_2` waits for the step after. No step goes beyond a point already known,
so what is known ahead is a stack (Rackauckas & Nie 2017, doi:10.3934/dcdsb.2017133, treat the general case). The state
is :math:`x/\sqrt{\alpha^2+\sigma^2}` as a function of lambda, as in `ode`, so the answer does not depend on the
formulation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.checks import checked
from sde_gen.errors import NonFiniteError, SolverError
from sde_gen.samplers.flow import Flow
from sde_gen.samplers.sampler import Job, Sampler, Solved
from sde_gen.samplers.stochastic import moments
from sde_gen.shapes import trailing

_SAFETY, _EXPONENT, _SHRINK, _GROW = 0.9, 0.9, 0.2, 5.0
_HALF = 0.5  # most of a rejected step that is tried again, so that what is left of it is worth a step
_FIRST = 0.01  # first step, of the whole interval
_WHOLE = 0.99  # a step that would leave less of a known increment takes all of it


@dataclass(frozen=True)
class AdaptiveSDE(Sampler):
    """Reverse SDE with adaptive steps, each sample with its own.

    About two network calls for each step taken and one for each step rejected; `nfe_per_sample` counts them.

    Args:
        eta: strength of the noise, > 0; 1 is the reverse SDE.
        rtol, atol: relative and absolute tolerance, > 0, for states of the size of the data. The paper used 0.01 to
            0.05 and 0.0078 (two levels of an 8-bit image in [-1, 1]).
        max_step: longest step in lambda, > 0. Over much more than 1 the noise within a step is forgotten before its
            end, and two estimates at its ends agree while both miss what happens between.
        max_nfe: most network calls for any one sample, the denoising included, >= 1.
        denoise: whether the denoised estimate at the last time is returned instead of the state.

    Attributes:
        order: weak order of its step rule.

    Raises:
        ConfigError: for values outside these; and when run, `SolverError` when max_nfe runs out or a step becomes too
            small, `NonFiniteError` when the network's answer is NaN or infinite.
    """

    eta: float = checked(1.0, above=0.0)
    rtol: float = checked(0.02, above=0.0)
    atol: float = checked(0.0078, above=0.0)
    max_step: float = checked(0.5, above=0.0)
    max_nfe: int = checked(10_000, low=1)
    denoise: bool = checked(True)

    order = 2.0
    is_stochastic = True

    def __post_init__(self) -> None:
        checks.fields(self)

    def solve(self, job: Job) -> Solved:
        p, times, x = job.model.perturbation, self.times(job.model), job.x
        begin, end = p.half_log_snr(times).tolist()
        if job.callback is not None:
            job.callback(0, float(times[0]), x[: job.count])
        job.model.warn_between_nodes(p.half_log_snr(times).mean())
        root = p.size(times).tolist()
        solve = _Solve(self, job)
        u, calls = solve.run(x / root[0], begin, end)
        job.products.append(solve.flow.products)
        if not self.denoise:
            u = u * root[1]
        if job.callback is not None:
            job.callback(1, 0.0 if self.denoise else float(times[1]), u[: job.count])
        return u, int(calls[: job.count].max()), calls


class _Path:
    """What is known of each sample's noise ahead of it: the ends and the normals of adjoining stretches, a stack."""

    def __init__(self, like: Tensor, eta: float) -> None:
        self.rate = 2 * eta**2
        self.depth = torch.zeros(len(like), dtype=torch.long, device=like.device)
        self.ends = torch.zeros(len(like), 4, dtype=torch.float64, device=like.device)
        self.normals = like.new_zeros((len(like), 4, *like.shape[1:]))

    def take(self, begin: Tensor, end: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The next stretch from `begin` to `end`, or to the first known point if that is before or hardly behind.

        z is a new normal, used where a stretch is new or a known one is divided. Returns its end and its normal; it
        stays on the stack until `drop`.
        """
        if int(self.depth.max()) == self.ends.shape[1]:
            self.ends = torch.cat([self.ends, torch.zeros_like(self.ends)], 1)
            self.normals = torch.cat([self.normals, torch.zeros_like(self.normals)], 1)
        each, top = torch.arange(len(begin), device=begin.device), (self.depth - 1).clamp_min(0)
        old_end, old = self.ends[each, top], self.normals[each, top]
        known = self.depth > 0
        divide = known & (end - begin < _WHOLE * (old_end - begin))
        whole = torch.where(divide, torch.expm1(self.rate * (old_end - begin)), 1.0)
        w = torch.where(divide, torch.expm1(self.rate * (end - begin)) / whole, 0.5)
        before, after = (trailing(c.sqrt().to(z.dtype), z.ndim) for c in (w, 1 - w))
        divided, new = trailing(divide, z.ndim), divide | ~known
        self.normals[each, top] = torch.where(divided, after * old - before * z, old)
        normal = torch.where(divided, before * old + after * z, torch.where(trailing(known, z.ndim), old, z))
        end = torch.where(new, end, old_end)
        place = torch.where(new, self.depth, top)
        self.normals[each, place], self.ends[each, place] = normal, end
        self.depth = self.depth + new
        return end, normal

    def drop(self, taken: Tensor) -> None:
        """Forget the next stretch of the samples that have taken it."""
        self.depth = self.depth - taken.long()

    def keep(self, rows: Tensor) -> None:
        """Keep these samples only."""
        self.depth, self.ends, self.normals = self.depth[rows], self.ends[rows], self.normals[rows]


class _Solve:
    """One run of the solver on one chunk."""

    def __init__(self, sampler: AdaptiveSDE, job: Job) -> None:
        self.sampler, self.job, self.flow = sampler, job, Flow(job.model, job.condition)
        self.calls = torch.zeros(len(job.x), dtype=torch.long, device=job.x.device)

    def denoised(self, u: Tensor, lam: Tensor, rows: Tensor) -> Tensor:
        """x0hat of these rows, counted and checked."""
        job = self.job
        self._refuse(rows[self.calls[rows] >= self.sampler.max_nfe],
                     f"more than max_nfe={self.sampler.max_nfe} network calls are needed", lam)  # fmt: skip
        d = self.flow.denoised(u, lam, rows)
        self.calls[rows] += 1
        bad = ~d.flatten(1).isfinite().all(1)
        if bool(bad.any()):
            place = int(bad.nonzero()[0])
            p, (high, low) = job.model.perturbation, self.sampler.times(job.model).tolist()
            inside = min(max(float(lam[place]), float(p.half_log_snr(high))), float(p.half_log_snr(low)))
            raise NonFiniteError(int(self.calls[rows[place]]) - 1, float(p.time(inside)),
                                 (job.first + rows[bad]).tolist(), "denoiser in the adaptive SDE solver")  # fmt: skip
        return d

    def _refuse(self, stuck: Tensor, why: str, lam: Tensor) -> None:
        if len(stuck):
            which = (self.job.first + stuck).tolist()
            shown = ", ".join(map(str, which[:8])) + (", ..." if len(which) > 8 else "")
            raise SolverError(f"AdaptiveSDE: {why} for samples [{shown}], stopped near lambda = "
                              f"{float(lam.min()):.4g}; loosen rtol and atol, or raise max_nfe")  # fmt: skip

    def run(self, u: Tensor, begin: float, end: float) -> tuple[Tensor, Tensor]:
        """The state (denoised if asked) at lambda = end, and the calls of each sample."""
        sampler, job = self.sampler, self.job
        c, attempt = 1 + sampler.eta**2, 0
        done, path = u.clone(), _Path(u, sampler.eta)
        rows = torch.arange(len(u), device=u.device)
        lam = torch.full((len(u),), begin, dtype=torch.float64, device=u.device)
        h = torch.full_like(lam, _FIRST * (end - begin))
        d = self.denoised(u, lam, rows)
        while len(rows):
            goal = torch.where(h >= (end - lam) * (1 - 1e-12), end, lam + h)
            # The k-th attempt of every sample, so its noise does not depend on the others.
            goal, normal = path.take(lam, goal, job.noise(job.x, attempt, 0)[rows])
            attempt, h = attempt + 1, goal - lam
            self._refuse(rows[h < 1e-12 * lam.abs().clamp_min(1e-2)], "the step became too small to go on", lam)
            flat, linear = moments(c * h, 2)
            alpha = torch.sigmoid(2 * goal).sqrt()
            decay = alpha / torch.sigmoid(2 * lam).sqrt() * torch.exp(-c * h)
            std = (-torch.sigmoid(-2 * goal) * torch.expm1(-2 * sampler.eta**2 * h)).sqrt()
            of_u, of_d, of_z, turn = (
                trailing(k.to(u.dtype), u.ndim) for k in (decay, alpha * flat, std, alpha * linear)
            )
            first = of_u * u + of_d * d + of_z * normal
            change = turn * (self.denoised(first, goal, rows) - d)
            scale = sampler.atol + sampler.rtol * torch.maximum(u.abs(), first.abs())
            error = (change / scale).flatten(1).square().mean(1).sqrt().to(torch.float64).clamp_min(1e-10)
            taken = error <= 1
            factor = (_SAFETY * error**-_EXPONENT).clamp(_SHRINK, _GROW)
            h = (h * torch.where(taken, factor, factor.clamp(max=_HALF))).clamp_max(sampler.max_step)
            path.drop(taken)
            u = torch.where(trailing(taken, u.ndim), first + change, u)
            lam = torch.where(taken, goal, lam)
            finished = taken & (goal == end)
            ask = taken if sampler.denoise else taken & ~finished
            if bool(ask.any()):
                d = d.clone()
                d[ask] = self.denoised(u[ask], lam[ask], rows[ask])
            if bool(finished.any()):
                done[rows[finished]] = (d if sampler.denoise else u)[finished]
                going = ~finished
                rows, u, d, lam, h = rows[going], u[going], d[going], lam[going], h[going]
                path.keep(going)
        return done, self.calls
