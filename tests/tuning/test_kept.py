"""What is kept, in memory and on disk: another key for another argument, and no file believed that was changed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_gen as sg
from sde_gen.conditions import Whole
from sde_gen.tuning import auto as auto_module
from sde_gen.tuning import grid as grid_module

SHAPE = (2,)


class Net(nn.Module):
    """Smooth, with a parameter, a buffer that is not saved, a setting and a counter of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.register_buffer("table", torch.tensor([1.0, 2.0], dtype=torch.float64), persistent=False)
        self.dropout = nn.Dropout(0.5)
        self.scale, self.calls = 2.0, 0

    def forward(self, x: Tensor, c: Tensor, label: Any = None, text: str = "", table: Any = None) -> Tensor:
        self.calls += 1
        shift = self.shift * (1 if label is None else label.to(x.dtype)[:, None]) + len(text)
        shift = shift + (0 if table is None else table.sum())
        return torch.tanh(self.scale * x + self.table[0] + shift) * torch.sigmoid(c.to(x.dtype))[:, None]


class Mirrored(Net):
    def forward(self, x: Tensor, c: Tensor, label: Any = None, text: str = "", table: Any = None) -> Tensor:
        return -super().forward(x, c, label, text, table)


def scaled(factor: float) -> Callable[..., Tensor]:
    return lambda x, c, **condition: factor * x


def law(mean: float = 1.0) -> sg.GaussianMixture:
    return sg.GaussianMixture([0.5, 0.5], [[0.0, 0.0], [mean, 1.0]], [torch.eye(2).tolist()] * 2)


def changed(change: Callable[[Any], None]) -> sg.ScoreModel:
    model = sg.ScoreModel(Net(), sg.VP())
    with torch.no_grad():
        change(model)
    return model


POINTS = torch.arange(6.0).reshape(3, 2)
#: Models that are all different.
MODELS: dict[str, Callable[[], sg.ScoreModel]] = {
    "one": lambda: sg.ScoreModel(Net(), sg.VP()),
    "perturbation": lambda: sg.ScoreModel(Net(), sg.VP(beta_max=19.0)),
    "parameterization": lambda: sg.ScoreModel(Net(), sg.VP(), sg.DataPrediction()),
    "a field of it": lambda: sg.ScoreModel(Net(), sg.VP(), sg.EDMPreconditioning(sigma_data=0.4)),
    "another value of it": lambda: sg.ScoreModel(Net(), sg.VP(), sg.EDMPreconditioning(sigma_data=0.3)),
    "trained under": lambda: sg.ScoreModel(Net(), sg.Cosine()).under(sg.VP()),
    "code": lambda: sg.ScoreModel(Mirrored(), sg.VP()),
    "weight": lambda: changed(lambda model: model.network.shift.add_(1e-15)),
    "dtype": lambda: changed(lambda model: model.network.float()),
    "buffer": lambda: changed(lambda model: model.network.table.add_(1)),
    "attribute": lambda: changed(lambda model: setattr(model.network, "scale", 1.0)),
    "attribute within": lambda: changed(lambda model: setattr(model.network.dropout, "p", 0.1)),
    "function": lambda: sg.ScoreModel(scaled(1.0), sg.VP()),
    "another function": lambda: sg.ScoreModel(scaled(2.0), sg.VP()),
    "law": lambda: law().model(sg.VP()),
    "its numbers": lambda: law(2.0).model(sg.VP()),
    "its process": lambda: law().model(sg.VE()),
    "data": lambda: sg.EmpiricalData(POINTS).model(sg.VP()),
    "its points": lambda: sg.EmpiricalData(POINTS + 1).model(sg.VP()),
}
LABEL = torch.tensor([0, 1, 2])
#: Conditions that are all different.
CONDITIONS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "label": {"label": LABEL},
    "its values": {"label": LABEL + 1},
    "its dtype": {"label": LABEL.to(torch.int32)},
    "its number": {"label": LABEL[:2]},
    "shared": {"label": Whole(LABEL)},
    "another name": {"table": Whole(LABEL)},
    "text": {"text": "a"},
    "another text": {"text": "b"},
    "more": {"text": "a", "table": Whole(LABEL)},
    "a number": {"table": 1},
    "another number": {"table": 1.5},
    "nested": {"table": {"a": 1}},
    "nested otherwise": {"table": {"a": {"b": 1}}},
    "a name with a dot": {"table": {"a.b": 1}},
}
AUTO = sg.Auto(nfe=4, count=8, effort=0.05)
AUTOS = [
    AUTO,
    replace(AUTO, nfe=5),
    replace(AUTO, nfe=None, tolerance=0.1),
    replace(AUTO, nfe=None, tolerance=0.2),
    replace(AUTO, count=9),
    replace(AUTO, count=None),
    replace(AUTO, effort=0.06),
    replace(AUTO, seed=1),
]
FIT: dict[str, Any] = {"steps": 4, "sampler": sg.UniPC(), "shape": SHAPE, "count": 8, "tries": 3, "seed": 0}
FITS = [
    FIT,
    {**FIT, "steps": 5},
    {**FIT, "sampler": None},
    {**FIT, "sampler": sg.UniPC(order=2)},
    {**FIT, "sampler": sg.UniPC(denoise=False)},
    {**FIT, "shape": (2, 1)},
    {**FIT, "count": 9},
    {**FIT, "count": None},
    {**FIT, "tries": 4},
    {**FIT, "seed": 1},
]


