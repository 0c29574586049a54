"""CONTRIBUTING.md is followed: a class that is added at exactly the places it names is known everywhere.

A copy of the tree gets the new class at these places and no other. Then the package, the command line and the proofs
are asked for it, each in a process of its own. A recipe that leaves a place out fails here, and so does one that names
a place that is not needed.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = ("sde_gen", "conf", "tests", "pyproject.toml")


def recipe(kind: str) -> list[str]:
    """The places that CONTRIBUTING.md names for a new one of this kind."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    found = re.search(rf"^\*\*{kind}\*\*.*?\n\n(.*?)\n\n", text, re.DOTALL | re.MULTILINE)
    assert found, f"CONTRIBUTING.md has no recipe for {kind}"
    items = re.findall(r"^\d+\. `([^`]+)`", found[1], re.MULTILINE)
    assert len(items) == len(re.findall(r"^\d+\. ", found[1], re.MULTILINE))
    return items


@dataclass(frozen=True)
class Addition:
    """A new class: the text of its file, and what is put into files that are there."""

    kind: str
    name: str
    file: str
    """What stands for NAME in the recipe."""
    source: str
    put: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """File to (what is there, what is put before it); "" appends."""
    asked: str = ""
    """Python that must run, with `sg` there."""
    group: str = ""
    proofs: tuple[str, ...] = ()
    """Arguments of pytest."""


#: That every class there is has its proofs.
PROOFS_OF_ALL = ("tests/properties/test_discovery.py", "tests/properties/test_derivations.py", "-k", "test_discovery")

HEAD = """from dataclasses import dataclass
import torch
from sde_gen.checks import checked
"""

SAMPLER = Addition(
    "A sampler", "QuietAncestral", "quiet_ancestral",
    '"""Ancestral steps with a share of their noise, the rest of its variance given to the estimate."""\n'
    + HEAD + """from sde_gen.samplers.one_step import OneStepSampler


@dataclass(frozen=True)
class QuietAncestral(OneStepSampler):
    \"\"\"x_s = alpha_s x0hat + sqrt(sigma_s^2 - std^2) eps + std z, std a share of the posterior's.\"\"\"

    share: float = checked(0.25, low=0.0, high=1.0)

    is_stochastic = True
    uses_chain_nodes = True

    def coefficients(self, p, t, s):
        std = self.share * p.posterior(s, t)[2]
        of_noise = (p.sigma(s) ** 2 - std**2).sqrt()
        return of_noise / p.sigma(t), p.alpha(s) - of_noise * p.alpha(t) / p.sigma(t), std
""",
    {
        "sde_gen/samplers/__init__.py": [
            ("from sde_gen.samplers.restart import", "from sde_gen.samplers.quiet_ancestral import QuietAncestral\n"),
            ('    "Restart",', '    "QuietAncestral",\n'),
        ],
        "tests/properties/recursions.py": [
            ("RULES: dict[str, Rule] = {", """def quiet(q, x, t, s, memory, share):
    _, b2 = kernel(q.curve, s, t)
    var = share**2 * b2 * q.curve.variance(s) / q.curve.variance(t)
    eps = -q.curve.sigma(t) * q.score(x, t)
    kept = q.curve.alpha(s) * q.denoised(x, t) + math.sqrt(q.curve.variance(s) - var) * eps
    return kept + math.sqrt(var) * q.normal(), None


"""),
            ('"euler": euler,', '"quiet": quiet, '),
        ],
        "tests/properties/discovery.py": [
            ('    "DDIM": Case(', """    "QuietAncestral": Case(
        lambda **k: sg.QuietAncestral(**k), "quiet", (0.25,), stochastic=True
    ),
"""),
            ('    "DDIM": (50,', '    "QuietAncestral": (1000, "uniform", True),\n'),
        ],
    },
    asked="assert sg.QuietAncestral(steps=3).share == 0.25",
    group="sampler",
    proofs=("tests/properties", "tests/samplers", "-k", "test_discovery or invariant or (QuietAncestral and not PC)"),
)  # fmt: skip

