"""The model that a cell samples from: exact, trained under its formulation, or one network under another."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from sde_gen.comparison.cells.cell import Cell, Context
from sde_gen.config.restore import find_checkpoint, load_model
from sde_gen.data import Dataset
from sde_gen.errors import CheckpointError, ConfigError
from sde_gen.model import ScoreModel
from sde_gen.oracles import EmpiricalData, GaussianMixture
from sde_gen.perturbations import Perturbation


class Law(NamedTuple):
    """The law that an oracle knows, and how to draw from it."""

    exact: GaussianMixture | EmpiricalData
    known: bool
    """Whether it is the law of the data, not the finite set of training samples."""


def law_of(data: Dataset) -> Law:
    """The exact law of the data where it is known, else that of its training samples, which an oracle memorises."""
    if data.law is None:
        return Law(EmpiricalData(data.train), known=False)
    return Law(GaussianMixture(data.law.weights, data.law.means, data.law.covariances), known=True)


@dataclass(frozen=True)
class Weights:
    """A checkpoint that was given: its digest, and the classes that it names, whose code counts."""

    digest: str
    parts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class OfModel(Cell):
    """A cell that asks a model.

    Attributes:
        mode: of the comparison.
        perturbation: which the model is asked under.
        source: the cell that trains it; else the digest of the exact law, or the weights that were given.
        data: fingerprint.
        device: kind of device.
    """

    mode: str
    perturbation: Perturbation
    source: Cell | Weights | str
    data: str
    device: str

    def model(self, context: Context) -> ScoreModel:
        """The model.

        Raises:
            CheckpointError: the weights are not those that this cell is about.
        """
        if self.mode == "oracle":
            return law_of(context.data).exact.model(self.perturbation)
        if isinstance(self.source, Cell):
            model = _loaded(str(context.store.model(self.source.key) / "checkpoints"), None, context)
        elif isinstance(self.source, Weights) and context.checkpoint is not None:
            model = _loaded(context.checkpoint, self.source.digest, context)
        else:
            raise ConfigError("this cell names no trained network; give checkpoint=PATH, or a formulation to train")
        return model if model.perturbation == self.perturbation else model.under(self.perturbation)


_LOADED: dict[tuple[object, ...], ScoreModel] = {}


def _loaded(folder: str, digest: str | None, context: Context) -> ScoreModel:
    found, _ = find_checkpoint(folder)
    if digest is not None and found.digest != digest:
        raise CheckpointError(f"checkpoint {folder} was changed while the comparison ran; run it again")
    key = (str(found.path), found.digest, context.device, context.trust)
    if key not in _LOADED:
        _LOADED.clear()
        _LOADED[key] = load_model(found, device=context.device, trust=context.trust)
    return _LOADED[key]


def dtype_for(model: ScoreModel) -> torch.dtype:
    """Exact scores deserve an exact state; a network has the precision of its weights."""
    return torch.float64 if model.network is None else torch.float32
