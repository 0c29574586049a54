"""Langevin steps that may be refused: detailed balance, and the chains made of them, number by number."""

import numpy as np
import pytest
import torch
from torch import Tensor

import sde_gen as sg
from sde_gen.samplers.metropolis import log_acceptance

LAW = sg.GaussianMixture([0.6, 0.4], [[0.8, 0.0], [-0.7, 0.3]], [[[0.05, 0.0], [0.0, 0.2]], [[0.1, 0.03], [0.03, 0.2]]])
COV = torch.tensor([[0.4, 0.1], [0.1, 0.2]], dtype=torch.float64)
GAUSS = sg.GaussianMixture([1.0], [[0.2, -0.3]], COV[None])
MORE = torch.Generator().manual_seed(4)
X, Y = (0.7 * torch.randn(200, 2, generator=MORE, dtype=torch.float64) for _ in range(2))


def normal(x: Tensor, mean: Tensor, e: float) -> Tensor:
    """log N(x; mean, 2 e), up to a constant."""
    return -(x - mean).square().sum(1) / (4 * e)


@pytest.mark.parametrize("e", [0.003, 0.1, 1.0])
def test_detailed_balance(e: float) -> None:
    """p(x) q(x, y) min(1, a(x, y)) is the same from y to x, pair by pair."""

    def flow(x: Tensor, y: Tensor) -> Tensor:
        accept = log_acceptance(x, LAW.score(x), y, LAW.score(y), e, LAW.log_prob(y) - LAW.log_prob(x))
        return LAW.log_prob(x) + normal(y, x + e * LAW.score(x), e) + accept.clamp_max(0.0)

    torch.testing.assert_close(flow(X, Y), flow(Y, X), rtol=1e-12, atol=1e-12)


def test_scores_alone_give_a_gaussian_s_density() -> None:
    """Its score is linear, and the trapezoid then exact; for a mixture it is off by the cube of the distance."""
    gain = GAUSS.log_prob(Y) - GAUSS.log_prob(X)
    known, alone = (log_acceptance(X, GAUSS.score(X), Y, GAUSS.score(Y), 0.1, g) for g in (gain, None))
    torch.testing.assert_close(known, alone, rtol=1e-9, atol=1e-9)
    errors = []
    for h in (0.04, 0.02):
        near = X + h * (Y - X)
        gain = LAW.log_prob(near) - LAW.log_prob(X)
        both = [log_acceptance(X, LAW.score(X), near, LAW.score(near), 0.1, g) for g in (gain, None)]
        errors.append(float((both[0] - both[1]).abs().mean()))
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.15)


def by_hand(
    p: sg.Perturbation, t: float, x: np.ndarray, e: float, n: int, seed: int, *, metropolis: bool
) -> np.ndarray:
    """N((0.2, -0.3), COV) at time t: n steps in numpy, with the sampler's own normal numbers."""
    alpha, var = float(p.alpha(t)), float(p.sigma(t)) ** 2
    mean, precision = alpha * np.array([0.2, -0.3]), np.linalg.inv(alpha**2 * COV.numpy() + var * np.eye(2))
    noise, like = sg.SeededNoise(seed), torch.empty(len(x), 2, dtype=torch.float64)

    def log_p(v: np.ndarray) -> np.ndarray:
        return -0.5 * np.einsum("bi,ij,bj->b", v - mean, precision, v - mean)

    def score(v: np.ndarray) -> np.ndarray:
        return -(v - mean) @ precision

    def log_q(to: np.ndarray, at: np.ndarray) -> np.ndarray:
        return -((to - at - e * score(at)) ** 2).sum(1) / (4 * e)

    for j in range(n):
        new = x + e * score(x) + np.sqrt(2 * e) * noise(like, 0, 2 * j).numpy()
        ratio = log_p(new) - log_p(x) + log_q(x, new) - log_q(new, x)
        uniform = torch.special.ndtr(noise(like, 0, 2 * j + 1)[:, 0]).numpy()
        keep = np.log(uniform) < ratio if metropolis else np.ones(len(x), bool)
        if metropolis and e > 0.1:
            assert 0 < keep.sum() < len(x)
        x = np.where(keep[:, None], new, x)
    return x