PERTURBATION = Addition(
    "A perturbation", "SquareTime", "square_time",
    '"""log alpha falls like t^2."""\n' + HEAD + """from sde_gen.perturbations.base import Perturbation


@dataclass(frozen=True)
class SquareTime(Perturbation):
    \"\"\"log alpha = -strength t^2, variance preserving.\"\"\"

    strength: float = checked(5.0, above=0.0)

    def log_alpha(self, t):
        return -self.strength * t**2

    def variance(self, t):
        return -torch.expm1(2 * self.log_alpha(t))
""",
    {
        "sde_gen/perturbations/__init__.py": [
            ("\n__all__ = [", "from sde_gen.perturbations.square_time import SquareTime\n"),
            ('"SubVP"', '"SquareTime", '),
        ],
        "tests/properties/curves.py": [
            ("CURVES: dict[str, Curve] = {", """class SquareTimeCurve(Curve):
    def log_alpha(self, t: float) -> float:
        return -5 * t**2

    def variance(self, t: float) -> float:
        return -math.expm1(-10 * t**2)

    def f(self, t: float) -> float:
        return -10 * t

    def g2(self, t: float) -> float:
        return 20 * t


"""),
            ('    "SubVP": SubVPCurve(),', '    "SquareTime": SquareTimeCurve(),\n'),
        ],
        "tests/perturbations/cases.py": [
            ('    "SubVP": [', '    "SquareTime": [sg.SquareTime(), sg.SquareTime(3.0)],\n'),
            ("def _ve(p, t):", """def _square_time(p, t):
    log_alpha = -_mp(p.strength) * t**2
    return log_alpha, 1 - mp.exp(2 * log_alpha)


"""),
            ('    "SubVP": _sub_vp,', '    "SquareTime": _square_time,\n'),
        ],
        "tests/perturbations/test_curves.py": [
            ("    assert isinstance(p, sg.FlowMatching),", """    if isinstance(p, sg.SquareTime):
        return -2 * p.strength * t, 4 * p.strength * t
"""),
        ],
        "tests/properties/test_derivations.py": [
            ('    if name == "FlowMatching":', """    if name == "SquareTime":
        return sg.SquareTime(number(1, 20))
"""),
        ],
        "tests/properties/discovery.py": [('    "SubVP": sg.SubVP(),', '    "SquareTime": sg.SquareTime(),\n')],
    },
    asked="assert sg.SquareTime().strength == 5.0",
    group="sde",
    proofs=("tests/properties", "tests/perturbations", "-k",
            "test_discovery or test_curves or test_derivations or (SquareTime and DDIM)"),
)  # fmt: skip

DATA = Addition(
    "A data set", "two_points", "two_points",
    """\"\"\"Two points.\"\"\"
import torch
from sde_gen.data.dataset import Dataset
from sde_gen.data.transform import Affine


def two_points(*, n: int = 64, seed: int = 0) -> Dataset:
    \"\"\"-1 and 1.\"\"\"
    x = torch.ones(n, 1)
    x[::2] = -1
    return Dataset("two_points", "vector", x, x.clone(), Affine())
""",
    {
        "sde_gen/data/__init__.py": [
            ("\n__all__ = [", "from sde_gen.data.two_points import two_points\n"),
            ('    "two_moons",', '    "two_points",\n'),
        ],
        "tests/data/test_two_points.py": [
            ("", 'import sde_gen as sg\n\n\ndef test_two_points():\n    assert sg.data.two_points(n=8).shape == (1,)\n')
        ],
    },
    asked="assert sg.data.two_points(n=8).shape == (1,)",
    group="data",
    proofs=("tests/data/test_two_points.py",),
)  # fmt: skip

NETWORK = Addition(
    "A network", "Flat", "flat",
    """\"\"\"One layer.\"\"\"
from torch import Tensor, nn


class Flat(nn.Module):
    \"\"\"A linear map, whatever the noise.\"\"\"

    def __init__(self, features: int = 2, *, bias: bool = True) -> None:
        super().__init__()
        self.arguments = {"features": features, "bias": bias}
        self.layer = nn.Linear(features, features, bias=bias)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.layer(x)
""",
    {
        "sde_gen/networks/__init__.py": [
            ("from sde_gen.networks.mlp import", "from sde_gen.networks.flat import Flat\n"),
            ('"MLP"', '"Flat", '),
        ],
        "tests/networks/test_flat.py": [
            ("", """import sde_gen as sg


def test_flat(tmp_path):
    sg.save(sg.ScoreModel(sg.Flat(3), sg.VP()), tmp_path)
    assert sg.load(tmp_path).network.arguments["features"] == 3
"""),
        ],
    },
    asked="assert sg.networks.Flat is sg.Flat",
    group="network",
    proofs=("tests/networks/test_flat.py",),
)  # fmt: skip

ADDITIONS = [SAMPLER, PERTURBATION, DATA, NETWORK]


def places(addition: Addition) -> list[str]:
    return [place.replace("NAME", addition.file) for place in recipe(addition.kind)]


def tree(where: Path) -> Path:
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, where / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, where / name)
    return where


