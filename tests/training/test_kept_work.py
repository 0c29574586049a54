"""Work that must not be lost: stopped, killed, cut off from its terminal, with files that others have spoilt."""

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_gen as sg
from sde_gen.data import mixture
from sde_gen.errors import CheckpointError, ConfigError, DataError, MissingInputError, WriteError
from sde_gen.files import held, make_folder, temporary_name, write_text
from sde_gen.training import (
    EMA,
    MetricsFile,
    Trainer,
    TrainerSettings,
    newest_checkpoint,
    read_checkpoint,
    read_metrics,
    stop_on_signals,
)

QUICK = TrainerSettings(
    steps=20, batch_size=16, warmup=5, schedule="constant", log_every=5, eval_every=8, checkpoint_every=6, ema=0.9
)


def _trainer(network: nn.Module | None = None, settings: TrainerSettings = QUICK, **arguments: Any) -> Trainer:
    torch.manual_seed(0)
    network = sg.MLP(2, hidden=8, layers=1) if network is None else network
    return Trainer(sg.ScoreModel(network, sg.VP()), mixture(n=100, n_test=40), settings=settings, **arguments)


def test_a_few_lines_train_a_tensor_and_go_on(tmp_path: Path) -> None:
    x = sg.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [torch.eye(2).tolist()] * 2).sample(2000, seed=0)
    torch.manual_seed(0)
    networks = [sg.MLP(2, hidden=16, layers=1) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    settings = TrainerSettings(steps=200, batch_size=64, learning_rate=3e-3, warmup=10, schedule="constant")
    trainer = Trainer(sg.ScoreModel(networks[0], sg.VP()), x, settings=settings, checkpoints=str(tmp_path))
    assert (trainer.resume(), len(trainer.data.test)) == (None, 200)
    before = trainer.evaluate()
    assert trainer.train()["held_out_loss"] < 0.8 * before
    longer = dataclasses.replace(settings, steps=210)
    again = Trainer(sg.ScoreModel(networks[1], sg.VP()), x, settings=longer, checkpoints=tmp_path)
    found = again.resume()
    assert found is not None
    assert (found.step, again.step) == (200, 200)
    assert again.train()["step"] == 210


@pytest.mark.parametrize("data", [None, [[1.0, 2.0]], torch.zeros(1, 2), torch.zeros(9)], ids=str)
def test_what_is_no_data_is_refused_in_one_sentence(data: Any) -> None:
    with pytest.raises(ConfigError, match=r"a Dataset .* or a tensor \(N, \*shape\)"):
        Trainer(sg.ScoreModel(sg.MLP(2), sg.VP()), data)


def _rows(path: Path) -> list[dict[str, float]]:
    timed = ("seconds", "steps_per_second")
    return [{name: value for name, value in row.items() if name not in timed} for row in read_metrics(path)]


def _run(folder: Path, stop: Callable[[], bool] = lambda: False) -> Trainer:
    trainer = _trainer(checkpoints=folder / "checkpoints", stop=stop)
    trainer.resume()
    metrics = MetricsFile(folder / "metrics.csv", trainer.step)
    trainer.listeners = (lambda event, _, values: metrics.add(values) and None if event == "log" else None,)
    trainer.train()
    return trainer


def test_rows_after_interruptions_are_those_of_one_piece(tmp_path: Path) -> None:
    whole, parts = make_folder(tmp_path / "whole"), make_folder(tmp_path / "parts")
    _run(whole)
    for last in range(1, 20):  # stopped after every single step
        asked = iter([False, True])
        assert _run(parts, lambda asked=asked: next(asked)).step == last
    assert not _run(parts).interrupted
    assert _rows(parts / "metrics.csv") == _rows(whole / "metrics.csv")
    assert [row["step"] for row in _rows(whole / "metrics.csv")] == [5, 6, 8, 10, 12, 15, 16, 18, 20]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_each_signal_that_ends_a_process_asks_and_is_given_back(name: str) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), number)
        assert stop.reason == name
    assert signal.getsignal(number) is before


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("event", ["log", "checkpoint", "preview", "save failed"])
def test_a_listener_that_cannot_write_does_not_end_training(tmp_path: Path, event: str) -> None:
    def gone(what: str, *_: object) -> None:
        if what == event:
            raise OSError(5, os.strerror(5))

    trainer = _trainer(settings=dataclasses.replace(QUICK, preview_every=3), checkpoints=tmp_path, listeners=[gone])
    trainer._tell("save failed", {})
    assert trainer.train()["step"] == 20
    assert newest_checkpoint(tmp_path)[0] is not None

    def full(what: str, *_: object) -> None:
        raise WriteError("meant to end the run")

    trainer.listeners = (full,)
    with pytest.raises(WriteError):
        trainer._tell(event, {})


LEFT = """
import os, sys
from pathlib import Path
from sde_gen.files import held, temporary_name
path = temporary_name(Path(sys.argv[1]) / "x.png")
with held(path, folder=sys.argv[2] == "True"):
    os._exit(9)
"""


