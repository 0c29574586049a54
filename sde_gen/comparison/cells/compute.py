"""What is done for each kind of cell. A worker needs the cell and its context, and nothing else."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sde_gen.comparison.budgets import matched
from sde_gen.comparison.cells.exact import fitted_order
from sde_gen.comparison.cells.network import train
from sde_gen.comparison.cells.quality import likelihood, measured
from sde_gen.comparison.cells.store import Cell, Store
from sde_gen.comparison.description import describe
from sde_gen.config.objects import build
from sde_gen.config.restore import load_model
from sde_gen.data import Dataset
from sde_gen.errors import BetweenNodesWarning, ConfigError
from sde_gen.model import ScoreModel
from sde_gen.oracles import EmpiricalData, GaussianMixture
from sde_gen.rng import keyed_generator
from sde_gen.samplers import ProbabilityFlow, Sampler

Result = tuple[dict[str, Any], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Context:
    """What all cells of a comparison share and no key needs to hold: places, and objects that are rebuilt."""

    data: Any
    """A `Dataset`, or the node of one."""
    cache: Path
    device: str
    trust: tuple[str, ...] = ()
    checkpoint: str | None = None
    """Of mode=shared with a network that was trained elsewhere."""
    trainer: Mapping[str, Any] | None = None
    afresh: bool = False
    """Whether a network is trained from the beginning, whatever the cache holds, and not kept."""


class Law(NamedTuple):
    """The law that an oracle knows, and how to draw from it."""

    exact: GaussianMixture | EmpiricalData
    known: bool
    """Whether it is the law of the data, not the finite set of training samples."""


def compute(cell: Cell, context: Context, stop: Callable[[], bool] = lambda: False) -> Result:
    """The result of a cell as plain data, and arrays that go with it.

    Raises:
        SDEGenError: a combination that does not work, a numerical failure, or `Interrupted` when `stop` asked.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BetweenNodesWarning)  # stated in the report's table of formulations
        if cell.kind == "model":
            if not context.afresh:
                return _model(cell, context, Store(context.cache).model(cell.key), stop), {}
            with TemporaryDirectory(prefix=".afresh-", dir=context.cache) as folder:
                return _model(cell, context, Path(folder), stop), {}
        return _KINDS[cell.kind](cell, context)


def _model(cell: Cell, context: Context, folder: Path, stop: Callable[[], bool]) -> dict[str, Any]:
    settings, device = context.trainer or {}, torch.device(context.device)
    config, data = {**cell.config, "trainer": dict(settings)}, dataset_of(context)
    return train(config, data, folder, trainer=settings, device=device, trust=context.trust, stop=stop)


def _samples(cell: Cell, context: Context) -> Result:
    config = cell.config
    data = dataset_of(context)
    model, sampler = model_of(cell, context), sampler_of(cell, context)
    shape = (config["num_samples"], *data.shape)
    drawn = sampler(model, shape, seed=config["seed"], dtype=_dtype(model), device=context.device)
    result = {"nfe": int(drawn.nfe), "seconds": drawn.seconds}
    result |= measured(config["measures"], drawn.x, data.test[: config["num_samples"]])
    kept = drawn.x[: config["keep"]].float().cpu().numpy()
    return result, {"x": kept} if config["keep"] else {}


def _choice(cell: Cell, context: Context) -> Result:
    """What a sampler that measures first chooses for a model, once for all seeds; and what that cost."""
    auto = build(cell.config["sampler"], trust=context.trust, where="sampler")
    found = auto.choose(model_of(cell, context), dataset_of(context).shape)
    result = {"sampler_chosen": describe(found.sampler, "sampler"), "nfe": found.nfe, "error": found.error}
    return {**result, "calibration_nfe": found.calibration_nfe, "seconds": found.calibration_seconds}, {}


def _real(cell: Cell, context: Context) -> Result:
    """As many real samples: where a perfect sampler would stand, as the mean of some draws."""
    config, data = cell.config, dataset_of(context)
    law, count = law_of(data), config["num_samples"]
    # A stream of its own: data that were drawn from the same law have seeds too.
    generator = keyed_generator(config["seed"], 7)

    def draw() -> Tensor:
        if law.known:
            return law.exact.sample(count, seed=int(torch.randint(2**62, (), generator=generator)))
        return data.train[torch.randperm(len(data.train), generator=generator)[:count]]

    drawn = [draw() for _ in range(config["draws"])]
    found = [measured(config["measures"], x, data.test[:count]) for x in drawn]
    kept = {"x": drawn[0][: config["keep"]].float().numpy()} if config["keep"] else {}
    values = {m: [v for one in found if (v := one[m]) is not None] for m in config["measures"]}
    return {m: fmean(v) for m, v in values.items() if v}, kept


