"""The sources that a key follows: all that decides a result, and not more."""

import importlib
import inspect
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import sde_gen as sg
from sde_gen.comparison.cells import closure, models
from sde_gen.comparison.cells.cell import Cell, Context
from sde_gen.comparison.cells.store import Store
from sde_gen.config.restore import find_checkpoint
from tests.comparison.helpers import small, trained

ROOT = Path(sg.__file__).parent


@pytest.fixture(autouse=True)
def _anew() -> Any:
    closure.forget()
    yield
    closure.forget()


def followed(cell: Cell) -> set[str]:
    """Files of this package that the key of a cell, and of those it needs, follows."""
    names = [(type(cell).__module__, ""), *(n for v in vars(cell).values() for n in closure.names_in(v))]
    inner = set().union(*(followed(needed) for needed in cell.after))
    return inner | {p.relative_to(ROOT).as_posix() for p in closure.closure(names).values() if p.is_relative_to(ROOT)}


def cells() -> dict[str, tuple[Cell, Any]]:
    """A cell of each kind in each mode, with its comparison."""
    samplers = {"Auto": sg.Auto(effort=0.0), "PC": sg.PredictorCorrector(), "EM": sg.EulerMaruyama()}
    own = {"samplers": samplers, "trajectories": True, "likelihood": 4, "seeds": (0,), "budgets": (4,)}
    found: dict[str, tuple[Cell, Any]] = {}
    for comparison in (trained(**own), trained(mode="shared", **own), small(orders=True, **own)):
        for cell in comparison.cells():
            if cell.kind == "order" and cell.sampler.order is None:
                continue
            found.setdefault(f"{comparison.mode} {cell.kind} {cell.labels.get('sampler', '')}", (cell, comparison))
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cache")
    for comparison in {id(c): c for _, c in cells().values()}.values():
        comparison.run(place)
    return place


def check_called(cell: Cell, context: Context) -> None:
    called: set[str] = set()

    def look(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(ROOT)):
            called.add(Path(frame.f_code.co_filename).relative_to(ROOT).as_posix())

    sys.setprofile(look)
    try:
        cell.compute(context, lambda: False)
    finally:
        sys.setprofile(None)
    apart = tuple(f"{name.replace('.', '/')}{end}" for name in closure.APART for end in (".py", "/"))
    assert {file for file in called if not file.startswith(apart)} - followed(cell) - {"__init__.py"} == set()
    assert len(called) > 5


# Of the samplers one by default, and `Auto` once: what they call differs little.
SLOW = {name for name in cells() if "EM" in name or ("Auto" in name and name != "shared samples Auto")}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in sorted(cells())])
def test_every_file_that_is_called_is_followed(name: str, cache: Path) -> None:
    cell, comparison = cells()[name]
    models._LOADED.clear()
    check_called(cell, Context(comparison.dataset(), Store(cache), afresh=True))


def test_every_file_that_a_given_network_calls_is_followed(cache: Path) -> None:
    cell, comparison = cells()["shared model "]
    given = str(cache / "models" / cell.key)
    for cell in trained(mode="shared", checkpoint=given, likelihood=4, seeds=(0,)).cells():
        models._LOADED.clear()
        checkpoint, _ = find_checkpoint(given)
        check_called(cell, Context(comparison.dataset(), Store(cache), checkpoint=str(checkpoint.path)))
        if cell.kind == "samples":
            assert "networks/mlp.py" in followed(cell)


def test_what_is_left_out_decides_no_number() -> None:
    for name in closure.APART:
        place = ROOT / name.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").is_file(), name
    every = set().union(*(followed(cell) for cell, _ in cells().values()))
    outside = ("compare.py", "comparison/report/", "comparison/plan.py", "comparison/study.py", "pictures/", "jobs/")
    assert [file for file in every if file.startswith(outside)] == []


