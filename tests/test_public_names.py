"""The names that other people's programs rely on, and that each is exported once, by its room."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import sde_gen as sg
from sde_gen.register import ROOMS, SINGLE, exports

ROOT = Path(__file__).resolve().parents[1]

CONTRACT = [
    "VP",
    "SubVP",
    "VE",
    "Cosine",
    "EDM",
    "FlowMatching",
    "DDPM",
    "NCSN",
    "Table",
    "LinearSDE",
    "Convention",
    "VelocityPrediction",
    "EulerMaruyama",
    "ReverseDiffusion",
    "Ancestral",
    "DDIM",
    "Heun",
    "AnnealedLangevin",
    "PredictorCorrector",
    "ProbabilityFlow",
    "DPMSolverPP2M",
    "DPMSolverPP3M",
    "Auto",
    "Langevin",
    "LangevinDynamics",
    "GaussianMixture",
    "EmpiricalData",
    "ScoreModel",
    "Prediction",
    "NoisePrediction",
    "DataPrediction",
    "VPrediction",
    "ScorePrediction",
    "EDMPreconditioning",
    "DenoisingScoreMatching",
    "Comparison",
]


@pytest.mark.parametrize("name", CONTRACT)
def test_contract_names_are_there(name):
    assert getattr(sg, name).__name__ == name


@pytest.mark.parametrize("room", [*ROOMS, "training", "config", "data", "metrics"])
def test_what_is_read_of_a_room_is_what_it_exports(room):
    module = importlib.import_module(f"sde_gen.{room}")
    assert list(exports(room)) == module.__all__
    for name in exports(room) if room in ROOMS else ():
        assert getattr(sg, name) is getattr(module, name)
        assert name in dir(sg)
        assert name in sg.__all__


def test_no_name_has_two_homes():
    names = [name for room in ROOMS for name in exports(room)] + list(SINGLE)
    assert len(names) == len(set(names))
    for name, room in SINGLE.items():
        assert getattr(sg, name) is getattr(importlib.import_module(f"sde_gen.{room}"), name)


def test_type_checkers_see_the_same_rooms():
    tree = ast.parse(Path(sg.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    starred = {node.module for node in imports if node.names[0].name == "*"}
    assert starred == {f"sde_gen.{room}" for room in ROOMS}
    single = {(a.name, node.module) for node in imports for a in node.names if node.module not in (*starred, "sde_gen")}
    assert single == {(name, f"sde_gen.{room}") for name, room in SINGLE.items()}


@pytest.mark.parametrize("name", ["data", "metrics", "networks", "pictures", "training", "samplers", "streaming"])
def test_rooms_are_attributes_without_an_import(name):
    code = f"import sde_gen as sg; print(sg.{name}.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == f"sde_gen.{name}"


def test_everything_can_be_imported_by_a_star():
    space = {}
    exec("from sde_gen import *", space)  # noqa: S102 - a star is allowed at the top of a module only
    assert {"VP", "load", "save", "Trainer", "TrainerSettings"} <= space.keys()


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        sg.Nonsense  # noqa: B018
