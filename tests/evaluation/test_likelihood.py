"""What is made of the likelihoods of single samples."""

import math

import pytest
import torch

import sde_gen as sg
import sde_gen.likelihood
from sde_gen.data import Affine, Mixture, digits
from sde_gen.errors import ConfigError, DataError, SolverError
from sde_gen.evaluation import held_out_likelihood, likelihood, part_length
from sde_gen.evaluation.likelihood import Values
from tests.evaluation.helpers import constant_model


def _solver(monkeypatch: pytest.MonkeyPatch, values: Values, asked: list | None = None) -> None:
    def solver(*arguments, **settings):
        if asked is not None:
            asked.append(arguments)
        return values

    monkeypatch.setattr(likelihood, "_ode", solver)
    monkeypatch.setattr(likelihood, "_bound", solver)


def test_means_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    log_prob, bits = torch.tensor([-1.0, -2.0, -6.0]), torch.tensor([1.0, 2.0, 3.0])
    _solver(monkeypatch, Values(log_prob, bits, torch.tensor([0.3, 0.4, 0.0]), torch.tensor([10, 20, 60])))
    found = held_out_likelihood("ode", constant_model(), torch.zeros(3, 2), Affine())
    assert (found.nll, found.bits_per_dim, found.n, found.nfe) == (3.0, 2.0, 3, 30.0)
    assert found.nll_error == pytest.approx(math.sqrt(7.0 / 3))
    assert found.bits_per_dim_error == pytest.approx(math.sqrt(1.0 / 3))
    assert found.probe_error == pytest.approx(0.5 / 3)
    assert found.exact_nll is None
    assert found.failed == {}


def test_samples_that_fail_are_named_and_the_others_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    nan = math.nan
    values = Values(
        torch.tensor([nan, -1.0, -3.0, math.inf]), torch.tensor([nan, 1.0, 3.0, 1.0]), torch.full((4,), nan),
        torch.tensor([900, 10, 20, 30]), {0: "out of budget"},
    )  # fmt: skip
    _solver(monkeypatch, values)
    found = held_out_likelihood(
        "ode", constant_model(), torch.zeros(4, 2), Affine(), indices=torch.tensor([5, 7, 8, 11])
    )
    assert (found.nll, found.n, found.nfe) == (2.0, 2, 15.0)
    assert found.failed == {5: "out of budget", 11: "its log-density is NaN or infinite"}
    assert found.indices.tolist() == [7, 8]
    assert found.log_prob.tolist() == [-1.0, -3.0]
    assert found.probe_error is None, "one probe tells nothing of its spread"
    assert found.to_dict()["failed"] == {"5": "out of budget", "11": "its log-density is NaN or infinite"}


def test_no_sample_left_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _solver(monkeypatch, Values(torch.full((2,), math.nan), torch.zeros(2), failed={0: "out of budget"}))
    with pytest.raises(SolverError, match="none of the 2 held-out samples has a likelihood: out of budget"):
        held_out_likelihood("ode", constant_model(), torch.zeros(2, 2), Affine())


def test_the_exact_law_gives_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    _solver(monkeypatch, Values(torch.tensor([0.0, math.nan]), torch.tensor([0.0, 0.0])))
    law = Mixture(torch.ones(1).double(), torch.zeros(1, 2).double(), torch.eye(2).double()[None])
    found = held_out_likelihood("vlb", constant_model(), torch.tensor([[1.0, 0.0], [9.0, 9.0]]), Affine(), law=law)
    assert found.exact_nll == pytest.approx(math.log(2 * math.pi) + 0.5)
    errors = (found.nll_error, found.bits_per_dim_error, found.exact_nll_error)
    assert errors == (None, None, None), "one sample tells nothing of the spread"


NORMAL = sg.GaussianMixture(torch.ones(1).double(), torch.zeros(1, 2).double(), 0.49 * torch.eye(2).double()[None])
EACH = [sg.VP(), sg.SubVP(), sg.VE(), sg.EDM(), sg.Cosine(), sg.FlowMatching(), sg.DDPM(steps=100), sg.NCSN(levels=50)]


@pytest.mark.parametrize("p", EACH, ids=lambda p: type(p).__name__)
def test_every_formulation_of_an_exact_model_finds_its_law(p: sg.Perturbation) -> None:
    x = NORMAL.sample(40, seed=1)
    law = Mixture(torch.ones(1).double(), torch.zeros(1, 2).double(), 0.49 * torch.eye(2).double()[None])
    found = held_out_likelihood("ode", NORMAL.model(p), x, Affine(scale=2.0), law=law, steps=60)
    assert found.n == 40
    assert found.nfe == 60
    # Prior mismatch and the least noise of each formulation are within this; an error of log alpha or of D is not.
    assert found.nll == pytest.approx(found.exact_nll, abs=0.02)
    assert found.bits_per_dim == pytest.approx((found.nll + 2 * math.log(2.0)) / (2 * math.log(2.0)))


def test_data_on_levels_are_dequantised_and_bits_are_those_of_a_level() -> None:
    data = digits()
    x, shape = data.test[:4], data.shape
    model = constant_model()
    found = held_out_likelihood("ode", model, x, data.transform, seed=3, steps=20, probes=2)
    assert data.transform.step == 1.0
    spread = data.transform.dequantise(x, 3)
    direct = sg.log_likelihood(model, spread, steps=20, probes=2, seed=3)
    assert found.nll == pytest.approx(-float(direct.log_prob.mean()), rel=1e-9)
    # 16 levels of width 1 to each side of 0 on a scale from -1 to 1: one level is 1/8 wide.
    assert found.bits_per_dim == pytest.approx((found.nll + 64 * math.log(8.0)) / (64 * math.log(2.0)), rel=1e-9)
    assert math.prod(shape) == 64
    assert found.probe_error is not None


