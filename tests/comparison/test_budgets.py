"""Budgets of network calls, and grids that are the same for all."""

from dataclasses import replace

import pytest
import torch

import sde_gen as sg
from sde_gen.comparison.budgets import calls_of, common_range, matched, takes_budget, within_budget

SAMPLERS = {
    "DDIM": sg.DDIM(),
    "Heun": sg.Heun(),
    "2M": sg.DPMSolverPP2M(),
    "no denoising": sg.EulerMaruyama(denoise=False),
    "PC": sg.PredictorCorrector(corrector=sg.Langevin(steps=2)),
    "ALD": sg.AnnealedLangevin(steps_per_level=3),
}


@pytest.mark.parametrize("budget", [5, 12, 33])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_budget_buys_as_many_steps_as_its_calls_allow(name: str, budget: int) -> None:
    fit = within_budget(SAMPLERS[name], sg.VP(), budget, None)
    assert calls_of(fit.sampler, sg.VP()) <= budget
    assert calls_of(replace(SAMPLERS[name], steps=fit.steps + 1), sg.VP()) > budget
    assert fit.note == ""


def test_a_budget_below_one_step_is_refused_with_the_numbers() -> None:
    with pytest.raises(sg.ConfigError, match="budget of 3 network calls is below the 4 that one step needs"):
        within_budget(SAMPLERS["ALD"], sg.VP(), 3, None)


def test_a_chain_has_no_more_steps_than_nodes_and_says_so() -> None:
    fit = within_budget(sg.AnnealedLangevin(steps_per_level=3), sg.NCSN(levels=10), 100, None)
    assert fit.steps == 10
    assert calls_of(fit.sampler, sg.NCSN(levels=10)) == 31
    assert "all 10 times there are" in fit.note


def test_samplers_with_steps_of_their_own_take_no_budget() -> None:
    assert takes_budget(sg.DDIM())
    assert not takes_budget(sg.DDIM(steps=5))
    assert not takes_budget(sg.DDIM(grid=[0.9, 0.5]))
    assert not takes_budget(sg.ProbabilityFlow())


def test_matched_grids_visit_the_same_noise_levels() -> None:
    perturbations = [sg.VP(), sg.SubVP(), sg.VE(), sg.DDPM()]
    models = [sg.GaussianMixture([1.0], [[0.0]], [[[1.0]]]).model(p) for p in perturbations]
    low, high = common_range(models)
    for model in models:
        first, last = (float(model.perturbation.half_log_snr(t)) for t in reversed(model.times_within()))
        assert first <= low < high <= last
    for sampler in (sg.DDIM(), sg.DDIM(denoise=False), sg.PredictorCorrector()):
        lambdas = []
        for model in models:
            made = matched(sampler, 7, (low, high))
            lambdas.append(model.perturbation.half_log_snr(made.times(model)))
            assert calls_of(made, model.perturbation) == calls_of(replace(sampler, steps=7), sg.VP())
        for other in lambdas[1:]:
            torch.testing.assert_close(other, lambdas[0], rtol=0, atol=1e-8)


def test_a_sampler_that_is_told_its_calls_is_told_the_budget() -> None:
    assert takes_budget(sg.Auto(nfe=5))
    assert not takes_budget(sg.Auto(tolerance=0.1))
    fit = within_budget(sg.Auto(), sg.VP(), 7, None)
    assert (fit.sampler, fit.note) == (sg.Auto(nfe=7), "")
    assert "not matched" in within_budget(sg.Auto(), sg.VP(), 7, (-3.0, 2.0)).note


def test_formulations_without_common_noise_levels_are_refused() -> None:
    law = sg.GaussianMixture([1.0], [[0.0]], [[[1.0]]])
    with pytest.raises(sg.ConfigError, match="share no noise levels"):
        common_range([law.model(sg.VE(sigma_min=0.01, sigma_max=0.1)), law.model(sg.VE(sigma_min=1.0, sigma_max=9.0))])
