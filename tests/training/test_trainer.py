"""The training loop: exact resumption, faults, precision, what it measures."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sde_gen as sg
from sde_gen.data import Affine, Dataset, mixture
from sde_gen.errors import CheckpointError, ConfigError, UncompiledWarning
from sde_gen.training import (
    Checkpoint,
    Trainer,
    TrainerSettings,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
    sharding,
)

QUICK = TrainerSettings(
    steps=20, batch_size=16, warmup=5, schedule="constant", log_every=4, eval_every=0, checkpoint_every=10, ema=0.9
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _data() -> Dataset:
    return mixture(n=100, n_test=40)


def _trainer(settings: TrainerSettings = QUICK, dropout: float = 0.0, **arguments: Any) -> Trainer:
    torch.manual_seed(0)
    data = arguments.pop("data", None) or _data()
    classes = data.num_classes if arguments.get("conditional") else 0
    network = arguments.pop("network", None) or sg.MLP(2, hidden=16, layers=1, dropout=dropout, num_classes=classes)
    objective = arguments.pop("objective", sg.DenoisingScoreMatching())
    model = sg.ScoreModel(network, arguments.pop("perturbation", sg.VP()))
    return Trainer(model, data, objective, settings, **arguments)


def _assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("conditional", [False, True])
def test_ten_steps_and_ten_more_are_twenty_bit_for_bit(tmp_path: Path, dropout: float, conditional: bool) -> None:
    extra: dict[str, Any] = {"conditional": conditional}
    if conditional:
        extra["objective"] = sg.DenoisingScoreMatching(label_dropout=0.5, num_classes=_data().num_classes)
    whole = _trainer(dropout=dropout, checkpoints=tmp_path / "whole", seed=3, **extra)
    whole.train()

    first = _trainer(dataclasses.replace(QUICK, steps=10), dropout, checkpoints=tmp_path / "parts", seed=3, **extra)
    first.train()
    torch.manual_seed(99)  # global state must not matter
    second = _trainer(dropout=dropout, checkpoints=tmp_path / "parts", seed=3, **extra)
    found, _ = newest_checkpoint(tmp_path / "parts")
    assert found is not None
    second.resume(found)
    assert second.step == 10
    second.train()

    _assert_equal(whole.network.state_dict(), second.network.state_dict())
    _assert_equal(whole.ema.state_dict(), second.ema.state_dict())
    for name in ("model", "ema", "optimizer"):
        ends = [newest_checkpoint(tmp_path / part)[0] for part in ("whole", "parts")]
        assert all(end is not None and end.step == 20 for end in ends)
        _assert_equal(ends[0].tensors(name), ends[1].tensors(name))  # type: ignore[union-attr]


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_are_resumed_bit_for_bit_in_either_layout(tmp_path: Path, channels_last: bool) -> None:
    images = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    data = Dataset("noise", "image", images[:30], images[30:], Affine())
    settings = dataclasses.replace(QUICK, steps=6, batch_size=4, channels_last=channels_last)

    def trainer(steps: int) -> Trainer:
        torch.manual_seed(0)
        network = sg.UNet(3, width=8, multipliers=[1, 2], blocks=1, attention=[-1])
        return _trainer(dataclasses.replace(settings, steps=steps), data=data, network=network, checkpoints=tmp_path)

    trainer(3).train()
    found, _ = newest_checkpoint(tmp_path)
    assert found is not None
    parts = trainer(6)
    parts.resume(found)
    parts.train()
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(f".{path.name}"))
    whole = trainer(6)
    whole.train()
    _assert_equal(whole.network.state_dict(), parts.network.state_dict())
    _assert_equal(whole.ema.state_dict(), parts.ema.state_dict())


def test_the_seed_decides_everything_and_nothing_else_does() -> None:
    states = []
    for seed, junk in ((1, 0), (1, 7), (2, 0), (1 + 2**32, 0)):
        trainer = _trainer(seed=seed)
        torch.manual_seed(junk)
        trainer.train()
        states.append(trainer.network.state_dict())
    _assert_equal(states[0], states[1])
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])
    assert not torch.equal(states[0]["head.weight"], states[3]["head.weight"]), "the upper 32 bits count"


def test_it_leaves_torchs_global_generator_alone() -> None:
    trainer = _trainer(dropout=0.5)
    before = torch.get_rng_state()
    trainer.train()
    assert torch.equal(before, torch.get_rng_state())


def test_it_learns() -> None:
    settings = TrainerSettings(steps=300, batch_size=128, learning_rate=3e-3, warmup=20, log_every=50, eval_every=0)
    trainer = _trainer(settings, network=sg.MLP(2, hidden=32, layers=2))
    rows: list[dict[str, float]] = []
    trainer.listeners = (lambda event, _, values: rows.append(dict(values)) if event == "log" else None,)
    before = trainer.evaluate()
    last = trainer.train()
    assert before == pytest.approx(1.0, abs=0.2), "a new network predicts no noise"
    assert last["held_out_loss"] < 0.6 * before
    assert [row["step"] for row in rows] == [50, 100, 150, 200, 250, 300]
    assert set(rows[-1]) == {
        "step",
        "seconds",
        "learning_rate",
        "loss",
        "grad_norm",
        "steps_per_second",
        "held_out_loss",
        "skipped",
    }
    assert trainer.evaluate() == last["held_out_loss"], "evaluated at the same times and noise always"


def test_checkpoints_events_and_last_step(tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, eval_every=8, preview_every=6, keep_last=0, checkpoint_every=7)
    events: list[tuple[str, int]] = []

    def listen(event: str, t: Trainer, values: Any) -> None:  # of a checkpoint it may hear some steps later
        events.append((event, int(values["path"].name[5:]) if event == "checkpoint" else t.step))

    trainer = _trainer(settings, checkpoints=tmp_path, listeners=[listen])
    trainer.train()
    assert [s for e, s in events if e == "checkpoint"] == [7, 14, 20]
    assert [s for e, s in events if e == "preview"] == [6, 12, 18]
    assert [s for e, s in events if e == "log"] == [4, 7, 8, 12, 14, 16, 20]
    assert trainer.train()["step"] == 20, "a run that is at its end does nothing"
    assert [s for e, s in events if e == "checkpoint"] == [7, 14, 20]


def test_it_stops_when_asked_and_saves(tmp_path: Path) -> None:
    asked = iter([False] * 6 + [True] * 100)
    trainer = _trainer(checkpoints=tmp_path, stop=lambda: next(asked))
    trainer.train()
    assert trainer.step == 6
    found, _ = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 6


def test_the_time_budget_ends_training_and_counts_resumed_parts(tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, steps=10**6, max_seconds=0.3, schedule="cosine", checkpoint_every=0)
    trainer = _trainer(settings, checkpoints=tmp_path)
    trainer.train()
    assert 0 < trainer.step < 10**6
    assert trainer.seconds >= 0.3
    again = _trainer(settings, checkpoints=tmp_path)
    found, _ = newest_checkpoint(tmp_path)
    assert found is not None
    again.resume(found)
    again.train()
    assert again.step == found.step


def test_learning_rate() -> None:
    s = TrainerSettings(steps=100, learning_rate=1.0, warmup=10, schedule="constant", max_seconds=50.0)
    assert [s.rate(k) for k in (0, 4, 9, 10, 99)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])
    cosine = dataclasses.replace(s, schedule="cosine", warmup=0)
    assert cosine.rate(50) == pytest.approx(0.5)
    assert cosine.rate(0, seconds=25.0) == pytest.approx(0.5), "the budget is half spent"
    assert cosine.rate(200, seconds=10.0) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("clip", [None, 1.5])
def test_an_update_is_adam_of_the_clipped_gradient(clip: float | None, on_device: bool) -> None:
    trainer = _trainer(dataclasses.replace(QUICK, clip=clip, steps=6, warmup=3))
    if on_device:  # as on a GPU: the optimiser itself divides the gradient
        trainer._update._on_device, trainer._update.checked_here = True, False
    reference = _trainer()
    parameters = list(reference.network.parameters())
    adam = torch.optim.Adam(parameters, fused=False, foreach=False)
    norms: list[float] = []
    for k in range(6):
        (part,) = reference.batches.parts(k)
        reference.objective(reference.model, part.x0, t=part.t, noise=part.noise).mean().backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, clip or 1e9, foreach=False)))
        adam.param_groups[0]["lr"] = 1e-3 * min(1.0, (k + 1) / 3)
        adam.step()
        adam.zero_grad()
    assert min(norms) < 1.5 < max(norms), "some are clipped, some are not"
    trainer.train()
    torch.testing.assert_close(trainer.network.state_dict(), reference.network.state_dict(), rtol=1e-5, atol=1e-7)
    for mine, p in zip(trainer.network.parameters(), parameters, strict=True):
        for moment in ("exp_avg", "exp_avg_sq"):  # Adam's step hardly knows how long a gradient is, its moments do
            torch.testing.assert_close(
                trainer.optimizer.state[mine][moment], adam.state[p][moment], rtol=1e-4, atol=1e-9
            )
    assert trainer.last["grad_norm"] == pytest.approx(sum(norms[4:]) / 2, rel=1e-5), "the norm before clipping"


def test_bf16_and_channels_last_train() -> None:
    images = torch.rand(40, 1, 8, 8) * 2 - 1
    data = Dataset("noise", "image", images[:30], images[30:], Affine())
    settings = dataclasses.replace(QUICK, steps=2, precision="bf16", channels_last=True, batch_size=4, log_every=1)
    network = sg.UNet(1, width=8, multipliers=[1], blocks=1, attention=[])
    seen = []
    network.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    trainer = _trainer(settings, data=data, network=network)
    assert torch.isfinite(torch.tensor(trainer.train()["loss"]))
    assert all(seen)
    assert all(p.dtype == torch.float32 for p in network.parameters())
    assert network.stem.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("perturbation", [sg.DDPM(steps=50), sg.NCSN(levels=10), sg.FlowMatching(), sg.EDM()], ids=str)
def test_every_kind_of_process_trains(perturbation: sg.Perturbation) -> None:
    assert _trainer(dataclasses.replace(QUICK, steps=3), perturbation=perturbation).train()["step"] == 3


def test_a_checkpoint_that_does_not_belong_is_refused(tmp_path: Path) -> None:
    _trainer(dataclasses.replace(QUICK, steps=2), checkpoints=tmp_path).train()
    found, _ = newest_checkpoint(tmp_path)
    assert found is not None
    with pytest.raises(CheckpointError, match="other data"):
        _trainer(data=mixture(n=100, n_test=40, seed=1)).resume(found)
    with pytest.raises(CheckpointError, match="seed=0, not 1"):
        _trainer(seed=1).resume(found)
    with pytest.raises(CheckpointError, match="do not fit"):
        _trainer(network=sg.MLP(2, hidden=32)).resume(found)


def _state(trainer: Trainer) -> dict[str, Any]:
    moments = {f"{k}.{i}": v for i, s in enumerate(trainer.optimizer.state.values()) for k, v in s.items()}
    counts = torch.tensor([trainer.step, trainer.ema.updates, trainer.faults.total, trainer.faults.in_a_row])
    tensors = {**{f"w.{k}": v for k, v in trainer.network.state_dict().items()}, **moments, "counts": counts}
    tensors |= {f"e.{k}": v for k, v in trainer.ema.state_dict().items()}
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("good")
    _trainer(dataclasses.replace(QUICK, steps=3), checkpoints=folder).train()
    return read_checkpoint(folder / "step_00000003")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("model", {"head.bias": None}),
        ("ema", {"head.bias": None}),
        ("ema", {"head.bias": torch.zeros(3)}),
        ("optimizer", {"exp_avg.head.bias": None}),
        ("optimizer", {"exp_avg.head.bias": None, "exp_avg_sq.head.bias": None, "step.head.bias": None}),
        ("optimizer", {"exp_avg_sq.head.bias": torch.zeros(1)}),
        ("optimizer", {"exp_avg_sq.head.bias": torch.zeros(2, dtype=torch.int8)}),
        ("optimizer", {"step.head.bias": torch.zeros(2)}),
        ("optimizer", {"momentum.head.bias": torch.zeros(2)}),
        ("state", {"skipped": [1]}),
        ("state", {"skipped": [0, -1]}),
        ("state", {"ema_updates": -1}),
        ("state", {"ema_updates": float("inf")}),
        ("state", {"seconds": float("nan")}),
    ],
    ids=str,
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(
    good: Checkpoint, tmp_path: Path, part: str, change: dict[str, Any]
) -> None:
    parts: dict[str, Any] = {name: good.tensors(name) for name in ("model", "ema", "optimizer")}
    parts["state"] = good.state
    parts[part] = {name: value for name, value in {**parts[part], **change}.items() if value is not None}
    state = parts.pop("state")
    bad = read_checkpoint(save_checkpoint(tmp_path, 3, parts, good.config, state))
    trainer = _trainer()
    trainer.train()
    before = _state(trainer)
    with pytest.raises(CheckpointError, match=r"(head\.bias|state\.json)"):
        trainer.resume(bad)
    _assert_equal(_state(trainer), before)


def test_what_cannot_be_trained_is_refused() -> None:
    data = _data()
    with pytest.raises(ConfigError, match="no parameters"):
        Trainer(sg.ScoreModel(lambda x, c: x, sg.VP()), data, sg.DenoisingScoreMatching())
    unlabelled = Dataset("d", "vector", data.train, data.test, Affine())
    with pytest.raises(ConfigError, match="no labels"):
        _trainer(data=unlabelled, network=sg.MLP(2, hidden=16), conditional=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("warmup", -1),
        ("clip", -1.0),
        ("clip", float("nan")),
        ("max_seconds", 0.0),
        ("ema", 1.0),
        ("schedule", "linear"),
        ("precision", "fp8"),
        ("checkpoint_every", -1),
        ("log_every", 0),
        ("accumulate", 0),
        ("accumulate", 129),
        ("keep_best", -1),
        ("strategy", "zero"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"trainer: {name} must be "):
        TrainerSettings(**{name: value})


def test_without_a_compiler_it_says_so_and_trains_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _trainer(dataclasses.replace(QUICK, steps=3))
    plain.train()

    def fails(*_args: object, **_options: object) -> None:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found.\n\nSet TORCHDYNAMO_VERBOSE=1 for more")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.warns(UncompiledWarning, match=r"cannot compile here \(InvalidCxxCompiler: No working C\+\+ compiler"):
        asked = _trainer(dataclasses.replace(QUICK, steps=3, compile=True))
    asked.train()
    _assert_equal(asked.network.state_dict(), plain.network.state_dict())


def test_compiled_it_trains_saves_and_goes_on_as_uncompiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph of the network is taken whole, and run by torch itself: the same bits, and a checkpoint for both."""
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(sharding, "_compiler_works", lambda device: True)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m: compile_module(m, fullgraph=True, backend=backend))
    torch._dynamo.reset()
    whole = _trainer(checkpoints=tmp_path / "whole")
    whole.train()
    first = _trainer(dataclasses.replace(QUICK, steps=10, compile=True), checkpoints=tmp_path / "parts")
    first.train()
    assert graphs
    assert all(not name.startswith("_orig_mod") for name in first.network.state_dict())
    second = _trainer(dataclasses.replace(QUICK, compile=True), checkpoints=tmp_path / "parts")
    assert second.resume() is not None
    second.train()
    torch._dynamo.reset()
    _assert_equal(second.network.state_dict(), whole.network.state_dict())
    third = _trainer(checkpoints=tmp_path / "parts")
    assert third.resume() is not None
    _assert_equal(third.network.state_dict(), whole.network.state_dict())