class Score(torch.nn.Module):
    """The same score as a network, whose density is not known."""

    def __init__(self, p: sg.Perturbation) -> None:
        super().__init__()
        self.exact = GAUSS.model(p)
        self.p = p

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.exact(x, 0.3).noise


@pytest.mark.parametrize("metropolis", [True, False])
@pytest.mark.parametrize("p", [sg.VP(), sg.VE(sigma_max=5.0)], ids=str)
def test_a_chain_by_hand(p: sg.Perturbation, metropolis: bool) -> None:
    t, e, x = 0.3, 0.15, X.numpy()
    sampler = sg.LangevinDynamics(steps=7, step_size=e, t=t, metropolis=metropolis)
    expected = by_hand(p, t, x, e, 7, 5, metropolis=metropolis)
    scaled = float(p.size(t)) != pytest.approx(1.0)  # a network is then given another input
    for model in [GAUSS.model(p)] if scaled else [GAUSS.model(p), sg.ScoreModel(Score(p), p)]:
        result = sampler(model, start=X, seed=5)
        np.testing.assert_allclose(result.x, expected, rtol=1e-9, atol=1e-9)
        assert result.nfe == 8


def test_without_a_start_it_begins_at_the_size_of_the_state() -> None:
    p = sg.VE(sigma_max=5.0)
    x = sg.LangevinDynamics(steps=1, step_size=1e-20, t=0.3)(GAUSS.model(p), (4, 2), dtype=torch.float64).x
    first = sg.SeededNoise(0)(torch.empty(4, 2, dtype=torch.float64), -1, 0) * float(p.size(0.3))
    torch.testing.assert_close(x, first, rtol=0, atol=1e-8)
    with pytest.raises(sg.ConfigError, match="sigma = 0 at its time"):
        sg.LangevinDynamics(t=0.0)(GAUSS.model(sg.VP()), (4, 2))


def test_metropolis_keeps_the_law_at_a_step_that_breaks_it_without() -> None:
    """Variances over 4000 chains that begin in the target, at a step of 0.6 of its squared size."""
    model, t, e = GAUSS.model(sg.VP()), 0.3, 0.2
    p = sg.VP()
    alpha, sigma = float(p.alpha(t)), float(p.sigma(t))
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = alpha * GAUSS.sample(4000, seed=2) + sigma * noise
    kept, off = (
        sg.LangevinDynamics(steps=40, step_size=e, t=t, metropolis=m)(model, start=start).x for m in (True, False)
    )
    true = alpha**2 * COV.diagonal() + sigma**2
    assert float((kept.var(0) / true - 1).abs().max()) < 0.07
    # Unadjusted: variance c/(1 - e/(2 c)) along an axis of variance c.
    assert float((off.var(0) / true - 1).min()) > 0.15


def test_annealing_at_232_levels_of_5_steps() -> None:
    """Standard deviation of a Gaussian at the end, by the recursion of its variance: the original ends too wide."""
    law, p = sg.GaussianMixture([1.0], [[0.0]], [[[0.5]]]), sg.NCSN(levels=232)
    biases = {}
    for rule in ("langevin", "consistent"):
        sampler = sg.AnnealedLangevin(rule=rule)
        share, rho = 2 * sampler.snr**2, p.sigma(sampler.times(law.model(p))).tolist()
        variance = rho[0] ** 2
        for i, level in enumerate(rho):
            for j in range(5):
                after = rho[i + 1] if j == 4 and i + 1 < len(rho) else level
                c = share if rule == "langevin" else max(share, 1 - after / level)
                added = 2 * c * level**2 if rule == "langevin" else after**2 - (1 - c) ** 2 * level**2
                variance = variance * (1 - c + c * 0.5 / (0.5 + level**2)) ** 2 + added
        last = 0.5 / (0.5 + rho[-1] ** 2)
        biases[rule] = (variance**0.5 * last) / 0.5**0.5 - 1
        x = sampler(law.model(p), (3000, 1), dtype=torch.float64).x  # and in fact
        assert float(x.std()) == pytest.approx((1 + biases[rule]) * 0.5**0.5, rel=0.04)
    assert biases["langevin"] > 0.05
    assert abs(biases["consistent"]) < 0.01
