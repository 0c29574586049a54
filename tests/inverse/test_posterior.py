"""The guided denoiser: exact on Gaussians, guarded on networks, and a `ScoreModel` as any other."""

import math

import pytest
import torch
from torch import Tensor

import sde_gen as sg
from sde_gen.inverse import Blur, Mask, Matrix, Nonlinear, Posterior, Reshape

G = torch.Generator().manual_seed(0)
ROOT = torch.randn(5, 5, generator=G, dtype=torch.float64)
GAUSSIAN = sg.GaussianMixture([1.0], torch.randn(1, 5, generator=G), (ROOT @ ROOT.T / 5 + 0.1 * torch.eye(5))[None])
MIXTURE = sg.GaussianMixture(
    [0.5, 0.3, 0.2], torch.randn(3, 5, generator=G), torch.stack([0.05 * torch.eye(5), 0.2 * torch.eye(5),
                                                                  GAUSSIAN.covariances[0] / 4])
)  # fmt: skip
A = Matrix(torch.randn(3, 5, generator=G))
Y = torch.tensor([0.3, -0.7, 0.2])
NOISES = {
    "number": 0.3,
    "small": 1e-3,
    "vector": torch.tensor([0.1, 0.2, 0.3]),
    "covariance": torch.tensor([[0.2, 0.1, 0.0], [0.1, 0.3, 0.0], [0.0, 0.0, 0.1]]),
}
PERTURBATIONS = [sg.VP(), sg.VE(), sg.EDM(), sg.FlowMatching(), sg.Cosine(), sg.DDPM(steps=200), sg.NCSN(levels=150)]