@pytest.mark.parametrize("folder", [False, True])
def test_leftovers_of_the_killed_are_swept_and_nothing_else(tmp_path: Path, folder: bool) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(sg.__file__).parents[1])}
    command = [sys.executable, "-c", LEFT, str(tmp_path), str(folder)]
    assert subprocess.run(command, env=environment, check=False).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    others = {".tmp-of-an-editor", ".tmp-deadbeef", "tmp-deadbeef-x", ".probe-x"}
    for name in others:
        (tmp_path / name).write_text("")
    (tmp_path / ".tmp-deadbeef-cell.json").write_text("older versions held nothing")
    (tmp_path / ".probe-deadbeef").write_text("")
    writing = temporary_name(tmp_path / "x.png")
    with held(writing, folder):
        make_folder(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {*others, writing.name}


def _spoilt(kind: str, path: Path) -> None:
    content = path.read_bytes() if path.is_file() else b""
    if kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "device":
        path.unlink()
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes({
            "empty": b"", "semicolons": content.replace(b",", b";"), "binary": b"\0\xff" * 50,
            "cut": content[:9], "one line": b"x" * 200_000 + b"\n",
        }[kind])  # fmt: skip


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "empty", "semicolons", "binary", "cut", "one line"])
def test_metrics_that_cannot_be_read_are_set_aside(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "metrics.csv"
    MetricsFile(path).add({"step": 1, "loss": 0.5})
    _spoilt(kind, path)
    with pytest.raises((DataError, MissingInputError)):
        read_metrics(path)
    metrics = MetricsFile(path, step=1)
    assert metrics.set_aside is not None
    assert sorted(os.listdir(tmp_path)) == sorted([metrics.set_aside.name, "metrics.csv"])
    metrics.add({"step": 2, "loss": 0.25})
    assert read_metrics(path) == [{"step": 2, "loss": 0.25}]


@pytest.mark.parametrize("change", [lambda b: b"\xef\xbb\xbf" + b, lambda b: b.replace(b"\n", b"\r\n")])
def test_metrics_that_an_editor_saved_again_are_read(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "metrics.csv"
    MetricsFile(path).add({"step": 1, "loss": 0.5})
    path.write_bytes(change(path.read_bytes()))
    metrics = MetricsFile(path, step=1)
    assert metrics.set_aside is None
    metrics.add({"step": 2, "loss": 0.25})
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def test_a_stray_quotation_mark_costs_one_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    metrics = MetricsFile(path)
    for step in range(1, 6):
        metrics.add({"step": step, "loss": 0.5})
    write_text(path, path.read_text().replace("\n2,0.5", '\n2,"0.5'))
    assert [row["step"] for row in read_metrics(path)] == [1, 3, 4, 5]


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "empty"])
@pytest.mark.parametrize("name", ["manifest.json", "state.json", "config.json", "model.safetensors"])
def test_a_checkpoint_with_a_file_that_is_none_is_refused_and_not_waited_for(
    tmp_path: Path, name: str, kind: str
) -> None:
    _trainer(settings=dataclasses.replace(QUICK, steps=1), checkpoints=tmp_path).train()
    path = tmp_path / "step_00000001"
    _spoilt(kind, path / name)
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


class Kinds(nn.Module):
    """Parameters that are used, unused, complex, tied; buffers; a part that is frozen on purpose."""

    def __init__(self, spare: bool = True, turned: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(2).eval()
        if spare:
            self.spare = nn.Linear(3, 3)
        if turned:
            self.turned = nn.Parameter(torch.tensor([1.0 + 0.5j, 1.0 - 0.5j]))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        y = self.second(torch.tanh(self.first(self.norm(x))))
        return torch.view_as_real(torch.view_as_complex(y) * self.turned.sum()) if hasattr(self, "turned") else y


@pytest.mark.parametrize("turned", [False, True])
def test_every_kind_of_parameter_is_resumed_bit_for_bit(tmp_path: Path, turned: bool) -> None:
    _trainer(Kinds(turned=turned), dataclasses.replace(QUICK, steps=11), checkpoints=tmp_path / "parts").train()
    ends = []
    for name in ("parts", "whole"):
        trainer = _trainer(Kinds(turned=turned), checkpoints=tmp_path / name)
        trainer.resume()
        trainer.train()
        found, _ = newest_checkpoint(tmp_path / name)
        assert found is not None
        ends.append(
            {f"{part}.{k}": t for part in ("model", "ema", "optimizer") for k, t in found.tensors(part).items()}
        )
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    assert not any("spare" in name for name in ends[0] if name.startswith("optimizer"))


def test_tied_weights_are_averaged_under_each_of_their_names() -> None:
    network = Kinds()
    ema = EMA(network, decay=0.5, warmup=False)
    with torch.no_grad():
        network.first.weight += 1
    ema.update()
    state, copy = ema.state_dict(), Kinds()
    copy.load_state_dict(state)
    with ema.applied():
        assert torch.equal(copy.second.weight, network.second.weight)
    assert not torch.equal(copy.second.weight, network.second.weight)


def test_each_part_of_a_network_keeps_its_mode() -> None:
    network = Kinds()
    modes = [module.training for module in network.modules()]
    trainer = _trainer(network)
    trainer.evaluate()
    assert [module.training for module in network.modules()] == modes
    trainer.train()
    assert [module.training for module in network.modules()] == modes
    assert int(network.norm.num_batches_tracked) == 0, "frozen on purpose"
    network.eval()
    _trainer(network).train()
    assert not any(module.training for module in network.modules())


class Extra(Kinds):
    """Keeps something besides parameters and buffers."""

    def __init__(self, extra: object) -> None:
        super().__init__()
        self.extra = extra

    def get_extra_state(self) -> object:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


def test_extra_state_is_kept_where_it_is_a_tensor_and_refused_where_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="_extra_state is a dict"):
        _trainer(Extra({"seen": 3}))
    _trainer(Extra(torch.tensor([7.0])), dataclasses.replace(QUICK, steps=2), checkpoints=tmp_path).train()
    trainer = _trainer(Extra(torch.tensor([0.0])), checkpoints=tmp_path)
    trainer.resume()
    assert torch.equal(trainer.network.extra, torch.tensor([7.0]))  # type: ignore[arg-type]


def test_a_lazy_network_is_refused_before_any_work() -> None:
    with pytest.raises(ConfigError, match=r"0\.weight has no shape yet"):
        _trainer(nn.Sequential(nn.LazyLinear(2)))