def follow(addition: Addition, where: Path, steps: Iterable[str]) -> None:
    """Do what the recipe says at these of its places."""
    for place in steps:
        if place.endswith(f"/{addition.file}.py") and place not in addition.put:
            assert not (where / place).exists()
            (where / place).write_text(addition.source, "utf-8")
            continue
        files = [name for name in addition.put if name == place or (place.endswith("/") and name.startswith(place))]
        assert files, f"this test does not know what to do at {place}"
        for name in files:
            path = where / name
            text = path.read_text("utf-8") if path.exists() else ""
            for there, more in addition.put[name]:
                assert there in text, f"{name} has no {there!r}"
                text = text.replace(there, more + there, 1) if there else text + more
            path.write_text(text, "utf-8")


def contents(where: Path) -> dict[str, str]:
    files = [path for path in where.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(where).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def done(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(where), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=where, env=environment, capture_output=True, text=True, timeout=600
    )


def asked(addition: Addition, where: Path) -> subprocess.CompletedProcess[str]:
    """Whether Python and the command line know it: a group's choice, with its defaults, that can be built."""
    name, group = addition.name, addition.group
    command = "sample" if group == "sampler" else "train"
    more = ["data=two_moons"] if group == "network" else []
    code = f"""
import sde_gen as sg
from sde_gen.config.groups import choices
from sde_gen.config.objects import build
assert sg.__file__.startswith({str(where)!r})
{addition.asked}
assert {name!r} in choices({group!r})
node = sg.load_config({command!r}, {[f"{group}={name}", *more]}).{group}
assert node._target_.rpartition(".")[2] == {name!r} and len(node) >= 2, node
build(node)
"""
    return done(where, "-c", code)


@pytest.mark.parametrize(
    "addition",
    [pytest.param(a, marks=[] if a is SAMPLER else pytest.mark.slow, id=a.name) for a in ADDITIONS],
)
def test_the_places_named_are_enough(addition: Addition, tmp_path: Path) -> None:
    where = tree(tmp_path)
    before = contents(where)
    follow(addition, where, places(addition))
    changed = {name for name, digest in contents(where).items() if before.get(name) != digest}
    assert all(any(name == p or (p.endswith("/") and name.startswith(p)) for p in places(addition)) for name in changed)

    found = asked(addition, where)
    assert found.returncode == 0, found.stderr[-3000:]
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly"]
    proved = done(where, "-m", "pytest", *options, *addition.proofs)
    assert proved.returncode == 0, proved.stdout[-3000:]
    assert re.search(r"[1-9]\d* passed", proved.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("addition", [SAMPLER, PERTURBATION], ids=lambda a: a.name)
def test_each_place_is_needed(addition: Addition, tmp_path: Path) -> None:
    first, exported, *proofs = places(addition)
    where = tree(tmp_path)
    follow(addition, where, [first])
    assert asked(addition, where).returncode != 0
    follow(addition, where, [exported])
    assert asked(addition, where).returncode == 0
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    for place in proofs:
        unproved = done(where, "-m", "pytest", *options, *PROOFS_OF_ALL)
        assert unproved.returncode == 1
        assert addition.name in unproved.stdout
        follow(addition, where, [place])


def test_the_command_line_lists_and_draws_with_it(tmp_path: Path) -> None:
    where = tree(tmp_path)
    follow(SAMPLER, where, places(SAMPLER))
    shown = done(where, "-m", "sde_gen.sample", "sampler=QuietAncestral", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "QuietAncestral" in shown.stdout
    assert "sampler.share=0.25" in shown.stdout
    small = ["data=mixture", "data.n=64", "network.hidden=8", "network.layers=1", "trainer.steps=2", "device=cpu",
             "trainer.batch_size=8", "trainer.preview_samples=0", "network=mlp", "run=a"]  # fmt: skip
    made = done(where, "-m", "sde_gen.train", *small)
    assert made.returncode == 0, made.stderr
    drawn = done(where, "-m", "sde_gen.sample", "sampler=QuietAncestral", "sampler.steps=3", "num_samples=4", "run=a",
                 "metrics=false", "device=cpu")  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr


def test_a_new_sampler_takes_three_places() -> None:
    assert places(SAMPLER) == [
        "sde_gen/samplers/quiet_ancestral.py", "sde_gen/samplers/__init__.py", "tests/properties/",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["A sampler", "A perturbation", "A data set", "A network", "An objective", "A metric"])
def test_every_place_is_there(kind: str) -> None:
    for place in recipe(kind):
        path = ROOT / place
        assert path.exists() or ("NAME" in place and path.parent.is_dir()), place