def states(p: sg.Perturbation, count: int = 6) -> tuple[Tensor, Tensor]:
    t = torch.linspace(0.05, 0.95, count, dtype=torch.float64)
    return torch.randn(count, 5, generator=G, dtype=torch.float64) * p.size(t)[:, None], t


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("p", PERTURBATIONS, ids=lambda p: type(p).__name__)
def test_moment_matching_is_exact_for_gaussian_data(p: sg.Perturbation, noise: str) -> None:
    """Written out, and by as many steps of conjugate gradients as there are numbers; fewer steps are not exact."""
    exact = GAUSSIAN.condition(A, Y, NOISES[noise]).model(p)
    x, t = states(p)
    expected = exact(x, t).denoised
    for steps, method in ((None, "mmps"), (3, "mmps"), (1, "mmps"), (None, "pigdm")):
        found = Posterior(GAUSSIAN.model(p), A, Y, NOISES[noise], method, steps=steps)
        error = float((found(x, t).denoised - expected).abs().max())
        assert error < 1e-9 if method == "mmps" and steps != 1 else error > 1e-4
    one = Posterior(GAUSSIAN.model(p), A, Y, NOISES[noise])(x, t[2]).denoised  # a level for all, which samplers use
    torch.testing.assert_close(one[2], expected[2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("p", [sg.VP(), sg.VE()], ids=["VP", "VE"])
def test_samplers_give_the_exact_posterior_of_gaussian_data(p: sg.Perturbation) -> None:
    """Sample by sample what they give with the model of the exact posterior, on the same noise."""
    exact = GAUSSIAN.condition(A, Y, 0.3).model(p)
    guided = Posterior(GAUSSIAN.model(p), A, Y, 0.3)
    for sampler in (sg.Ancestral(steps=9), sg.Heun(steps=9), sg.DPMSolverPP2M(steps=9), sg.StochasticHeun(steps=5)):
        one, other = (sampler(m, (4, 5), seed=3, dtype=torch.float64) for m in (exact, guided))
        torch.testing.assert_close(one.x, other.x, rtol=0, atol=1e-9)
        assert one.nfe == other.nfe
        assert (one.products, other.products) == (0, 3 * other.nfe)


def test_the_potential_is_the_likelihood_of_a_noisy_state_for_gaussian_data() -> None:
    p = sg.VP()
    times = torch.tensor([0.7, 0.4, 0.1], dtype=torch.float64)
    x = torch.randn(4, 5, generator=G, dtype=torch.float64)
    levels = Posterior(GAUSSIAN.model(p), A, Y, 0.3).levels(*p.curves(times), x)
    prior, after = GAUSSIAN.model(p), GAUSSIAN.condition(A, Y, 0.3)
    for k, t in enumerate(times):
        # p(y | x_t) = p(x_t | y) p(y) / p(x_t)
        expected = after.model(p).log_prob(x, t) + after.log_evidence - prior.log_prob(x, t)
        denoised, moved, log_psi, rate = levels.twist(k, x)
        torch.testing.assert_close(log_psi, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(moved, after.model(p)(x, t).denoised, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(denoised, prior(x, t).denoised)
        assert rate == 0.0


def test_one_observation_for_each_sample() -> None:
    """Each row as alone, in every chunk, under every way of saying it."""
    model, ys = MIXTURE.model(sg.VP()), torch.randn(7, 3, generator=G)
    posterior, sampler = Posterior(model, A, sg.Rows(ys), 0.3), sg.Ancestral(steps=6)
    whole = sampler(posterior, (7, 5), seed=2, dtype=torch.float64).x
    for i, y in enumerate(ys):
        alone = sampler(Posterior(model, A, y, 0.3), (1, 5), seed=2, first=i, dtype=torch.float64).x
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-12, atol=1e-12)
    for more in ({"chunk": 3}, {"condition": {"observation": ys}}):
        torch.testing.assert_close(sampler(posterior, (7, 5), seed=2, dtype=torch.float64, **more).x, whole)
    x, t = states(sg.VP(), 7)
    each = torch.stack([Posterior(model, A, y, 0.3)(x[i : i + 1], t[i]).denoised[0] for i, y in enumerate(ys)])
    torch.testing.assert_close(posterior(x, t).denoised, each)
    with pytest.raises(sg.ConfigError, match="7 rows for 3 samples"):
        sampler(posterior, (3, 5))
    with pytest.raises(sg.ConfigError, match="7 rows for 3 samples"):
        posterior(x[:3], 0.5)


def test_an_operator_and_its_matrix_are_one() -> None:
    law = sg.GaussianMixture([0.4, 0.6], torch.randn(2, 12, generator=G), 0.3 * torch.eye(12).expand(2, 12, 12))
    x, y = torch.randn(3, 12, generator=G, dtype=torch.float64), torch.randn(12, generator=G)
    for operator in (Blur(std=0.7) @ Reshape((1, 3, 4)), Mask(torch.tensor([True, False] * 6))):
        matrix = Matrix(operator.matrix((12,)))
        seen = y[: len(matrix.entries)]
        for method in ("mmps", "pigdm"):
            one, other = (Posterior(law.model(sg.VP()), o, seen, 0.2, method)(x, 0.4) for o in (operator, matrix))
            torch.testing.assert_close(one.denoised, other.denoised, rtol=1e-10, atol=1e-10)
        a, b = (law.condition(o, seen, 0.2) for o in (operator, matrix.entries))
        assert float(a.log_evidence) == pytest.approx(float(b.log_evidence), rel=1e-12)


def test_a_nonlinear_measurement_that_is_linear_is_guided_as_one() -> None:
    x, t = states(sg.VP())
    for method in ("mmps", "pigdm"):
        by_hand = Posterior(MIXTURE.model(sg.VP()), Nonlinear(lambda v: v @ A.entries.to(v).T), Y, 0.3, method)
        known = Posterior(MIXTURE.model(sg.VP()), A, Y, 0.3, method)
        torch.testing.assert_close(by_hand(x, t).denoised, known(x, t).denoised, rtol=1e-9, atol=1e-10)


class Wild(torch.nn.Module):
    """A network whose Jacobian is neither symmetric nor positive."""

    def __init__(self, size: float) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.w = torch.nn.Parameter(size * torch.randn(5, 5, generator=g))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.sin(x @ self.w) * 3 + (0 if label is None else label[:, None])


@pytest.mark.parametrize("size", [0.3, 3.0, 30.0])
@pytest.mark.parametrize("steps", [None, 1, 3, 8])
def test_a_network_whose_jacobian_is_no_covariance(size: float, steps: int | None) -> None:
    model = sg.ScoreModel(Wild(size), sg.VP())
    posterior = Posterior(model, A, Y, 1e-2, steps=steps)
    x = sg.Ancestral(steps=20, grid="lambda")(posterior, (16, 5), seed=1).x
    assert bool(x.isfinite().all())
    whole = posterior(x, 0.3).denoised
    for i in range(4):  # guarded sample by sample
        torch.testing.assert_close(posterior(x[i : i + 1], 0.3).denoised[0], whole[i], rtol=1e-3, atol=1e-3)


def test_the_guard_takes_the_step_of_pigdm_where_there_is_no_curvature() -> None:
    model = sg.ScoreModel(lambda x, c: 30 * x, sg.VP(), sg.NoisePrediction())  # D falls with x: J = -C I
    x = torch.randn(4, 5, generator=G, dtype=torch.float64)
    one, other = (Posterior(model, A, Y, 0.1, m, steps=2)(x, 0.5).denoised for m in ("mmps", "pigdm"))
    torch.testing.assert_close(one, other)
    # Written out, nothing is done along such directions.
    torch.testing.assert_close(Posterior(model, A, Y, 0.1)(x, 0.5).denoised, model(x, 0.5).denoised)


def test_nothing_is_guided_beyond_its_reach_on_a_network() -> None:
    model = sg.ScoreModel(Wild(0.3), sg.VE())
    x = 10 * torch.randn(2, 5, generator=G)
    t = sg.VE().time(torch.tensor([-math.log(4.9), -math.log(5.1)], dtype=torch.float64))
    moved = (Posterior(model, A, Y, 0.1)(x, t).denoised - model(x, t).denoised).abs().amax(1)
    assert moved[0] > 0
    assert moved[1] == 0
    for k in (0, 1):
        alone = Posterior(model, A, Y, 0.1)(x, t[k]).denoised
        torch.testing.assert_close(alone[k], Posterior(model, A, Y, 0.1)(x, t).denoised[k])
    assert Posterior(MIXTURE.model(sg.VE()), A, Y, 0.1).reach == math.inf


def test_under_another_formulation() -> None:
    posterior = Posterior(sg.ScoreModel(Wild(0.3), sg.VP()), A, Y, 0.3)
    grid = sg.GivenLambdas((-3.0, -1.0, 0.5, 2.0, 3.0))
    start = torch.randn(3, 5, generator=G, dtype=torch.float64)
    answers = []
    for p in (sg.VP(), sg.VE(), sg.FlowMatching()):
        x = start * float(p.sigma(p.time(-3.0)))
        answers.append(sg.Heun(grid=grid)(posterior.under(p), start=x).x)
    for other in answers[1:]:
        torch.testing.assert_close(other, answers[0], rtol=1e-6, atol=1e-6)


def test_labels_go_to_the_model_that_is_guided() -> None:
    model = sg.ScoreModel(Wild(0.3), sg.VP())
    posterior = Posterior(model, A, sg.Rows(Y.expand(4, 3)), 0.3)
    label = torch.tensor([0.0, 0.0, 1.0, 1.0])
    x = sg.Ancestral(steps=4)(posterior, (4, 5), seed=0, label=label, chunk=3).x
    assert not torch.equal(x, sg.Ancestral(steps=4)(posterior, (4, 5), seed=0, label=0 * label).x)


def test_samples_are_taken_down_to_noise_below_that_of_the_measurement() -> None:
    for p in (sg.VP(), sg.VE(), sg.FlowMatching()):
        model = GAUSSIAN.model(p)
        low = Posterior(model, A, Y, 1e-3).times_within()[0]
        reached = float((-p.half_log_snr(low)).exp())
        least = float((-p.half_log_snr(0.0)).exp())
        assert reached == pytest.approx(max(1e-3 / (3 * A.norm), least), rel=1e-6)
        assert Posterior(model, A, Y, 10.0).times_within() == model.times_within()
    network = Posterior(sg.ScoreModel(Wild(0.1), sg.VP()), A, Y, 1e-9)
    assert network.times_within()[0] == pytest.approx(sg.VP().t_min)  # trained no further


def test_a_guided_model_has_no_likelihood() -> None:
    posterior = Posterior(MIXTURE.model(sg.VP()), A, Y, 0.3)
    for ask in (sg.log_likelihood, sg.variational_bound, sg.encode):
        with pytest.raises(sg.ConfigError, match=r"denoiser of no data.*log_evidence"):
            ask(posterior, torch.zeros(2, 5))


def test_training_is_left_as_it_was_and_no_gradient_leaks() -> None:
    network = Wild(0.3).train()
    posterior = Posterior(sg.ScoreModel(network, sg.VP()), A, Y, 0.3)
    x = sg.Ancestral(steps=3)(posterior, (2, 5)).x
    assert network.training
    assert network.w.grad is None
    assert not x.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(sg.Ancestral(steps=3)(posterior, (2, 5)).x.clone(), x)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda m: Posterior(1, A, Y, 0.3), "ScoreModel"),
        (lambda m: Posterior(m, A.entries, Y, 0.3), "Operator"),
        (lambda m: Posterior(m, A, Y, 0.0), "positive"),
        (lambda m: Posterior(m, A, Y, 0.3, "dps"), "'mmps', 'pigdm'"),
        (lambda m: Posterior(m, A, Y, 0.3, steps=0), "steps"),
        (lambda m: Posterior(m, A, Y, 0.3, data_std=-1.0), "data_std"),
        (lambda m: Posterior(m, A, Y[:2], 0.3)(torch.zeros(2, 5), 0.5), "measures 3 numbers"),
        (lambda m: Posterior(m, A, Y.expand(2, 3), 0.3)(torch.zeros(2, 5), 0.5), "sg.Rows"),
        (lambda m: Posterior(m, A, Y * math.nan, 0.3)(torch.zeros(2, 5), 0.5), "finite"),
        (lambda m: Posterior(sg.ScoreModel(lambda x, c: x.detach(), sg.VP()), A, Y, 0.3)(torch.zeros(2, 5), 0.5),
         "no gradient"),
    ],
)  # fmt: skip
def test_what_is_refused(make, says: str) -> None:
    with pytest.raises(sg.ConfigError, match=says):
        make(MIXTURE.model(sg.VP()))