@contextmanager
def nothing_measured(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only the keys are of interest."""
    choice = sg.Choice(sg.UniPC(grid=sg.GivenLambdas((-1.0, 1.0))), 2, 0.1, 1, 0.1, (("a", 0.1),))
    with patch.context() as m:
        m.setattr(sg.Auto, "_measure", lambda *given: choice)
        m.setattr(grid_module, "calibrate", lambda *given: None)
        m.setattr(grid_module, "fit_levels", lambda *given: (sg.GivenLambdas((-1.0, 1.0)), 0.1))
        yield


def names(folder: Path) -> dict[str, list[str]]:
    """The file that each way of asking writes; in a fresh folder each, so that none is left out."""
    found: dict[str, list[str]] = {}

    def ask(name: str, call: Callable[[str], Any]) -> None:
        place = folder / str(len(found))
        call(str(place))
        found[name] = [path.name for path in place.iterdir()]

    def one() -> sg.ScoreModel:
        return MODELS["one"]()

    for name, make in MODELS.items():
        ask(f"Auto, model: {name}", lambda place, make=make: replace(AUTO, folder=place).choose(make(), SHAPE))
        ask(f"fit_grid, model: {name}", lambda place, make=make: sg.fit_grid(make(), **FIT, folder=place))
    for name, given in CONDITIONS.items():
        ask(f"Auto, {name}", lambda place, c=given: replace(AUTO, folder=place).choose(one(), SHAPE, c))
        ask(f"fit_grid, {name}", lambda place, c=given: sg.fit_grid(one(), **FIT, condition=c, folder=place))
    for i, auto in enumerate(AUTOS):
        ask(f"Auto {i}", lambda place, auto=auto: replace(auto, folder=place).choose(one(), SHAPE))
    ask("Auto, shape", lambda place: replace(AUTO, folder=place).choose(one(), (3,)))
    for i, fit in enumerate(FITS):
        ask(f"fit_grid {i}", lambda place, fit=fit: sg.fit_grid(one(), **fit, folder=place))
    return found


def test_every_argument_asks_for_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with nothing_measured(monkeypatch):
        found = names(tmp_path)
        monkeypatch.setattr(torch, "__version__", "0")
        other = names(tmp_path / "torch")
        monkeypatch.setattr(sg, "__version__", "0")
        third = names(tmp_path / "package")
    assert all(len(files) == 1 for files in found.values())
    where: dict[str, list[str]] = {}
    for name, (file,) in found.items():
        where.setdefault(file, []).append(name)
    # The same question, asked in three ways, and nothing else.
    same = {("Auto, model: one", "Auto, none", "Auto 0"), ("fit_grid, model: one", "fit_grid, none", "fit_grid 0")}
    assert {tuple(shared) for shared in where.values() if len(shared) > 1} == same
    assert not {f for files in (*other.values(),) for f in files} & {f for files in found.values() for f in files}
    assert not {f for files in (*third.values(),) for f in files} & {f for files in other.values() for f in files}


def test_files_are_the_same_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with nothing_measured(monkeypatch):
        mine = names(tmp_path / "mine")
    code = (
        "import json, pathlib, sys, pytest, test_kept as t\n"
        "with t.nothing_measured(pytest.MonkeyPatch()): print(json.dumps(t.names(pathlib.Path(sys.argv[1]))))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    theirs = subprocess.run([sys.executable, "-c", code, str(tmp_path / "theirs")],
                            env=env, capture_output=True, text=True, check=True)  # fmt: skip
    assert json.loads(theirs.stdout) == mine


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One item for each measurement; the real ones are made."""
    made: list[Any] = []
    choose, place = sg.Auto._measure, grid_module.fit_levels

    def measure(self: sg.Auto, *given: Any) -> Any:
        made.append(self)
        return choose(self, *given)

    def fit_levels(*given: Any) -> Any:
        made.append(given)
        return place(*given)

    monkeypatch.setattr(sg.Auto, "_measure", measure)
    monkeypatch.setattr(grid_module, "fit_levels", fit_levels)
    return made


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network.shift.add_(1e-15),
        lambda network: network.table.mul_(2),
        lambda network: network.load_state_dict({"shift": torch.tensor(0.5)}),
        lambda network: setattr(network, "scale", 1.0),
        lambda network: setattr(network.dropout, "p", 0.1),
        lambda network: setattr(network, "shift", nn.Parameter(torch.tensor(0.3, dtype=torch.float64))),
        lambda network: setattr(network, "table", torch.tensor([1.0, 2.0], dtype=torch.float64)),
        lambda network: network.register_forward_hook(lambda *given: None),
    ],
)
def test_a_choice_in_memory_is_of_the_model_as_it_is(change: Callable[[Any], Any], measured: list[Any]) -> None:
    model = MODELS["one"]()
    AUTO(model, (3, 2))
    AUTO(model, (5, 2), seed=1)
    model.train(not model.training)
    first = AUTO.choose(model, SHAPE)
    assert len(measured) == 1  # neither what is drawn, nor the mode, nor a counter of calls is of the model
    with torch.no_grad():
        change(model.network)
    assert AUTO.choose(model, SHAPE) is not first
    AUTO(model, (3, 2))
    assert len(measured) == 2


