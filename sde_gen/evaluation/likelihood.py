r"""Likelihood of held-out data, with its error, in nats and bits per dimension; a sample that fails costs only itself.

Over n samples with log-densities :math:`\ell_i` on the model's scale, the report is
:math:`-\bar\ell \pm \mathrm{sd}(\ell)/\sqrt n`. The spread of the samples holds that of the probes, which are
independent from sample to sample; the latter's part, :math:`\sqrt{\sum_i \mathrm{se}_i^2}/n`, is given beside it.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from sde_gen.data import Affine, Mixture
from sde_gen.distributed import Processes
from sde_gen.errors import NonFiniteError, SolverError
from sde_gen.evaluation.parts import in_parts, part_length
from sde_gen.model import ScoreModel

Kind = Literal["ode", "vlb"]


@dataclass(frozen=True)
class Values:
    """Of each of n samples, on the CPU; NaN where a sample failed.

    Attributes:
        log_prob: log-density (or a bound of it) on the model's scale, in nats, (n,).
        bits_per_dim: of the raw data, (n,).
        standard_error: of log_prob over probes or draws, (n,); None where there is none.
        nfe: network calls, (n,); None where unknown.
        failed: row to what went wrong.
        arrays: of a bound, the `terms` of each sample that has them, and their `times`.
    """

    log_prob: Tensor
    bits_per_dim: Tensor
    standard_error: Tensor | None = None
    nfe: Tensor | None = None
    failed: Mapping[int, str] = field(default_factory=dict)
    arrays: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class HeldOutLikelihood:
    """Likelihood of n held-out samples.

    Attributes:
        kind: "ode": by the probability-flow ODE; "vlb": the variational bound, which is no less than the truth.
        nll: mean negative log-density of a sample on the model's scale, in nats; of data on levels, dequantised.
        nll_error: its standard error.
        bits_per_dim: of the raw data: per dimension, of a level for data on levels, of the density else.
        bits_per_dim_error: its standard error.
        probe_error: the part of `nll_error` that comes from the probes of the divergence; None where there are none.
        exact_nll, exact_nll_error: `nll` of the same samples under the data's exact law, where that is known.
        n: samples that count.
        nfe: mean number of network calls for a sample, None where unknown.
        seconds: wall-clock time.
        failed: index of each held-out sample that could not be solved, and why.
        indices: (n,), which held-out samples count.
        log_prob, each_bits_per_dim: (n,), of each.
        arrays: of a bound, the mean of its `terms` in bits/dim, the decoder's first, and the `times` of the steps.
    """

    kind: Kind
    nll: float
    nll_error: float
    bits_per_dim: float
    bits_per_dim_error: float
    probe_error: float | None
    exact_nll: float | None
    exact_nll_error: float | None
    n: int
    nfe: float | None
    seconds: float
    failed: dict[int, str]
    indices: Tensor
    log_prob: Tensor
    each_bits_per_dim: Tensor
    arrays: Mapping[str, Tensor] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without those of single samples."""
        names = (
            "nll",
            "nll_error",
            "bits_per_dim",
            "bits_per_dim_error",
            "probe_error",
            "exact_nll",
            "exact_nll_error",
        )
        plain = {name: getattr(self, name) for name in (*names, "n", "nfe")}
        return plain | {"seconds": round(self.seconds, 3), "failed": {str(i): s for i, s in self.failed.items()}}


def held_out_likelihood(
    kind: Kind,
    model: ScoreModel,
    x: Tensor,
    transform: Affine,
    *,
    indices: Tensor | None = None,
    condition: Mapping[str, Tensor] | None = None,
    law: Mixture | None = None,
    seed: int = 0,
    chunk: int | None = None,
    progress: bool = False,
    processes: Processes | None = None,
    **settings: Any,
) -> HeldOutLikelihood:
    """Likelihood of `x` under `model`.

    Args:
        kind: "ode" or "vlb".
        model: any model, also under another formulation than the trained one.
        x: (n, *shape), on the model's scale.
        transform: of the data; with its levels, data are dequantised for "ode".
        indices: (n,), how messages name the samples; 0..n-1 by default.
        condition: what the network is given of each sample, n rows each.
        law: exact law of the data, if known.
        seed: of dequantisation, probes and draws.
        chunk: most samples at once, and in one part of the work; None: chosen from their size.
        progress: whether to show a progress bar on standard error.
        processes: of the job, all of which call this with the same arguments, share the parts, and return the same.
        settings: arguments of `log_likelihood` ("ode") or `variational_bound` ("vlb").

    Raises:
        SolverError: no sample could be solved.  Others as the solver itself.
    """
    began = time.perf_counter()
    condition = dict(condition or {})
    indices = torch.arange(len(x)) if indices is None else indices
    if kind == "ode":
        x = transform.dequantise(x, seed) if transform.levels is not None else x
    solver, processes = _ode if kind == "ode" else _bound, processes or Processes()

    def solve(rows: slice) -> Values:
        given = {name: value[rows] for name, value in condition.items()}
        try:
            return solver(model, x[rows], transform, given, seed, chunk, progress, settings, rows.start)
        except (SolverError, NonFiniteError) as error:  # of every sample of this part; those of others may do better
            return _failed(rows.stop - rows.start, str(error))

    values = _joined(in_parts(processes, len(x), part_length(len(x), x.shape[1:], chunk), solve))
    good = values.log_prob.isfinite() & values.bits_per_dim.isfinite()
    failed = {
        int(indices[row]): str(values.failed.get(row, "its log-density is NaN or infinite"))
        for row in good.logical_not().nonzero().flatten().tolist()
    }
    if not bool(good.any()):
        reason = f"none of the {len(x)} held-out samples has a likelihood: {next(iter(failed.values()), 'none')}"
        processes.on_main(lambda: _refuse(reason))
    nll, error = _mean(-values.log_prob[good])
    exact, exact_error = (None, None) if law is None else _mean(-_exact(law, x)[good])
    bits, bits_error = _mean(values.bits_per_dim[good])
    return HeldOutLikelihood(
        kind=kind,
        nll=nll,
        nll_error=error,
        bits_per_dim=bits,
        bits_per_dim_error=bits_error,
        probe_error=None if values.standard_error is None else _of_mean(values.standard_error[good]),
        exact_nll=exact,
        exact_nll_error=exact_error,
        n=int(good.sum()),
        nfe=None if values.nfe is None else float(values.nfe[good].double().mean()),
        seconds=time.perf_counter() - began,
        failed=failed,
        indices=indices[good],
        log_prob=values.log_prob[good],
        each_bits_per_dim=values.bits_per_dim[good],
        arrays=values.arrays,
    )


