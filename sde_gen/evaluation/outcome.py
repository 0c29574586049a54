"""What an evaluation found, as JSON, as a table (CSV), as arrays and for a person; and samples drawn before."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_gen.data import Affine, Dataset
from sde_gen.errors import DataError, MissingInputError
from sde_gen.evaluation.likelihood import HeldOutLikelihood
from sde_gen.files import publish, write_json, write_text
from sde_gen.metrics import MetricResult

COLUMNS: tuple[str, ...] = (
    "name", "title", "value", "standard_error", "low", "high", "real_against_real", "real_standard_error", "real_low",
    "real_high", "n", "m", "better", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """What `python -m sde_gen.evaluate` found.

    Attributes:
        about: what was evaluated, as plain data.
        likelihoods: of the held-out data.
        metrics: distances of samples from the held-out data.
    """

    about: Mapping[str, Any]
    likelihoods: Sequence[HeldOutLikelihood] = ()
    metrics: Sequence[MetricResult] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **self.about,
            "likelihood": {found.kind: found.to_dict() for found in self.likelihoods},
            "metrics": [found.to_dict() for found in self.metrics],
        }

    def write(self, folder: Path) -> None:
        """`evaluation.json` and `evaluation.csv` in `folder`."""
        write_json(folder / "evaluation.json", self.to_dict(), "the evaluation")
        stream = io.StringIO()
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows(self))
        write_text(folder / "evaluation.csv", stream.getvalue(), "the table")

    def lines(self) -> list[str]:
        """A table for a person: value, error, and what two sets of real data give."""
        result = [
            (row["title"], _shown(row, ""), _shown(row, "real_") and f"(real data: {_shown(row, 'real_')})")
            for row in rows(self)
        ]
        widths = [max((len(line[i]) for line in result), default=0) for i in (0, 1)]
        return [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in result]


def rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One mapping of `COLUMNS` for each number: likelihoods first, then distances.

    The `real_against_real` of a likelihood is that of the exact law, where it is known.
    """
    table = []
    for found in evaluation.likelihoods:
        what = "by the ODE" if found.kind == "ode" else "bound"
        what += " of latents" if evaluation.about.get("likelihood_space") == "latent" else ""
        common = {"n": found.n, "better": "lower", "seconds": round(found.seconds, 3)}
        exact = {"real_against_real": found.exact_nll, "real_standard_error": found.exact_nll_error}
        for name, title, value, error, more in (
            ("nll", f"NLL {what}, nats", found.nll, found.nll_error, exact),
            ("bits_per_dim", f"bits/dim {what}", found.bits_per_dim, found.bits_per_dim_error, {}),
        ):
            row = {"name": f"{name}_{found.kind}", "title": title, "value": value, "standard_error": error}
            table.append(dict.fromkeys(COLUMNS) | row | common | more)
    for metric in evaluation.metrics:
        row = {name: value for name, value in metric.to_dict().items() if name in COLUMNS}
        for end, interval in (("", metric.interval), ("real_", metric.real_interval)):
            row[f"{end}low"], row[f"{end}high"] = interval or (None, None)
        table.append(dict.fromkeys(COLUMNS) | row | {"seconds": round(metric.seconds, 3)})
    if frechet := evaluation.about.get("frechet"):
        row = {name: frechet[name] for name in ("name", "title", "value", "n")}
        table.append(dict.fromkeys(COLUMNS) | row | {"m": frechet["reference_count"], "better": "lower"})
    return table


def _shown(row: Mapping[str, Any], which: str) -> str:
    value = row["real_against_real"] if which else row["value"]
    if value is None:
        return ""
    error, low, high = (row[f"{which}{key}"] for key in ("standard_error", "low", "high"))
    if error is not None:
        return f"{_number(value)} +- {_number(error)}"
    return _number(value) if low is None else f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"


def read_samples(given: str, data: Dataset, raw: bool = False) -> Tensor:
    """Samples that were drawn before, on the model's scale.

    Args:
        given: the folder of a sample run, or a .npz (of which `model_x` is taken, else the raw `x`) or a .npy (raw).
        data: of which they are samples.
        raw: take `x` also where there is `model_x`, which are then latents.

    Raises:
        MissingInputError: no such file.  DataError: no numbers of the data's shape in it.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        path = path / "samples.npz"
    if not path.is_file():
        raise MissingInputError(f"no samples at {path}; samples= must be the folder of a sample run, or a .npz or .npy")
    try:
        with path.open("rb") as stream:
            read = np.load(stream, allow_pickle=False)
            arrays = {"x": read} if isinstance(read, np.ndarray) else {key: read[key] for key in read.files}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read as an array ({error}); give a .npz with x or model_x, or a .npy"
        ) from error
    name = "model_x" if "model_x" in arrays and not raw else "x"
    if name not in arrays:
        raise DataError(f"{path} holds neither x nor model_x, but {', '.join(arrays) or 'nothing'}")
    array = arrays[name]
    if array.dtype.kind not in "iuf" or array.shape[1:] != data.shape or len(array) == 0:
        raise DataError(f"{path}: {name} must be numbers of shape (N, {', '.join(map(str, data.shape))}), got "
                        f"{array.dtype} {array.shape}")  # fmt: skip
    x = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))  # raw values may be fine beside their offset
    return (x if name == "model_x" else data.transform.forward(x)).float()


def write_arrays(
    path: Path,
    x: Tensor | None,
    transform: Affine,
    likelihoods: Sequence[HeldOutLikelihood],
    model_x: Tensor | None = None,
) -> None:
    """Write the samples, and the likelihood of every held-out sample, to `path`, a .npz.

    Samples on the model's scale are `model_x`; of latents these are given, and `x` is what they decode into.
    """
    arrays: dict[str, Any] = {}
    if x is not None:
        arrays |= {"x": transform.inverse(x).numpy(), "model_x": (x if model_x is None else model_x).numpy()}
    for found in likelihoods:
        arrays |= {f"{found.kind}_{name}": value.numpy() for name, value in found.arrays.items()}
        arrays[f"{found.kind}_index"] = found.indices.numpy()
        arrays[f"{found.kind}_log_prob"] = found.log_prob.double().numpy()
        arrays[f"{found.kind}_bits_per_dim"] = found.each_bits_per_dim.double().numpy()

    publish(path, lambda temporary: np.savez_compressed(temporary, **arrays), "the arrays")