@pytest.mark.parametrize("name", ["perturbation", "parameterization", "trained_under", "network"])
def test_fields_of_the_model_count_in_memory(name: str, measured: list[Any]) -> None:
    model: Any = MODELS["function"]()
    AUTO(model, (3, 2))
    other = {"perturbation": sg.SubVP(), "parameterization": sg.DataPrediction(), "trained_under": sg.Cosine()}
    setattr(model, name, other.get(name, scaled(0.5)))
    AUTO(model, (3, 2))
    AUTO(model, (3, 2))
    assert len(measured) == 2


def test_conditions_count_in_memory(measured: list[Any]) -> None:
    model = MODELS["one"]()
    takes = {name: given for name, given in CONDITIONS.items() if name not in ("shared", "a number", "another number")
             and not name.startswith("nested") and "dot" not in name}  # fmt: skip
    choices = [AUTO.choose(model, SHAPE, given) for given in takes.values()]
    assert len(measured) == len(choices)
    drawn = AUTO(model, (4, 2), condition={"text": "b"}, dtype=torch.float64)
    chosen = choices[list(takes).index("another text")].sampler
    assert torch.equal(drawn.x, chosen(model, (4, 2), condition={"text": "b"}, dtype=torch.float64).x)
    again = AUTO.choose(model, SHAPE, {"label": LABEL})  # other rows were chosen with last
    assert AUTO.choose(model, SHAPE, {"label": LABEL}) is again
    before = len(measured)
    AUTO(model, (2, 2), condition={"label": torch.tensor([2, 2])})  # the rows of what is drawn do not choose
    assert len(measured) == before


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_what_all_samples_share_is_never_cut(length: int) -> None:
    """Whatever its length: that of the calibration batch, or of the part of it that is chosen on."""
    seen: set[tuple[int, bool]] = set()

    class Takes(nn.Module):
        def forward(self, x: Tensor, c: Tensor, label: Tensor, table: Tensor) -> Tensor:
            seen.add((len(table), len(label) == len(x)))
            return torch.tanh(x + table.sum() + label[:, None])

    condition = {"label": LABEL, "table": Whole(torch.arange(float(length)))}
    AUTO.choose(sg.ScoreModel(Takes(), sg.VP()), SHAPE, condition)
    sg.fit_grid(sg.ScoreModel(Takes(), sg.VP()), **FIT, condition=condition)
    assert seen == {(length, True)}


