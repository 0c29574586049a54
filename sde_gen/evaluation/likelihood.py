r"""Likelihood of held-out data, with its error, in nats and bits per dimension; a sample that fails costs only itself.

Over n samples with log-densities :math:`\ell_i` on the model's scale, the report is
:math:`-\bar\ell \pm \mathrm{sd}(\ell)/\sqrt n`. The spread of the samples holds that of the probes, which are
independent from sample to sample; the latter's part, :math:`\sqrt{\sum_i \mathrm{se}_i^2}/n`, is given beside it.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.conditions import Condition
from sde_gen.data import Affine, Mixture
from sde_gen.distributed import Processes
from sde_gen.errors import DataError, NonFiniteError, SolverError
from sde_gen.likelihood import log_likelihood, variational_bound
from sde_gen.model import ScoreModel
from sde_gen.oracles import GaussianMixture
from sde_gen.rng import block_size

Kind = Literal["ode", "vlb"]
T = TypeVar("T")
_PARTS = 16  # of a job, at most, unless told otherwise


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
        nll_error: its standard error; None, here and below, where a single sample tells nothing of the spread.
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
    nll_error: float | None
    bits_per_dim: float
    bits_per_dim_error: float | None
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
        names = ("nll", "nll_error", "bits_per_dim", "bits_per_dim_error", "probe_error", "exact_nll",
                 "exact_nll_error", "n", "nfe")  # fmt: skip
        plain = {name: getattr(self, name) for name in names}
        return plain | {"seconds": round(self.seconds, 3), "failed": {str(i): s for i, s in self.failed.items()}}


def held_out_likelihood(
    kind: Kind,
    model: ScoreModel,
    x: Tensor,
    transform: Affine,
    *,
    indices: Tensor | None = None,
    condition: Mapping[str, Any] | Condition | None = None,
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
        condition: what the network is given besides, see `sde_gen.conditions`; tensors have n rows.
        law: exact law of the data, if known.
        seed: of dequantisation, probes and draws.
        chunk: most samples at once, and in one part of the work, at least 1; None: chosen from their size.
        progress: whether to show a progress bar on standard error.
        processes: of the job, all of which call this with the same arguments, share the parts, and return the same.
        settings: arguments of `log_likelihood` ("ode") or `variational_bound` ("vlb").

    Raises:
        ConfigError: another kind, `chunk` < 1, or a condition with another number of rows.
        DataError: x is not a batch of floating-point numbers.
        SolverError: no sample could be solved.  Others as the solver itself.
    """
    began, where = time.perf_counter(), "held_out_likelihood"
    solver = _ode if checks.choice(where, "kind", kind, ("ode", "vlb")) == "ode" else _bound
    chunk = None if chunk is None else checks.integer(where, "chunk", chunk)
    if not x.is_floating_point() or x.ndim < 2 or not len(x):
        raise DataError(
            f"{where}: x must be floating-point numbers (n, *shape) on the model's scale, n at least 1, got {x.dtype} "
            f"{tuple(x.shape)}; transform.forward brings raw data there"
        )
    given = Condition.of(where, condition, len(x))
    processes = processes or Processes()
    indices = torch.arange(len(x)) if indices is None else indices
    if kind == "ode":
        x = transform.dequantise(x, seed) if transform.levels is not None else x
    settings |= {"seed": seed, "chunk": chunk, "progress": progress}

    def solve(rows: slice) -> Values:
        try:
            return solver(model, x[rows], transform, given[rows], rows.start, **settings)
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
    exact, exact_error = None, None
    if law is not None:
        mixture = GaussianMixture(law.weights, law.means, law.covariances)
        exact, exact_error = _mean(-mixture.log_prob(x.double().cpu())[good])
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


def _mean(values: Tensor) -> tuple[float, float | None]:
    """Mean and its standard error; None of a single value, which tells nothing of the spread."""
    values = values.double()
    return float(values.mean()), float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None


def part_length(count: int, shape: Sequence[int], chunk: int | None = None) -> int:
    """Samples per part: `chunk`, or a sixteenth of all, but at least a block of noise (2^16 numbers, 64 samples)."""
    return chunk or max(block_size(max(1, math.prod(shape))), -(-count // _PARTS))


def in_parts(processes: Processes, count: int, length: int, task: Callable[[slice], T]) -> list[T]:
    """`task(rows)` of each part of 0..count-1, in order, in every process; each is done whole by one of them.

    The parts are fixed by the job alone, whoever does them.

    Raises:
        FailedElsewhere: a part failed in another process.
    """
    return processes.share(
        -(-count // length), lambda part: task(slice(part * length, min((part + 1) * length, count)))
    )


# -- the only calls of the library's likelihoods -----------------------------------------------------------------------


def _ode(model: ScoreModel, x: Tensor, transform: Affine, condition: Condition, first: int, **settings: Any) -> Values:
    found = log_likelihood(model, x, transform=transform, condition=condition, first=first, **settings)
    failed = {index - first: str(error) for index, error in found.failed.items()}
    return Values(
        found.log_prob.cpu(), found.bits_per_dim.cpu(), found.standard_error.cpu(), found.nfe_per_sample.cpu(), failed
    )


def _bound(
    model: ScoreModel,
    x: Tensor,
    transform: Affine,
    condition: Condition,
    first: int,
    progress: bool = False,  # the bound shows none
    **settings: Any,
) -> Values:
    kept, failed = torch.arange(len(x)), dict[int, str]()
    while True:
        given = condition[kept]
        try:
            found = variational_bound(model, x[kept], transform=transform, condition=given, first=first, **settings)
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
