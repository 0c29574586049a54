"""What the processes of these tests do; importable, so that a server can fork them."""

import dataclasses
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sde_gen as sg
from sde_gen.data import Affine, Dataset, mixture
from sde_gen.distributed import Processes, Pulse
from sde_gen.errors import OutputError
from sde_gen.evaluation import held_out_likelihood
from sde_gen.training import Trainer, TrainerSettings, newest_checkpoint

SETTINGS = TrainerSettings(
    steps=100, batch_size=16, warmup=5, learning_rate=1e-3, schedule="constant", log_every=10, eval_every=50,
    checkpoint_every=0, ema=0.9,
)  # fmt: skip


def build(processes: Processes, checkpoints: Path | None, **changes: Any) -> Trainer:
    """A small trainer, the same in every process."""
    kind = changes.pop("kind", "points")
    weights_seed, data_seed = changes.pop("weights_seed", 0), changes.pop("data_seed", 0)
    stop, on_device = changes.pop("stop", lambda: False), changes.pop("on_device", False)
    spare = changes.pop("spare", False)
    torch.manual_seed(weights_seed)
    if kind == "images":
        images = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        data = Dataset("noise", "image", images[:30], images[30:], Affine())
        network: nn.Module = sg.UNet(3, width=8, multipliers=[1, 2], blocks=1, attention=[-1])
        objective = sg.DenoisingScoreMatching()
    else:
        data = mixture(n=100, n_test=40, seed=data_seed)
        classes = data.num_classes
        network = sg.MLP(2, hidden=16, layers=2, num_classes=classes)
        objective = sg.DenoisingScoreMatching(label_dropout=0.3, num_classes=classes)
    if spare:  # what no loss reaches
        network.spare = nn.Linear(3, 3)
    model = sg.ScoreModel(network, sg.VP())
    trainer = Trainer(
        model, data, objective, dataclasses.replace(SETTINGS, **changes), seed=3, conditional=kind == "points",
        checkpoints=checkpoints, processes=processes, stop=stop,
    )  # fmt: skip
    trainer._update._on_device = on_device  # what a GPU does: the optimiser clips, and skips what is not finite
    return trainer


