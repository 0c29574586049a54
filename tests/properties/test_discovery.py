"""Every class of the package has cases in `discovery.py`: one that is added and not covered fails here."""

import pytest

import sde_gen as sg
from tests.properties import curves, discovery
from tests.properties.discovery import concrete_subclasses


@pytest.mark.parametrize(
    ("base", "covered", "table"),
    [
        (sg.Perturbation, {type(p) for p in discovery.PERTURBATIONS.values()}, "PERTURBATIONS, and curves.CURVES"),
        (
            sg.Sampler,
            {type(c.make()) for c in discovery.SAMPLERS.values()}
            | set(discovery.OTHER_SAMPLERS.values())
            | set(discovery.GUIDED_SAMPLERS.values()),
            "PREDICTORS or SAMPLERS with a rule in recursions.py, or OTHER_SAMPLERS",
        ),
        (
            sg.TimeGrid,
            {type(g) for g in (discovery.GRIDS | discovery.UNNAMED_GRIDS).values()}
            | set(discovery.LISTED_GRIDS.values()),
            "GRIDS, and curves.grid",
        ),
        (sg.Corrector, {type(c) for c in discovery.CORRECTORS.values()}, "CORRECTORS"),
    ],
    ids=["perturbations", "samplers", "grids", "correctors"],
)
def test_every_class_has_a_case(base: type, covered: set[type], table: str) -> None:
    found = concrete_subclasses(base)
    assert len(found) >= 1
    missing = sorted(c.__name__ for c in found - covered)
    assert not missing, f"not verified: {', '.join(missing)}; add a case to {table} of tests/properties/discovery.py"
    assert covered <= found, f"cases of classes that the walk did not find: {covered - found}"


def test_every_case_has_a_curve() -> None:
    assert set(discovery.PERTURBATIONS) == set(curves.CURVES)


def test_every_predictor_is_tested_in_a_predictor_corrector() -> None:
    inside = {type(c.make().predictor) for name, c in discovery.SAMPLERS.items() if name.startswith("PC(")}
    allowed = {
        c
        for c in concrete_subclasses(sg.GridSampler)
        if c not in (sg.PredictorCorrector, sg.AnnealedLangevin, sg.Restart, sg.Fitted, sg.LimitedUniPC, sg.FittedSteps)
    }
    assert inside - {type(None)} == allowed


def test_every_choice_of_a_name_has_a_case() -> None:
    from sde_gen.perturbations.discrete import SCHEDULES
    from sde_gen.samplers.grids import GRIDS

    assert set(GRIDS) == set(discovery.GRIDS)
    assert {p.schedule for p in discovery.PERTURBATIONS.values() if isinstance(p, sg.DDPM)} == set(SCHEDULES)


def test_claims_of_the_samplers() -> None:
    for name, case in discovery.SAMPLERS.items():
        sampler = case.make()
        assert sampler.order == case.order, name
        assert sampler.is_stochastic == case.stochastic, name