def _likelihood(cell: Cell, context: Context) -> Result:
    config, data = cell.config, dataset_of(context)
    result = likelihood(model_of(cell, context), data, config)
    law = law_of(data)
    if law.known and isinstance(law.exact, GaussianMixture):
        x = data.test[: config["points"]].double()
        each = -law.exact.log_prob(x) / x[0].numel()
        result["nll_exact"] = float(each.mean())
    return result, {}


def _order(cell: Cell, context: Context) -> Result:
    sampler = build(cell.config["sampler"], trust=context.trust, where="sampler")
    perturbation = build(cell.config["perturbation"], trust=context.trust, where="perturbation")
    return fitted_order(sampler, perturbation), {}


def _trace(cell: Cell, context: Context) -> Result:
    """States of a few samples along the way, divided by sqrt(alpha^2 + sigma^2), from the prior to the data."""
    config, data = cell.config, dataset_of(context)
    model, sampler = model_of(cell, context), sampler_of(cell, context)
    total = len(sampler.times(model)) + 1
    if isinstance(sampler, ProbabilityFlow):  # each sample has its own steps: the same times for all, by dense output
        sampler, total = replace(sampler, at=config["frames"] - 2), config["frames"]
    wanted = {round(k * (total - 1) / (config["frames"] - 1)) for k in range(config["frames"])}
    frames: list[tuple[float, Tensor]] = []

    def keep(step: int, t: float, x: Tensor) -> None:
        if step in wanted or t == 0.0:
            frames.append((t, x.detach().double().cpu()))

    sampler(model, (config["count"], *data.shape), seed=config["seed"], dtype=_dtype(model), device=context.device,
            callback=keep)  # fmt: skip
    p = model.perturbation
    times = torch.tensor([t for t, _ in frames], dtype=torch.float64)
    size = (p.alpha(times).square() + p.sigma(times).square()).sqrt()
    # The last state is the denoised estimate: data, whatever the size of the process at t = 0.
    size[-1] = 1.0 if float(times[-1]) == 0.0 else size[-1]
    states = torch.stack([x / s for (_, x), s in zip(frames, size, strict=True)]).float().numpy()
    return {"frames": len(frames)}, {"x": states, "t": times.numpy()}


_KINDS: dict[str, Callable[[Cell, Context], Result]] = {
    "choice": _choice,
    "samples": _samples,
    "real": _real,
    "likelihood": _likelihood,
    "order": _order,
    "trace": _trace,
}


# -- objects from plain data -------------------------------------------------------------------------------------------


def dataset_of(context: Context) -> Dataset:
    """The data of a context, made once in each process."""
    if isinstance(context.data, Dataset):
        return context.data
    key = repr(context.data)
    if key not in _DATA:
        _DATA.clear()
        _DATA[key] = build(context.data, trust=context.trust, where="data")
    return _DATA[key]


_DATA: dict[str, Dataset] = {}


def law_of(data: Dataset) -> Law:
    """The exact law of the data where it is known, else that of its training samples, which an oracle memorises."""
    if data.law is None:
        return Law(EmpiricalData(data.train), known=False)
    return Law(GaussianMixture(data.law.weights, data.law.means, data.law.covariances), known=True)


def model_of(cell: Cell, context: Context) -> ScoreModel:
    """The model that a cell samples from: exact, trained under its formulation, or one network under another."""
    p = build(cell.config["perturbation"], trust=context.trust, where="perturbation")
    if cell.config["mode"] == "oracle":
        return law_of(dataset_of(context)).exact.model(p)
    if cell.needs is not None:
        folder = str(Store(context.cache).model(cell.needs) / "checkpoints")
    elif context.checkpoint is not None:
        folder = context.checkpoint
    else:
        raise ConfigError("this cell names no trained network; give model=PATH, or a formulation to train")
    model = _loaded(folder, context.device, context.trust)
    return model if model.perturbation == p else model.under(p)


@lru_cache(maxsize=2)
def _loaded(folder: str, device: str, trust: tuple[str, ...]) -> ScoreModel:
    return load_model(folder, device=device, trust=trust)


def sampler_of(cell: Cell, context: Context) -> Sampler:
    """The sampler of a cell: as chosen if it was chosen by measurement, on its matched grid if it has one."""
    node = cell.config["sampler"] if cell.tuned is None else Store(context.cache).sampler(cell.tuned)
    sampler = build(node, trust=context.trust, where="sampler")
    if cell.config["matched"]:
        steps, low, high = cell.config["matched"]
        sampler = matched(sampler, steps, (low, high))
    return sampler


def _dtype(model: ScoreModel) -> torch.dtype:
    """Exact scores deserve an exact state; a network has the precision of its weights."""
    return torch.float64 if model.network is None else torch.float32