def train(processes: Processes, checkpoints: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Train, from the newest checkpoint if there is one; weights, averages and metrics at the end."""
    trainer = build(processes, checkpoints, **changes)
    found, _ = newest_checkpoint(checkpoints)
    if found is not None:
        trainer.resume(found)
    rows: list[dict[str, float]] = []
    levels: list[dict[str, float]] = []
    lists = {"log": rows, "levels": levels}
    trainer.listeners = (lambda event, _, values: lists[event].append(dict(values)) if event in lists else None,)
    trainer.train()
    from sde_gen.training.sharding import collected, local

    return {
        "model": collected(trainer.network.state_dict(), True),
        "ema": collected(trainer.ema.state_dict(), True),
        "rows": [{k: row[k] for k in ("step", "loss", "grad_norm", "held_out_loss") if k in row} for row in rows],
        "levels": levels,
        "step": trainer.step,
        "parameters_here": sum(local(p.detach()).numel() for p in trainer.network.parameters()),
    }


def disagree(processes: Processes, what: str) -> None:
    """Process 1 was started differently."""
    other = processes.rank == 1
    changes: dict[str, Any] = {}
    if what == "settings":
        changes["learning_rate"] = 2e-3 if other else 1e-3
    elif what == "data":
        changes["data_seed"] = int(other)
    elif what == "weights":
        changes["weights_seed"] = int(other)
    build(processes, None, **changes)


def die(processes: Processes, checkpoints: Path, silent: bool) -> None:
    """Process 1 ends, or falls silent, in the middle of training."""

    def stop() -> bool:
        if processes.rank == 1 and trainer.step == 25:
            if silent:
                time.sleep(1000)
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    trainer = build(processes, checkpoints, checkpoint_every=10, stop=stop)
    trainer.train()


def stop_one(processes: Processes, checkpoints: Path) -> tuple[int, bool]:
    """Process 1 alone is asked to stop."""
    trainer = build(processes, checkpoints, stop=lambda: processes.rank == 1 and trainer.step >= 7)
    trainer.train()
    return trainer.step, trainer.interrupted


class Poisoned(nn.Module):
    """From its 11th call on NaN for the last row, in one process only."""

    def __init__(self, bad: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.calls, self.bad = 0, bad

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.calls += self.training
        y = x * self.weight
        if self.bad and self.calls > 10:
            y = y.clone()
            y[-1] = float("nan")
        return y


def poisoned(processes: Processes, checkpoints: Path, strategy: str, on_device: bool) -> None:
    """One process meets NaN; all must raise the same."""
    model = sg.ScoreModel(Poisoned(processes.rank == 1), sg.VP())
    data = mixture(n=100, n_test=40)
    settings = dataclasses.replace(SETTINGS, checkpoint_every=5, strategy=strategy)
    trainer = Trainer(
        model, data, sg.DenoisingScoreMatching(), settings, checkpoints=checkpoints, processes=processes
    )  # fmt: skip
    trainer._update._on_device = on_device
    trainer.train()


def full_disk(processes: Processes, checkpoints: Path) -> tuple[str, str, int]:
    """Saving fails in process 0; all must end with its code."""
    from sde_gen.training import checkpoint

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    checkpoint.save_file = full  # type: ignore[assignment]
    build(processes, checkpoints, steps=20, checkpoint_every=5).train()
    raise RuntimeError("not reached")


def messages(processes: Processes) -> dict[str, Any]:
    """Every kind of message once."""

    def refuse() -> None:
        raise OutputError("no")

    seen: dict[str, Any] = {
        "sum": float(processes.sum(torch.tensor(1.0 + processes.rank))),
        "gather": processes.gather(torch.full((processes.rank, 2), processes.rank)).tolist(),
        "told": processes.on_main(lambda: {"rank": processes.rank, "text": "é"}),
        "rows": [processes.rows(10).start, processes.rows(10).stop],
        "blocks": list(processes.blocks(7)),
    }
    try:
        processes.on_main(refuse)
    except OutputError:
        seen["refused"] = "here"
    except Exception as error:  # noqa: BLE001
        seen["refused"] = (type(error).__name__, str(error), error.exit_code)  # type: ignore[attr-defined]
    pulse = Pulse(processes)
    said = [(processes.rank == 1 and k == 2, float(10 * k + processes.rank)) for k in range(5)]
    seen["pulse"] = [pulse.exchange(*words) for words in said]
    pulse.close()
    processes.wait()
    return seen


def shares(processes: Processes) -> dict[str, Any]:
    """Results of tasks done by all, and what each hears of a task of process 1 that fails."""

    def task(index: int) -> Any:
        return index, processes.rank, torch.arange(index)

    def fail(index: int) -> None:
        if index == 1:
            raise OutputError("no room")

    seen: dict[str, Any] = {"done": processes.share(5, task), "none": processes.share(0, task)}
    try:
        processes.share(5, fail)
    except Exception as error:  # noqa: BLE001
        seen["failed"] = (type(error).__name__, str(error), error.exit_code)  # type: ignore[attr-defined]
    processes.wait()
    return seen


def likelihoods(processes: Processes) -> dict[str, Any]:
    """Likelihoods of nine samples of which the network breaks down on some, and then of none that it can do."""

    def network(x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.where(x.abs().amax(1, keepdim=True) > 100, float("nan"), 0.1 * x)

    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    x[[1, 2, 3]] = 1e4  # the first part, of process 0, loses one of its two samples; the second, of process 1, both
    model, seen = sg.ScoreModel(network, sg.VP()), {}
    indices = torch.arange(20, 29)
    for kind, given in (("ode", {"divergence": "hutchinson", "probes": 2, "steps": 8}), ("vlb", {"terms": 4})):
        found = held_out_likelihood(
            kind, model, x, Affine(), indices=indices, chunk=2, seed=7, processes=processes, **given
        )  # type: ignore[arg-type] # fmt: skip
        seen[kind] = {**found.to_dict(), "seconds": 0.0, "each": found.log_prob.tolist()}
    try:
        held_out_likelihood("ode", model, x[[1, 2, 3]], Affine(), chunk=1, steps=8, processes=processes)
    except Exception as error:  # noqa: BLE001
        seen["failed"] = (type(error).__name__, str(error)[:50], error.exit_code)  # type: ignore[attr-defined]
    processes.wait()
    return seen


def train_on(processes: Processes, checkpoints: Path, steps: int, apart: bool = True) -> dict[str, Any]:
    """A run that saves after every step, and goes on from what it finds."""
    changes = {"steps": steps, "checkpoint_every": 1, "eval_every": 0, "keep_best": 0, "async_save": apart}
    return train(processes, checkpoints, changes)


def real_full_disk(processes: Processes, checkpoints: Path, apart: bool) -> dict[str, Any]:
    """The system itself refuses files of more than 1,500 bytes for a while."""
    import resource

    events: list[tuple[str, int, str]] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def listen(event: str, trainer: Trainer, values: Any) -> None:
        if event == "save failed":
            events.append((event, trainer.step, values["error"]))
            if len(events) == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        elif event == "checkpoint":
            events.append((event, trainer.step, ""))

    trainer = build(processes, checkpoints, steps=40, checkpoint_every=10, log_every=4, keep_best=0, eval_every=0,
                    async_save=apart)  # fmt: skip
    trainer.save()
    trainer.listeners = (listen,)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    trainer.train()
    return {"events": events}


def sample_job(processes: Processes, folder: Path, count: int) -> int:
    """Peak resident memory, in KiB, of `python -m sde_gen.sample` for `count` samples of 64 numbers."""
    import resource

    os.chdir(folder)
    from sde_gen.sample import main

    arguments = ["run=wide", "sampler=ddim", "sampler.steps=1", "metrics=false", f"num_samples={count}", "device=cpu"]
    code = main([*arguments, f"out=out{count}", "chunk=4096"])
    if code:
        raise RuntimeError(f"exit code {code}")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
