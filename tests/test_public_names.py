"""The names that other people's programs rely on, and the register that they are read from."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sde_gen as sg
from sde_gen import register

CONTRACT = [
    "VP",
    "SubVP",
    "VE",
    "Cosine",
    "EDM",
    "FlowMatching",
    "DDPM",
    "NCSN",
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


@pytest.mark.parametrize("room", register.ROOMS)
def test_the_register_reads_what_python_says(room):
    module = importlib.import_module(f"sde_gen.{room}")
    assert sorted(register.exports(room)) == sorted(module.__all__)
    for name in register.exports(room):
        assert getattr(sg, name) is getattr(module, name)
        assert name in dir(sg)
        assert name in sg.__all__


def test_type_checkers_see_the_rooms_of_the_register():
    seen = set(re.findall(r"^    from sde_gen\.(\w+) import", Path(sg.__file__).read_text(), re.MULTILINE))
    assert seen == {*register.ROOMS, *register.SINGLE.values()}


@pytest.mark.parametrize("room", ["data", "metrics", "networks", "pictures", "samplers", "training", "likelihood"])
def test_rooms_are_attributes_without_an_import(room):
    script = f"import sde_gen as sg; print(sg.{room}.__name__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"sde_gen.{room}"


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        sg.Nonsense  # noqa: B018
