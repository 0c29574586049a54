"""Probes, nodes, quadrature, dense output: the pieces that likelihoods are made of."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import sde_gen as sg
from sde_gen.likelihood.adams_bashforth import adams_bashforth, default_nodes, quadrature, weights
from sde_gen.likelihood.divergence import _interleaved, fresh_probes, walsh_probes, with_divergence
from sde_gen.samplers.dormand_prince import dormand_prince

F64 = torch.float64


@pytest.mark.parametrize("shape", [(2,), (3,), (16,), (1, 4, 4), (3, 5, 6)])
def test_walsh_rows_of_a_whole_cycle_average_to_the_identity(shape: tuple[int, ...]) -> None:
    like = torch.zeros(2, *shape, dtype=F64)
    size, draw = math.prod(shape), walsh_probes(1, 1, 7, 0, like)
    bits = math.ceil(math.log2(int(_interleaved(shape).max()) + 1))
    rows = torch.stack([draw(node, like)[0].flatten(1) for node in range(2**bits)])
    assert set(rows.unique().tolist()) == {-1.0, 1.0}
    second = torch.einsum("mbi,mbj->bij", rows, rows) / len(rows)
    assert torch.equal(second, torch.eye(size, dtype=F64).expand(2, size, size))
    assert not torch.equal(rows[:, 0], rows[:, 1])  # samples have signs of their own


def test_a_block_of_walsh_rows_decorrelates_neighbouring_pixels_first() -> None:
    like = torch.zeros(1, 1, 8, 8, dtype=F64)
    draw = walsh_probes(1, 4, 0, 0, like)
    block = draw(5, like)[:, 0, 0]  # four rows in turn
    second = torch.einsum("myx,mvu->yxvu", block, block) / 4
    for y, x, v, u in ((3, 3, 3, 2), (3, 2, 3, 3), (2, 3, 3, 3), (2, 2, 3, 3), (4, 6, 5, 7)):
        assert second[y, x, v, u] == 0
    assert second[0, 0, 0, 2].abs() == 1


def test_interleaving_is_one_to_one() -> None:
    for shape in ((5,), (3, 4), (2, 3, 7), (1, 1, 1)):
        code = _interleaved(shape).flatten().tolist()
        assert len(set(code)) == math.prod(shape)


def test_fresh_probes_are_fresh_and_keyed_by_sample() -> None:
    like = torch.zeros(40, 3, dtype=F64)
    whole, part = fresh_probes(2, 5, 0, like), fresh_probes(2, 5, 30, like[:4])
    assert torch.equal(whole(3, like)[:, 30:34], part(3, like[:4]))
    assert not torch.equal(whole(3, like), whole(4, like))
    assert not torch.equal(whole(3, like)[0], whole(3, like)[1])


def test_divergence_is_the_trace_of_the_jacobian() -> None:
    g = torch.Generator().manual_seed(0)
    a = torch.randn(6, 6, generator=g, dtype=F64)

    def slope(u: torch.Tensor) -> torch.Tensor:
        return (torch.sin(u.flatten(1)) @ a).reshape(u.shape)

    u = torch.randn(4, 2, 3, generator=g, dtype=F64)
    exact = u.flatten(1).cos() @ a.diagonal()
    f, trace = with_divergence(slope, u, None)
    torch.testing.assert_close(trace[:, 0], exact)
    torch.testing.assert_close(f, slope(u))
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: slope(v[None])[0]))(u).reshape(4, 6, 6)
    probes = torch.randn(3, 4, 2, 3, generator=g, dtype=F64)
    for count in (1, 3):
        flat = probes[:count].flatten(2)
        expected = torch.einsum("pbi,bij,pbj->bp", flat, jacobian, flat)
        torch.testing.assert_close(with_divergence(slope, u, probes[:count])[1], expected)
    constant = with_divergence(lambda v: torch.ones_like(v), u, None)[1]
    assert torch.equal(constant, torch.zeros(4, 1, dtype=F64))


@pytest.mark.parametrize("count", [2, 5, 12, 40])
def test_default_nodes(count: int) -> None:
    nodes = default_nodes(6.9, -5.0, count)
    assert len(nodes) == count
    assert (nodes[0], nodes[-1]) == (6.9, -5.0)
    assert (nodes.diff() < 0).all()


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 6])
def test_weights_are_exact_for_polynomials(order: int) -> None:
    nodes = default_nodes(6.0, -4.0, 23).numpy()
    for power in range(order):
        exact = ((-4.0) ** (power + 1) - 6.0 ** (power + 1)) / (power + 1)
        assert quadrature(nodes, order) @ nodes**power == pytest.approx(exact, rel=1e-9, abs=1e-9)
        some = nodes[3 : 3 + order]
        exact = (nodes[12] ** (power + 1) - nodes[11] ** (power + 1)) / (power + 1)
        assert weights(some, nodes[11], nodes[12]) @ some**power == pytest.approx(exact, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_the_multistep_rule_converges_at_its_order(order: int) -> None:
    """u' = -u + sin(s), with the integral of u^2; errors at the last node of even grids."""
    grids = (100, 200, 400) if order < 5 else (60, 120, 240)

    def call(node: int, u: torch.Tensor, s: float) -> tuple[torch.Tensor, torch.Tensor]:
        return -u + math.sin(s), u.square().to(F64)

    exact = solve_ivp(lambda s, y: [-y[0] + math.sin(s), y[0] ** 2], (0, 3), [1.0, 0.0], rtol=1e-12, atol=1e-13)
    errors = []
    for n in grids:
        nodes = torch.linspace(0, 3, n + 1, dtype=F64)
        # Start-up of lower order on a graded beginning, as `default_nodes` has it, here fine enough not to show.
        fine = nodes[1] * 0.5 ** torch.arange(24.0, 0.0, -1.0, dtype=F64)
        path = adams_bashforth(call, torch.ones(1, 1, dtype=F64), torch.cat([nodes[:1], fine, nodes[1:]]), order)
        errors.append(max(abs(float(path.u) - exact.y[0, -1]), abs(float(path.q) - exact.y[1, -1])))
        assert (path.bad < 0).all()
    slopes = -np.diff(np.log(errors)) / np.log(2)
    assert slopes[-1] == pytest.approx(order, abs=0.15)


