r"""Log-likelihoods by the probability-flow ODE.

Along the flow :math:`du/d\lambda = f(u, \lambda)` from the least noise :math:`\lambda_0` to the most :math:`\lambda_1`,

.. math:: \log p(x) = \log N(u_1; 0, \hat\sigma_1^2 I) + \int_{\lambda_0}^{\lambda_1} \nabla\cdot f\, d\lambda
          + D\log\hat\alpha_0, \qquad u_0 = \hat\alpha_0 x,

is the density of data smoothed by noise of standard deviation :math:`e^{-\lambda_0}`, whatever the formulation. Three
numbers separate it from the density of the data themselves: the solver's error, which tolerances bound; the prior
mismatch, as :math:`u_1` is not exactly normal; and the truncation at t_min. For oracles the last two are reported.
Song et al. 2021, arXiv:2011.13456, appendix D.2.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.bars import shown
from sde_gen.conditions import Condition, check_labels, gathered
from sde_gen.data.transform import Affine
from sde_gen.errors import ConfigError, NonFiniteError, SDEGenError
from sde_gen.likelihood.adams_bashforth import adams_bashforth, default_nodes
from sde_gen.likelihood.divergence import Draw, fixed_probes, fresh_probes, walsh_probes, with_divergence
from sde_gen.likelihood.inputs import check_data, check_tolerances, lambda_interval, named
from sde_gen.likelihood.result import Likelihood, concatenated
from sde_gen.model import ScoreModel, evaluating
from sde_gen.oracles import GaussianMixture, Oracle
from sde_gen.rng import check_seed
from sde_gen.samplers.dormand_prince import SLOPE, dormand_prince
from sde_gen.samplers.flow import Flow, unit_curves
from sde_gen.samplers.grids import as_grid

_WHERE = "log_likelihood"
_DIVERGENCES, _PROBES = ("auto", "exact", "hutchinson"), ("auto", "rademacher", "gaussian", "fresh", "walsh")
#: Up to this dimension "auto" takes the exact divergence, D vector-Jacobian products a call.
_EXACT_UP_TO = 16
#: The state is solved to a third of the tolerances: its error reaches the answer multiplied by the score; to less of
#: those looser than `_LOOSE`, in proportion to this power, for over long steps error estimates say too little.
_SAFETY, _LOOSE, _LESS = 1 / 3, 1e-5, 0.38
#: Numbers of the state and all its probes held at once.
_CHUNK_NUMBERS = 2**22


@torch.no_grad()
def log_likelihood(
    model: ScoreModel,
    x: Tensor,
    *,
    divergence: str = "auto",
    probes: int = 1,
    probe: str = "auto",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int | None = None,
    order: int = 4,
    grid: Any = None,
    seed: int = 0,
    transform: Affine | None = None,
    condition: Mapping[str, Any] | Condition | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    max_nfe: int = 10_000,
    chunk: int | None = None,
    first: int = 0,
    progress: bool = False,
    **named: Any,
) -> Likelihood:
    """Log-density of each sample under the model, by the probability-flow ODE. No gradient leads through it.

    Without `steps` each sample is integrated with its own adaptive steps (Dormand-Prince 5(4)), its probes held fixed
    during the solve. With `steps=N` all go over one grid of N nodes with one network call each (Adams-Bashforth), and
    each node may have probes of its own, which is far more accurate for the same work.

    Args:
        model: any model, on any perturbation.
        x: data on the model's scale, (B, *shape), floating.
        divergence: "exact" (D vector-Jacobian products a call), "hutchinson", or "auto": exact for D <= 16.
        probes: number of Hutchinson probes P >= 1; the standard error needs two or more.
        probe: "rademacher" or "gaussian", held fixed during a solve; on a grid also "fresh" (Rademacher, new at each
            node) and "walsh" (quasi-random: rows of a Walsh-Hadamard matrix in turn; for even P >= 4 in pairs, P/2
            independent groups). "auto": rademacher when adaptive, walsh on a grid.
        rtol, atol: tolerances of the adaptive solver, > 0.
        steps: number of nodes, >= 2; None for the adaptive solver.
        order: of the multistep rule, 1 to 8; 5 is more accurate where the problem is smooth, 4 more stable.
        grid: a `TimeGrid`, its name or a list of times, instead of the nodes even in asinh((lambda - 1)/3).
        seed: of the probes; sample i depends only on (model, settings, seed, first + i). Formulations share probes.
        transform: of the data, for bits per dimension of the raw data, and to check their range.
        condition: keyword arguments of the network: tensors with a row for each sample, `Whole` what they share.
        t_min, t_max: interval of times; by default all that the model was trained on.
        max_nfe: most network calls for any one sample.
        chunk: most samples at once; by default chosen from their size.
        first: index of the first sample, for jobs that share one seed.
        progress: whether to show a progress bar on standard error.
        named: conditions as keywords, such as label=labels.

    Raises:
        ConfigError: for arguments that do not fit together.
        DataError: x is not finite, or outside the range that `transform` declares.
        SolverError, NonFiniteError: when no sample could be solved. If only some fail, they are in `.failed`, NaN.

    Warns:
        PrecisionWarning: tolerances below what the dtype of x can hold.
        BetweenNodesWarning: a network trained on a chain is asked between its nodes.
    """
    plan = _Plan.of(model, x, divergence, probes, probe, rtol, atol, steps, order, grid, seed, t_min, t_max, max_nfe)
    checks.integer(_WHERE, "first", first, low=0)
    check_data(_WHERE, x, transform)
    size = chunk
    if size is None:
        vectors = x[0].numel() if plan.exact else probes
        size = max(1, _CHUNK_NUMBERS // (max(1, x[0].numel()) * (1 + min(vectors, 64))))
    checks.integer(_WHERE, "chunk", size)
    starts = range(0, len(x), size)
    told = Condition.of(_WHERE, gathered(_WHERE, model.network, condition, named, log_likelihood), len(x))
    check_labels(_WHERE, model, told.parts.get("label"))
    parts = []
    with evaluating(model):
        for start in shown(starts, "likelihood") if progress else starts:
            rows = slice(start, start + size)
            parts.append(plan.solve(x[rows], told[rows], first + start, transform))
    result = concatenated(parts)
    if len(result.failed) == len(x):
        raise next(iter(result.failed.values()))
    return result


@dataclass(frozen=True)
class _Plan:
    """The settings of one call, checked."""

    model: ScoreModel
    exact: bool
    probes: int
    probe: str
    rtol: float
    atol: float
    nodes: Tensor | None
    order: int
    seed: int
    begin: float
    end: float
    root: float
    max_nfe: int

    @classmethod
    def of(
        cls, model: ScoreModel, x: Tensor, divergence: str, probes: int, probe: str, rtol: float, atol: float,
        steps: int | None, order: int, grid: Any, seed: int, t_min: float | None, t_max: float | None, max_nfe: int,
    ) -> "_Plan":  # fmt: skip
        if not isinstance(model, ScoreModel):
            raise ConfigError(f"{_WHERE}: model must be a ScoreModel, got {type(model).__name__}")
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or not x.numel():
            raise ConfigError(f"{_WHERE}: x must be a non-empty floating tensor of shape (B, *shape), got "
                              f"{x.dtype if isinstance(x, Tensor) else type(x).__name__} "
                              f"{tuple(getattr(x, 'shape', ()))}")  # fmt: skip
        checks.choice(_WHERE, "divergence", divergence, _DIVERGENCES)
        checks.choice(_WHERE, "probe", probe, _PROBES)
        checks.integer(_WHERE, "probes", probes)
        checks.integer(_WHERE, "order", order, high=8)
        checks.integer(_WHERE, "max_nfe", max_nfe)
        check_tolerances(_WHERE, x, rtol, atol)
        if steps is not None:
            checks.integer(_WHERE, "steps", steps, low=2)
        if probe == "auto":
            probe = "rademacher" if steps is None and grid is None else "walsh"
        exact = divergence == "exact" or (divergence == "auto" and x[0].numel() <= _EXACT_UP_TO)
        grid = None if grid is None else as_grid(grid)
        lowest = grid.end if grid is not None and t_min is None else t_min
        begin, end, low, high = lambda_interval(_WHERE, model, lowest, t_max)
        nodes, p = None, model.perturbation
        if grid is not None:
            count = grid.length or steps
            if count is None:
                raise ConfigError(f"{_WHERE}: grid needs steps=, the number of its nodes")
            times = grid.times(p, count, low, high)
            nodes, high = p.half_log_snr(times).flip(0), float(times[0])
        elif steps is not None:
            nodes = default_nodes(begin, end, steps)
        if nodes is not None and (len(nodes) < 2 or not bool(nodes.isfinite().all())):
            raise ConfigError(f"{_WHERE}: a grid needs two or more nodes with finite lambda, got {nodes.tolist()[:4]}")
        if nodes is not None and len(nodes) > max_nfe:
            raise ConfigError(f"{_WHERE}: {len(nodes)} nodes take more calls than max_nfe={max_nfe}")
        if nodes is None and not exact and probe in ("fresh", "walsh"):
            raise ConfigError(
                f"{_WHERE}: probe={probe!r} changes from node to node, which an adaptive solver cannot follow; "
                "set steps= (98 is a good number), or use 'rademacher' or 'gaussian'"
            )
        if nodes is not None:
            begin, end = float(nodes[0]), float(nodes[-1])
        root = float(p.size(high))
        return cls(model, exact, probes, probe, rtol, atol, nodes, order, check_seed(seed), begin, end, root, max_nfe)

    def solve(self, x: Tensor, condition: Condition, first: int, transform: Affine | None) -> Likelihood:
        flow = Flow(self.model, condition)
        most, least = (torch.tensor(v, dtype=torch.float64) for v in (self.begin, self.end))
        self.model.warn_between_nodes((most + least) / 2)
        u = x * float(unit_curves(most)[0])
        if self.nodes is None:
            u, q, calls, failed = self._adaptive(flow, u, first)
        else:
            u, q, calls, failed = self._on_grid(flow, u, self.nodes, first)
        size = x[0].numel()
        scale = unit_curves(least)[1].to(u.device)
        wide = u.flatten(1).to(torch.float64)
        prior = -0.5 * (wide / scale).square().sum(1) - size * (math.log(2 * math.pi) / 2 + math.log(float(scale)))
        rest = prior + size * 0.5 * float(torch.nn.functional.logsigmoid(2 * most))
        groups = q.shape[1]
        error = torch.full_like(prior, 0.0 if self.exact else math.nan)
        if not self.exact and groups > 1:
            error = q.std(1) / math.sqrt(groups)
        mismatch, truncation = self._known_terms(x, u, prior, condition)
        volume = 0.0 if transform is None else transform.log_volume(tuple(x.shape[1:]))
        return Likelihood(
            rest + q.mean(1), error, int(calls.max()), calls, u * self.root, size, volume, mismatch, truncation, failed
        )  # fmt: skip

    def _adaptive(self, flow: Flow, u: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor, dict[int, SDEGenError]]:
        held = None if self.exact else fixed_probes(self.probe, self.probes, self.seed, first, u)

        def slope(v: Tensor, lam: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            return with_divergence(lambda w: flow.slope(w, lam, rows), v, None if held is None else held[:, rows])

        rtol, atol = (_SAFETY * tol * min(1.0, _LOOSE / tol) ** _LESS for tol in (self.rtol, self.atol))
        answer = dormand_prince(
            slope, u, self.begin, self.end, rtol=rtol, atol=atol,
            max_calls=self.max_nfe, first=first, integrals=1 if held is None else len(held), keep_going=True,
        )  # fmt: skip
        failed = {index: named(error, self.model, self.begin, self.end) for index, error in answer.failed.items()}
        return answer.u, answer.q, answer.calls, failed

    def _on_grid(
        self, flow: Flow, u: Tensor, nodes: Tensor, first: int
    ) -> tuple[Tensor, Tensor, Tensor, dict[int, SDEGenError]]:
        groups, together = self._groups()
        draw = self._draw(groups, together, first, u)
        lams = nodes.to(u.device).unbind()

        def call(node: int, v: Tensor, lam: float) -> tuple[Tensor, Tensor]:
            at = lams[node].expand(len(v))
            probes = None if draw is None else draw(node, v)
            f, estimates = with_divergence(lambda w: flow.slope(w, at, None), v, probes)
            return f, estimates if draw is None else estimates.reshape(len(v), groups, together).mean(2)

        path = adams_bashforth(call, u, nodes, self.order)
        calls = torch.full((len(u),), len(nodes), device=u.device)
        failed: dict[int, SDEGenError] = {}
        for row in (path.bad >= 0).nonzero().flatten().tolist():
            node = int(path.bad[row])
            error = NonFiniteError(node, float(nodes[node]), [first + row], SLOPE)
            failed[first + row] = named(error, self.model, self.begin, self.end)
            path.q[row] = math.nan
        return path.u, path.q, calls, failed

    def _groups(self) -> tuple[int, int]:
        """Independent groups, and probes of each that are used together."""
        paired = self.probe == "walsh" and self.probes >= 4 and self.probes % 2 == 0
        return (self.probes // 2, 2) if paired else (self.probes, 1)

    def _draw(self, groups: int, together: int, first: int, u: Tensor) -> Draw | None:
        if self.exact:
            return None
        if self.probe == "walsh":
            return walsh_probes(groups, together, self.seed, first, u)
        if self.probe == "fresh":
            return fresh_probes(self.probes, self.seed, first, u)
        held = fixed_probes(self.probe, self.probes, self.seed, first, u)
        return lambda node, v: held

    def _known_terms(
        self, x: Tensor, u: Tensor, prior: Tensor, condition: Condition
    ) -> tuple[Tensor | None, Tensor | None]:
        if not isinstance(self.model, Oracle):
            return None, None
        law, label = self.model.law, list(condition.arguments.values())
        alpha, sigma = unit_curves(torch.tensor(self.end, dtype=torch.float64, device=u.device))
        mismatch = prior - law.log_marginal(u.to(torch.float64), alpha, sigma, *label)
        if not isinstance(law, GaussianMixture):
            return mismatch, None
        one = torch.ones((), dtype=torch.float64, device=x.device)
        smooth = law.log_marginal(x.to(torch.float64), one, one * math.exp(-self.begin), *label)
        return mismatch, smooth - law.log_marginal(x.to(torch.float64), one, 0 * one, *label)