def test_a_condition_without_content_does_not_hinder_a_choice(measured: list[Any], tmp_path: Path) -> None:
    class Held:
        def __init__(self) -> None:
            self.lock = Lock()

        def sum(self) -> float:
            return 0.0

    held, model = Held(), MODELS["one"]()
    AUTO(model, (2, 2), condition={"table": held})
    AUTO(model, (2, 2), condition={"table": held})
    assert len(measured) == 1
    for call in (
        lambda: replace(AUTO, folder=str(tmp_path)).choose(model, SHAPE, {"table": held}),
        lambda: sg.fit_grid(model, **FIT, condition={"table": held}, folder=tmp_path),
        lambda: sg.fit_grid(changed(lambda m: setattr(m.network, "lock", Lock())), **FIT, folder=tmp_path),
    ):
        with pytest.raises(sg.ConfigError, match=r"cannot be kept, leave folder out; .* has no content"):
            call()
    assert len(measured) == 1
    assert list(tmp_path.iterdir()) == []


def damaged(text: str) -> Iterator[str]:
    """The file cut short, emptied, not UTF-8's JSON, of another kind, and with every number changed in turn."""
    yield from ("", text[: len(text) // 2], "[1]", "null", "{}", text + "x")
    whole = json.loads(text)

    def changed_numbers(value: Any) -> Iterator[Any]:
        items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
        for key, inner in items:
            if isinstance(inner, int | float):
                value[key] = inner + 1e-9 if isinstance(inner, float) else inner + 1
                yield
                value[key] = inner
            elif isinstance(inner, dict | list):
                yield from changed_numbers(inner)

    for _ in changed_numbers(whole):
        yield json.dumps(whole)


def test_a_changed_file_is_not_believed(tmp_path: Path, measured: list[Any]) -> None:
    ask: dict[str, Callable[[], Any]] = {
        "grid": lambda: sg.fit_grid(law().model(sg.VP()), **FIT, folder=tmp_path),
        "auto": lambda: (
            replace(AUTO, nfe=2, effort=0.0, folder=str(tmp_path)).choose(law().model(sg.VP()), SHAPE).sampler
        ),
    }
    for name, call in ask.items():
        right, count = call(), len(measured)
        (path,) = tmp_path.glob(f"{name}-*.json")
        text = path.read_text()
        assert call() == right
        assert len(measured) == count  # it is read
        texts = list(damaged(text))
        for wrong in [*texts[:6], *texts[6::4], texts[-1]]:
            path.write_text(wrong)
            assert call() == right
            count += 1
            assert len(measured) == count
        path.write_bytes(b"\xff\xfe")
        assert call() == right


def test_a_file_about_something_else_is_not_believed(tmp_path: Path, measured: list[Any]) -> None:
    found = [sg.fit_grid(law(mean).model(sg.VP()), **FIT, folder=tmp_path / str(mean)) for mean in (1.0, 3.0)]
    (one,), (other,) = (list((tmp_path / str(mean)).iterdir()) for mean in (1.0, 3.0))
    other.write_text(one.read_text())
    assert sg.fit_grid(law(3.0).model(sg.VP()), **FIT, folder=tmp_path / "3.0") == found[1] != found[0]
    assert len(measured) == 3


def test_writers_at_the_same_time(tmp_path: Path) -> None:
    """Each reads a whole file or measures, and no part of one is left."""
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(sg.fit_grid, law().model(sg.VP()), **FIT, folder=tmp_path) for _ in range(8)]
    assert len({answer.result() for answer in asked}) == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(sg.OutputError, match="file"):
        sg.fit_grid(law().model(sg.VP()), **FIT, folder=tmp_path / "file" / "folder")


def test_fitting_leaves_a_network_as_it_was() -> None:
    """Frozen parameters stay frozen, none gets a gradient, and two at the same time do not disturb each other."""
    torch.manual_seed(0)
    network: Any = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2)).double()
    network[0].requires_grad_(False)
    model = sg.ScoreModel(lambda x, c: network(x), sg.VP(), sg.DataPrediction())
    whole: Any = nn.Module()
    whole.inner, whole.forward = network, lambda x, c: network(x)
    asked = [sg.ScoreModel(whole, sg.VP(), sg.DataPrediction()), model]
    autos = [replace(AUTO, effort=0.2, seed=seed) for seed in range(4)]
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in network.named_parameters()}
    alone = [auto._measure(asked[0].eval(), SHAPE, auto_module.Condition({}), {}).sampler for auto in autos]
    with ThreadPoolExecutor(4) as pool:
        threads = [pool.submit(auto._measure, asked[0], SHAPE, auto_module.Condition({}), {}) for auto in autos]
    assert [thread.result().sampler for thread in threads] == alone
    for name, p in network.named_parameters():
        assert (p.requires_grad, p.grad) == (before[name][0], None)
        assert torch.equal(p, before[name][1])