def test_a_network_that_breaks_down_on_one_sample_costs_only_that_one() -> None:
    def network(x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return torch.where(x.abs().amax(1, keepdim=True) > 100, math.nan, 0.0 * x)

    x = torch.randn(5, 2)
    x[3] = 1e4
    model = sg.ScoreModel(network, sg.VP())
    found = held_out_likelihood("ode", model, x, Affine(), indices=torch.arange(10, 15), divergence="exact")
    assert list(found.failed) == [13]
    assert "NaN or infinite" in found.failed[13]
    assert found.indices.tolist() == [10, 11, 12, 14]
    rest = held_out_likelihood("ode", model, x[[0, 1, 2, 4]], Affine(), divergence="exact")
    assert found.nll == pytest.approx(rest.nll, rel=1e-6)


def test_the_bound_of_an_exact_model_is_near_its_density() -> None:
    x = NORMAL.sample(200, seed=1)
    bound, ode = (
        held_out_likelihood(kind, NORMAL.model(sg.VP()), x, Affine(scale=2.0), **given)
        for kind, given in (("vlb", {}), ("ode", {"steps": 40}))
    )
    # Both are of the density. An error of the scale is log 2 at least.
    assert bound.nll == pytest.approx(ode.nll, abs=0.3)
    assert bound.bits_per_dim == pytest.approx((bound.nll + 2 * math.log(2.0)) / (2 * math.log(2.0)))


def test_the_bound_of_levels_is_in_the_bits_of_a_level() -> None:
    data = digits()
    found = held_out_likelihood("vlb", constant_model(), data.test[:4], data.transform, terms=8)
    assert found.bits_per_dim == pytest.approx((found.nll + 64 * math.log(8.0)) / (64 * math.log(2.0)), rel=1e-6)
    direct = sde_gen.likelihood.variational_bound(constant_model(), data.test[:4], transform=data.transform, terms=8)
    assert found.bits_per_dim == pytest.approx(float(direct.bits_per_dim.mean()), rel=1e-9)


def test_a_sample_without_a_bound_costs_only_itself() -> None:
    def network(x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return torch.where(x.abs().amax(1, keepdim=True) > 100, math.nan, 0.0 * x)

    x = torch.randn(5, 2)
    x[3] = 1e4
    found = held_out_likelihood("vlb", sg.ScoreModel(network, sg.VP()), x, Affine())
    assert list(found.failed) == [3]
    assert found.n == 4


@pytest.mark.parametrize(
    ("kind", "given"),
    [("ode", {"divergence": "hutchinson", "probes": 2, "steps": 20}), ("vlb", {"terms": 8})],
)
def test_parts_are_those_of_the_whole(kind: likelihood.Kind, given: dict) -> None:
    data = digits()
    model = sg.ScoreModel(lambda x, c_noise: 0.3 * x.flip(-1) + 0.1 * x, sg.VP())
    whole, parts = (
        held_out_likelihood(kind, model, data.test[:7], data.transform, seed=3, chunk=chunk, **given)
        for chunk in (None, 3)
    )
    torch.testing.assert_close(parts.log_prob, whole.log_prob, rtol=1e-5, atol=1e-4)
    assert parts.probe_error == pytest.approx(whole.probe_error, rel=1e-3)
    assert parts.arrays.keys() == whole.arrays.keys()


def test_terms_of_parts_are_averaged_over_all_samples() -> None:
    x = NORMAL.sample(7, seed=1)
    model = NORMAL.model(sg.DDPM(steps=50))
    whole, parts = (held_out_likelihood("vlb", model, x, Affine(), chunk=chunk) for chunk in (None, 3))
    assert whole.arrays["terms"].shape == (50,)
    for name in ("terms", "times"):
        torch.testing.assert_close(parts.arrays[name], whole.arrays[name], rtol=1e-5, atol=1e-6)


def test_a_condition_goes_with_its_samples() -> None:
    asked = []

    def network(x: torch.Tensor, c_noise: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        asked.append(label)
        return label[:, None] * x

    x, label = NORMAL.sample(7, seed=1).float(), torch.arange(7.0)
    model = sg.ScoreModel(network, sg.VP())
    whole, parts = (
        held_out_likelihood("ode", model, x, Affine(), condition={"label": label}, chunk=chunk, steps=20)
        for chunk in (None, 3)
    )
    assert {tuple(given.tolist()) for given in asked[-20:]} == {(6.0,)}
    torch.testing.assert_close(parts.log_prob, whole.log_prob, rtol=1e-5, atol=1e-4)
    with pytest.raises(ConfigError, match="3 rows for 7 samples"):
        held_out_likelihood("ode", model, x, Affine(), condition={"label": label[:3]})


def test_what_cannot_be_used_is_refused() -> None:
    for x in (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 2, dtype=torch.complex64), torch.zeros(0, 2)):
        with pytest.raises(DataError, match="floating-point numbers"):
            held_out_likelihood("ode", constant_model(), x, Affine())
    with pytest.raises(ConfigError, match="'ode', 'vlb'"):
        held_out_likelihood("sde", constant_model(), torch.zeros(3, 2), Affine())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"chunk must be .* at least 1, got 0"):
        held_out_likelihood("ode", constant_model(), torch.zeros(3, 2), Affine(), chunk=0)


@pytest.mark.parametrize(
    ("count", "shape", "chunk", "length"),
    [(512, (2,), None, 32768), (512, (1, 28, 28), None, 128), (50_000, (3, 32, 32), None, 3125), (9, (2,), 4, 4)],
)
def test_length_of_a_part(count: int, shape: tuple[int, ...], chunk: int | None, length: int) -> None:
    assert part_length(count, shape, chunk) == length