def _refuse(reason: str) -> None:
    raise SolverError(reason)


def _failed(count: int, reason: str) -> Values:
    """Of `count` samples that all failed."""
    nan = torch.full((count,), math.nan, dtype=torch.float64)
    return Values(nan, nan, nan, torch.zeros(count, dtype=torch.int64), dict.fromkeys(range(count), reason))


def _joined(parts: Sequence[Values]) -> Values:
    """The values of all parts as one."""

    def each(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    failed, start = dict[int, str](), 0
    for part in parts:
        failed |= {start + row: reason for row, reason in part.failed.items()}
        start += len(part.log_prob)
    kept = [part.arrays for part in parts if part.arrays]
    arrays = {"terms": torch.cat([a["terms"] for a in kept]).mean(0), "times": kept[0]["times"]} if kept else {}
    return Values(each("log_prob"), each("bits_per_dim"), each("standard_error"), each("nfe"), failed, arrays)


def _of_mean(errors: Tensor) -> float | None:
    """Standard error of a mean from those of its terms; None where one probe tells nothing of its spread."""
    error = float(errors.double().square().sum().sqrt()) / len(errors)
    return error if math.isfinite(error) else None


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean and its standard error (0 of a single value, which tells nothing of the spread)."""
    values = values.double()
    spread = float(values.std()) if len(values) > 1 else 0.0
    return float(values.mean()), spread / math.sqrt(len(values))


def _exact(law: Mixture, x: Tensor) -> Tensor:
    from sde_gen.oracles import GaussianMixture

    return GaussianMixture(law.weights, law.means, law.covariances).log_prob(x.double().cpu())


# -- the only calls of the library's likelihoods -----------------------------------------------------------------------


def _ode(
    model: ScoreModel,
    x: Tensor,
    transform: Affine,
    condition: Mapping[str, Tensor],
    seed: int,
    chunk: int | None,
    progress: bool,
    settings: Mapping[str, Any],
    first: int,
) -> Values:
    from sde_gen.likelihood import log_likelihood

    found = log_likelihood(
        model, x, seed=seed, first=first, transform=transform, condition=condition, chunk=chunk, progress=progress,
        **settings,
    )  # fmt: skip
    failed = {index - first: str(error) for index, error in found.failed.items()}
    return Values(
        found.log_prob.cpu(), found.bits_per_dim.cpu(), found.standard_error.cpu(), found.nfe_per_sample.cpu(), failed
    )


def _bound(
    model: ScoreModel,
    x: Tensor,
    transform: Affine,
    condition: Mapping[str, Tensor],
    seed: int,
    chunk: int | None,
    progress: bool,
    settings: Mapping[str, Any],
    first: int,
) -> Values:
    from sde_gen.likelihood import variational_bound

    kept, failed = torch.arange(len(x)), dict[int, str]()
    while True:
        given = {name: value[kept] for name, value in condition.items()}
        try:
            found = variational_bound(
                model, x[kept], transform=transform, condition=given, seed=seed, first=first, chunk=chunk, **settings
            )
            break
        except NonFiniteError as error:
            bad = torch.isin(first + torch.arange(len(kept)), torch.tensor(error.indices, dtype=torch.long))
            if not bool(bad.any()) or bool(bad.all()):
                raise
            failed |= dict.fromkeys(kept[bad].tolist(), str(error))
            kept = kept[~bad]
    bits, error = (torch.full((len(x),), math.nan, dtype=torch.float64) for _ in range(2))
    bits[kept], error[kept] = found.bits_per_dim.double().cpu(), found.standard_error.double().cpu()
    # Of data on levels the bound is that of the levels' probability; on one scale with the ODE's it is a density.
    shape = tuple(x.shape[1:])
    log_prob = -bits * math.prod(shape) * math.log(2.0) - transform.log_volume(shape)
    terms = found.terms.double().cpu() / (math.prod(shape) * math.log(2.0))
    arrays = {"terms": terms, "times": found.times.cpu()} if found.times.ndim == 1 else {}
    return Values(log_prob, bits, error, torch.full((len(x),), found.nfe), failed, arrays)