def test_auto_inside_inference_mode() -> None:
    with torch.inference_mode():
        x = AUTO(MODELS["one"](), (3, 2), dtype=torch.float64).x
    assert torch.equal(x, AUTO(MODELS["one"](), (3, 2), dtype=torch.float64).x)


PROCESSES = [
    sg.VP(), sg.SubVP(), sg.VE(), sg.VE(0.5, 1.0), sg.Cosine(), sg.EDM(), sg.EDM(0.05, 80.0), sg.FlowMatching(),
    sg.DDPM(steps=50), sg.DDPM(steps=2, schedule="cosine"), sg.NCSN(levels=40), sg.NCSN(levels=2),
]  # fmt: skip


@pytest.mark.parametrize("effort", [0.0, *(pytest.param(e, marks=pytest.mark.slow) for e in (0.003, 0.05, 0.3))])
@pytest.mark.parametrize("p", PROCESSES, ids=str)
def test_a_choice_under_every_process_at_every_effort(p: sg.Perturbation, effort: float) -> None:
    """With batches as small as they may be, of a wide law and of one point; under processes that end, within them."""
    g = torch.Generator().manual_seed(0)
    wide = torch.randn(5, 5, generator=g, dtype=torch.float64)
    laws = [
        sg.GaussianMixture([1.0], torch.randn(1, 5, generator=g), (wide @ wide.T / 5 + 0.1 * torch.eye(5))[None]),
        sg.EmpiricalData(torch.ones(1, 5)),
    ]
    for exact in laws[: 1 if effort > 0.1 else 2]:
        for nfe in (1, 2, 8):
            choice = sg.Auto(nfe=nfe, effort=effort, count=4 if nfe < 8 else 8).choose(exact.model(p), (5,))
            assert choice.nfe == nfe
            assert choice.error < 10
            lambdas = torch.tensor(choice.sampler.grid.values, dtype=torch.float64)
            least, most = p.half_log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64))
            assert bool((lambdas <= most + 1e-12).all() and (lambdas >= least - 1e-12).all())
            assert bool((lambdas.diff() > 0).all())