def test_looking_seldom_changes_nothing() -> None:
    speed = torch.tensor([1.0, 30.0, 5.0, 200.0], dtype=F64)

    def slope(u: torch.Tensor, s: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k = -speed[rows, None] * u + (10 * s).sin()[:, None]
        return torch.where(speed[rows, None] > 100, torch.nan, k), u

    runs = [
        dormand_prince(slope, torch.ones(4, 2, dtype=F64), 0.0, 1.0, rtol=1e-6, atol=1e-8, max_calls=10**5, integrals=2,
                       keep_going=True, look_every=every, at=(0.1, 0.7))
        for every in (1, 8, 50)
    ]  # fmt: skip
    for other in runs[1:]:
        for name in ("u", "q", "calls", "at"):
            torch.testing.assert_close(getattr(other, name), getattr(runs[0], name), rtol=0, atol=0, equal_nan=True)
        assert set(other.failed) == {3}
        assert other.failed[3].indices == (3,)
    assert runs[0].q[:3].isfinite().all()


@pytest.mark.parametrize("ends", [(0.0, 4.0), (4.0, 0.0)])
def test_dense_output_and_integrals(ends: tuple[float, float]) -> None:
    times = np.linspace(0.05, 3.9, 17)

    def right(s: float, y: np.ndarray) -> list[float]:
        return [-y[1] * (1 + s / 4), y[0], y[0] ** 2]

    def slope(u: torch.Tensor, s: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([-u[:, 1] * (1 + s / 4), u[:, 0]], 1), u[:, :1].square()

    ordered = times if ends[1] > ends[0] else times[::-1]
    truth = solve_ivp(right, ends, [1.0, 0.5, 0.0], t_eval=ordered, rtol=1e-12, atol=1e-12)
    end = solve_ivp(right, ends, [1.0, 0.5, 0.0], rtol=1e-12, atol=1e-12)
    got = dormand_prince(slope, torch.tensor([[1.0, 0.5]], dtype=F64), *ends, rtol=1e-7, atol=1e-7, max_calls=10**5,
                         integrals=1, at=times.tolist())  # fmt: skip
    expected = truth.y[:2].T if ends[1] > ends[0] else truth.y[:2].T[::-1]
    np.testing.assert_allclose(got.at[0], expected, atol=3e-6)
    np.testing.assert_allclose(got.q[0], end.y[2:, -1], atol=3e-6)


def test_encode_is_the_closed_form_of_a_gaussian_and_decode_its_inverse() -> None:
    law = sg.GaussianMixture([1.0], [[0.4, -0.2]], [[[0.3, 0.1], [0.1, 0.2]]])
    x = law.sample(6, seed=1)
    values, vectors = torch.linalg.eigh(law.covariances[0])
    for p in (sg.VP(), sg.VE(), sg.FlowMatching()):
        model = law.model(p)
        a, s = float(p.alpha(p.t_max)), float(p.sigma(p.t_max))
        rho = float(p.sigma(p.t_min)) / float(p.alpha(p.t_min))
        stretch = torch.sqrt((a**2 * values + s**2) / (values + rho**2))
        expected = (x - law.means) @ vectors * stretch @ vectors.T + a * law.means
        latent = sg.encode(model, x, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(latent.x, expected, rtol=1e-6, atol=1e-6)
        back = sg.decode(model, latent.x, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(back.x, x, rtol=0, atol=1e-6)
        assert latent.nfe == int(latent.nfe_per_sample.max()) > 0


def test_round_trip_in_float32() -> None:
    torch.manual_seed(1)
    net = sg.MLP(3, hidden=32, layers=2)
    x = torch.randn(8, 3)
    for p in (sg.VP(), sg.SubVP(), sg.EDM()):
        model = sg.ScoreModel(net, p, sg.EDMPreconditioning())
        back = sg.decode(model, sg.encode(model, x).x).x
        assert (back - x).abs().max() < 1e-4


def test_interpolation_starts_and_ends_at_the_two_points() -> None:
    model = sg.GaussianMixture([1.0], [[0.4, -0.2]], [[[0.3, 0.1], [0.1, 0.2]]]).model(sg.VP())
    a, b = torch.tensor([0.5, 0.1], dtype=F64), torch.tensor([-0.3, 0.8], dtype=F64)
    line = sg.interpolate(model, a, b, 5).x
    assert line.shape == (5, 2)
    torch.testing.assert_close(line[[0, -1]], torch.stack([a, b]), rtol=0, atol=1e-4)
    same = sg.interpolate(model, a, a, 3).x
    torch.testing.assert_close(same, a.expand(3, 2), rtol=0, atol=1e-4)
    with pytest.raises(sg.ConfigError, match="one shape"):
        sg.interpolate(model, a, b[:1])
    with pytest.raises(sg.SolverError, match="max_nfe=13"):
        sg.encode(model, a[None], max_nfe=13)


# -- gradients ---------------------------------------------------------------------------------------------------------


class _Scaled(torch.nn.Module):
    """x times a weight, with the gradient as it is or cut."""

    def __init__(self, cut: str = "") -> None:
        super().__init__()
        self.weight, self.cut = torch.nn.Parameter(torch.tensor(0.5)), cut

    def forward(self, x, c_noise):
        if self.cut == "no_grad":
            with torch.no_grad():
                return x * self.weight
        return {"": x, "detach": x.detach(), "constant": torch.zeros_like(x)}[self.cut] * (
            self.weight.detach() if self.cut else self.weight
        )


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.parametrize("steps", [None, 8])
def test_a_network_without_a_gradient_is_refused(steps, divergence):
    x = torch.randn(3, 2)
    settings = {"steps": steps, "divergence": divergence}
    for cut in ("no_grad", "detach"):
        with pytest.raises(sg.ConfigError, match="carries no gradient"):
            sg.log_likelihood(sg.ScoreModel(_Scaled(cut), sg.VP()), x, **settings)
    for cut in ("", "constant"):  # a network that says nothing of x has a gradient of zero
        assert sg.log_likelihood(sg.ScoreModel(_Scaled(cut), sg.VP()), x, **settings).log_prob.isfinite().all()


def test_no_wrong_gradient_leads_through_a_likelihood():
    law = sg.GaussianMixture([1.0], [[0.0, 0.0]], [[[1.0, 0.2], [0.2, 0.5]]])
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    for model in (law.model(sg.VP()), sg.ScoreModel(_Scaled(), sg.VP())):
        for found in (sg.log_likelihood(model, x, steps=8), sg.log_likelihood(model, x, rtol=1e-3, atol=1e-3)):
            assert not any(v.requires_grad for v in (found.log_prob, found.bits_per_dim, found.latent))
    assert torch.equal(law.score(x), torch.autograd.grad(law.log_prob(x).sum(), x)[0]) or torch.allclose(
        law.score(x), torch.autograd.grad(law.log_prob(x).sum(), x)[0], rtol=1e-12
    )
