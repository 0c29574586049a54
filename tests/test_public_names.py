"""The names that other people's programs rely on, and the two lists of them in `sde_gen/__init__.py`."""

import importlib

import pytest

import sde_gen as sg

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


@pytest.mark.parametrize("module", sorted(sg._HOME))
def test_lazy_names_are_those_of_their_modules(module):
    # `from module import *` is what type checkers see; `_HOME` is what runs.
    names = importlib.import_module(module).__all__
    if module != "sde_gen.config":
        assert sorted(sg._HOME[module]) == sorted(names)
    for name in sg._HOME[module]:
        assert getattr(sg, name) is getattr(importlib.import_module(module), name)
        assert name in dir(sg)
        assert name in sg.__all__


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        sg.Nonsense  # noqa: B018
