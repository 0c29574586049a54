"""What several commands do alike: start on a device, take a trained network, find a place for results, print."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sde_gen.config.launch import say
from sde_gen.config.objects import build
from sde_gen.config.restore import chosen_checkpoint, load_model, pick_device
from sde_gen.config.schema import EvaluateConfig, RunConfig, SampleConfig, TrainConfig
from sde_gen.data import Dataset
from sde_gen.diagnosis import diagnose
from sde_gen.distributed import Processes, start
from sde_gen.errors import BetweenNodesWarning, UncompiledWarning
from sde_gen.jobs.origins import resolved
from sde_gen.model import ScoreModel
from sde_gen.rng import check_seed, keyed_generator
from sde_gen.samplers import Sampler
from sde_gen.training import Checkpoint, RunDirectory, read_checkpoint

_DIAGNOSED = 64  # held-out samples that an imported network is looked at with


def begin(cfg: TrainConfig | SampleConfig | EvaluateConfig) -> tuple[Processes, torch.device]:
    """Join the processes of the job, each with the device that is its own; called when the settings are checked."""
    processes = start(pick_device(cfg.device).type, cfg.timeout)
    device = pick_device(cfg.device, processes.local_rank if processes.world > 1 else 0)
    if processes.world > 1 and device.type == "cuda":
        torch.cuda.set_device(device)
    return processes, device


@dataclass(frozen=True)
class Trained:
    """A trained network, what samples it, and where."""

    model: ScoreModel
    sampler: Sampler
    checkpoint: Checkpoint
    processes: Processes
    device: torch.device

    @property
    def conditional(self) -> bool:
        """Whether the network was trained with labels."""
        return bool(self.checkpoint.state.get("conditional"))

    def about(self) -> dict[str, object]:
        """What every report says of the network."""
        return {
            "perturbation": repr(self.model.perturbation),
            "checkpoint": str(self.checkpoint.path),
            "step": self.checkpoint.step,
        }


def trained(cfg: SampleConfig | EvaluateConfig, best: bool = False) -> Trained:
    """What the settings of a command name, all of it checked before anything is read; with `best`, of the lowest loss.

    Raises:
        SDEGenError: one of its subclasses, naming the setting.
    """
    check_seed(cfg.seed)
    pick_device(cfg.device)
    sampler = build(cfg.sampler, trust=cfg.trust, where="sampler")
    perturbation = build(cfg.sde, trust=cfg.trust, where="sde")
    processes, device = begin(cfg)

    def choose() -> str:
        given = resolved(cfg.checkpoint, cfg.runs_dir)
        return str(chosen_checkpoint(cfg.run, given, cfg.runs_dir, say, best=best).path)

    path = processes.on_main(choose)
    checkpoint = read_checkpoint(Path(path))
    model = load_model(checkpoint, weights=cfg.weights, device=device, trust=cfg.trust)
    model = model if perturbation is None else model.under(perturbation)
    return Trained(model, sampler, checkpoint, processes, device)


def run_folder(cfg: RunConfig, label: str) -> RunDirectory:
    """The run that the settings name, made if it is not there; a fresh one where they name none."""
    root = Path(cfg.runs_dir).expanduser()
    return RunDirectory.fresh(root, label) if cfg.run is None else RunDirectory.named(root, str(cfg.run))


def fresh_folder(checkpoint: Checkpoint, kind: str, label: str) -> Path:
    """A new folder for results, `kind/<date>-<time>_<label>` in the run of a checkpoint."""
    return RunDirectory.fresh(checkpoint.home / kind, label).path


def held_out_condition(data: Dataset, rows: Tensor, device: torch.device) -> dict[str, Tensor]:
    """What a network is told of held-out samples: their labels, vectors and tokens, as far as there are any."""
    told = dict(data.test_told) if data.test_labels is None else {"label": data.test_labels, **data.test_told}
    return {name: value[rows].to(device) for name, value in told.items()}


def diagnosed(model: ScoreModel, data: Dataset, conditional: bool, seed: int) -> str:
    """Whether a network from elsewhere is read as it was trained: the table is said, the verdict returned."""
    rows = torch.randperm(len(data.test), generator=keyed_generator(seed, 3))[:_DIAGNOSED]
    if len(rows) < 2:
        return "too few held-out samples"
    condition = held_out_condition(data, rows, model.device) if conditional else {}
    found = diagnose(model, data.test[rows].to(model.device), seed=seed, condition=condition)
    for line in repr(found).splitlines():
        say(line)
    return found.verdict


@contextmanager
def notes_said() -> Iterator[None]:
    """Say each warning of the block once, at its end."""
    with warnings.catch_warnings(record=True) as notes:
        for kind in (BetweenNodesWarning, UncompiledWarning):
            warnings.simplefilter("once", kind)
        yield
    for note in dict.fromkeys(str(note.message) for note in notes):
        say(f"note: {note}")


def table(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one below the other."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"  {name:<{width}}  {value}")
