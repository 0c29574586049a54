"""Particles against the chain itself, integrated over the line without noise by `benchmarks/guided_chain.py`."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

import sde_gen as sg


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("guided_chain")


@pytest.mark.parametrize("formulation", ["VP", "flow matching"])
def test_the_evidence_is_unbiased_for_the_chain(script: Any, formulation: str) -> None:
    """In 25 steps, where the chain itself is far from right: within 4 standard errors of 800 systems."""
    law, p = script.law(script.PROBLEMS["wide"]), script.PERTURBATIONS[formulation]
    guided, label = sg.guidance.ClassifierFree(law.model(p), script.W), torch.zeros(800, dtype=torch.int64)
    smc = sg.TwistedSMC(particles=16, steps=25)
    z, x, weight = script.chain(law, p.half_log_snr(smc.times(guided)))
    assert z > 1.1 * script.target(law)[0]
    result = smc(guided, (800, 1), seed=1, dtype=torch.float64, label=label)
    ratio = result.system_log_evidence.exp() / z
    error = float(ratio.std() / len(ratio) ** 0.5)
    assert error < 0.03
    assert abs(float(ratio.mean()) - 1) < 4 * error
    mean = (weight * x).sum()
    spread = (weight * (x - mean).square()).sum().sqrt()
    assert float((result.x.mean() - mean).abs()) < 5 * float(spread) / 800**0.5


def test_the_bias_falls_with_the_steps_and_is_no_more_under_flow_matching(script: Any) -> None:
    rows = {(f, n): script.row("wide", f, n) for f in ("VP", "flow matching") for n in (50, 100)}
    for formulation in ("VP", "flow matching"):
        coarse, fine = rows[formulation, 50], rows[formulation, 100]
        assert 0 < fine["evidence"] - 1 < 0.05
        assert fine["evidence"] - 1 < 0.5 * (coarse["evidence"] - 1)
        assert abs(fine["mean"]) < 0.5 * abs(coarse["mean"])
    assert rows["flow matching", 100]["mean"] < 1.2 * rows["VP", 100]["mean"]