def test_a_network_depends_on_less_than_its_samples() -> None:
    found = cells()
    network, drawn = followed(found["network model "][0]), followed(found["network samples PC"][0])
    assert network < drawn
    assert not [file for file in network if file.startswith(("metrics/", "tuning/", "likelihood/"))]
    assert "samplers/predictor_corrector.py" in drawn - network
    assert {"networks/mlp.py", "training/update.py", "objectives.py", "perturbations/continuous.py"} <= network
    # One more sampler throws no results of others away.
    assert "samplers/restart.py" not in followed(small(samplers={"DDIM": sg.DDIM()}).cells()[0])


def test_meaning_counts_and_words_do_not(tmp_path: Path) -> None:
    path = tmp_path / "a.py"

    def of(text: str) -> str:
        path.write_text(text)
        closure.forget()
        return closure._meaning(path)

    first = of("def f(x):\n    if x < 0:\n        raise ValueError(f'{x} is small')\n    return x + 1\n")
    lines = ['"""A module."""', "", "def f(x):", '    """A sentence."""', "    if x < 0:  # why",
             "        raise ValueError(f'too small: {x}')", "    return (x + 1)", ""]  # fmt: skip
    same = "\n".join(lines)
    assert of(same.replace("too small: {x}", "{x} is too small")) == first
    assert of(same.replace("x + 1", "x + 2")) != first
    assert of(same.replace("x < 0", "x < 1")) != first
    assert of(same.replace("ValueError", "KeyError")) != first


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A sampler of one's own, whose module imports another beside it, which imports a package beside that."""
    texts = {
        "own_xyz.py": "import sde_gen as sg\nfrom helper_xyz import factor\n\nclass Own(sg.DDIM):\n    x = factor\n",
        "helper_xyz.py": "import numpy\nfrom deep_xyz import number\nfactor = number\n",
        "deep_xyz/__init__.py": "from .inner import number\nfrom .idle import nothing\n",
        "deep_xyz/inner.py": "number = 1\n",
        "deep_xyz/idle.py": "nothing = None\n",
    }
    (tmp_path / "deep_xyz").mkdir()
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("own_xyz").Own()


def test_the_users_own_code_counts_with_what_it_imports(tmp_path: Path, own: Any) -> None:
    def keys() -> dict[str, str]:
        closure.forget()
        made = small(samplers={"Own": own, "DDIM": sg.DDIM()}, budgets=(4,), seeds=(0,)).cells()
        return {cell.labels["sampler"]: cell.key for cell in made if cell.kind == "samples"}

    def change(name: str, text: str) -> None:
        (tmp_path / name).write_text((tmp_path / name).read_text() + text)

    first = keys()
    change("own_xyz.py", "# a comment\n")
    change("deep_xyz/idle.py", "more = 1\n")  # of which nothing is used
    assert keys() == first
    for name in ("own_xyz.py", "helper_xyz.py", "deep_xyz/inner.py"):
        before = keys()
        change(name, "y = 2\n")
        assert keys()["Own"] != before["Own"], name
        assert keys()["DDIM"] == first["DDIM"]


def test_the_users_own_network_counts_before_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "network_xyz.py"
    path.write_text("import sde_gen.networks as n\n\nclass Net(n.MLP):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)

    def key() -> str:
        closure.forget()
        comparison = trained(network={"_target_": "network_xyz.Net", "features": 2}, trust=("network_xyz",))
        return next(cell.key for cell in comparison.cells() if cell.kind == "model")

    first = key()
    path.write_text(path.read_text() + "x = 1\n")
    assert key() != first
    assert "network_xyz" not in sys.modules, "a file that nobody trusted is read, not run"


def test_files_of_the_package_are_found_from_its_classes() -> None:
    files = followed(small(samplers={"PC": sg.PredictorCorrector()}).cells()[0])
    for thing in (sg.PredictorCorrector, sg.Langevin, sg.ReverseDiffusion, sg.VP, sg.GaussianMixture, sg.ScoreModel):
        assert Path(inspect.getfile(thing)).relative_to(ROOT).as_posix() in files
