"""Operators: transposes, eigenvalues of A A', what they measure, and what they refuse."""

import math

import pytest
import torch

import sde_gen as sg
from sde_gen.inverse import Blur, Downsample, Fourier, Grey, Mask, Matrix, Nonlinear, Reshape
from sde_gen.inverse.measurement import Measurement

G = torch.Generator().manual_seed(0)
SEEN = torch.rand(6, 4, generator=G) < 0.5
OPERATORS = {
    "matrix": (Matrix(torch.randn(5, 24, generator=G)), (24,)),
    "wide": (Matrix(torch.randn(30, 24, generator=G)), (2, 3, 4)),
    "mask": (Mask(SEEN), (3, 6, 4)),
    "blur": (Blur(std=0.8), (3, 6, 4)),
    "kernel": (Blur(torch.randn(3, 5, generator=G)), (1, 7, 5)),
    "large kernel": (Blur(std=1.5), (1, 5, 6)),
    "downsample": (Downsample(2), (3, 6, 4)),
    "grey": (Grey(), (3, 6, 4)),
    "fourier": (Fourier(SEEN), (2, 6, 4)),
    "fourier, odd": (Fourier(torch.rand(5, 7, generator=G) < 0.4), (1, 5, 7)),
    "fourier, all": (Fourier(torch.ones(4, 4)), (1, 4, 4)),
    "vector": (Blur(std=0.8) @ Reshape((1, 6, 4)), (24,)),
    "composed": (Mask(SEEN[:3, :2]) @ Downsample(2) @ Blur(std=0.6), (1, 6, 4)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_transpose_is_the_transpose(name: str) -> None:
    operator, shape = OPERATORS[name]
    x = torch.randn(3, *shape, dtype=torch.float64, generator=G)
    y = torch.randn(operator.apply(x).shape, dtype=torch.float64, generator=G)
    back = operator.transpose(y, shape)
    assert back.shape == x.shape
    left, right = (operator.apply(x) * y).sum(), (x * back).sum()
    assert float((left - right).abs()) < 1e-12 * float(left.abs() + 1)
    assert operator.apply(x.float()).dtype == torch.float32
    assert operator.transpose(y.float(), shape).dtype == torch.float32


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("noise", ["number", "vector", "covariance"])
def test_solves_and_determinants_are_those_of_the_matrix(name: str, noise: str) -> None:
    operator, shape = OPERATORS[name]
    m = math.prod(operator.output_shape(shape))
    std = torch.rand(m, dtype=torch.float64, generator=G) + 0.5
    root = torch.randn(m, m, dtype=torch.float64, generator=G) / m**0.5
    given = {"number": 0.3, "vector": std, "covariance": root @ root.T + 0.2 * torch.eye(m)}[noise]
    r = torch.as_tensor(given, dtype=torch.float64)
    r = r if r.ndim == 2 else torch.diag(r.square().expand(m))
    a, measured = operator.matrix(shape), Measurement(operator, given, shape, torch.device("cpu"))
    assert torch.allclose(torch.linalg.matrix_norm(a, 2), torch.tensor(operator.norm, dtype=a.dtype)) or (
        name in ("composed", "kernel", "large kernel") and torch.linalg.matrix_norm(a, 2) < operator.norm + 1e-12
    )
    x, v = (torch.randn(2, *s, dtype=torch.float64, generator=G) for s in (shape, (m,)))
    y = operator.apply(x).flatten(1) + v
    law = torch.distributions.MultivariateNormal(torch.zeros(m, dtype=torch.float64), r)
    found = measured.log_likelihood(measured.observed(y, True), x)
    torch.testing.assert_close(found, law.log_prob(v), rtol=1e-10, atol=1e-10)
    for variance in (0.7, torch.tensor([[0.1], [2.0]], dtype=torch.float64)):
        each = torch.as_tensor(variance, dtype=torch.float64).reshape(-1)
        for i, u in enumerate(measured.adjoint(measured.solve(measured.white(v), variance))):
            whole = r + each[min(i, len(each) - 1)] * a @ a.T
            expected = torch.linalg.solve(whole, v[i]) @ a
            torch.testing.assert_close(u.flatten(), expected, rtol=1e-9, atol=1e-10)
            det = torch.logdet(whole) - torch.logdet(r)
            got = torch.as_tensor(measured.log_det(variance)).reshape(-1)
            torch.testing.assert_close(got[min(i, len(got) - 1)], det, rtol=1e-9, atol=1e-9)


def test_what_is_known_of_an_operator_serves_without_its_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sde_gen.inverse.measurement._DENSE_NUMBERS", 0)
    v = torch.randn(2, 6, dtype=torch.float64, generator=G)
    operator, shape = OPERATORS["composed"]
    a, measured = operator.matrix(shape), Measurement(operator, 0.3, shape, torch.device("cpu"))
    assert measured.gram is None  # conjugate gradients
    m = len(a)
    expected = torch.linalg.solve(torch.eye(m) + 0.7 * a @ a.T / 0.09, v[:, :m].T).T
    torch.testing.assert_close(measured.solve(v[:, :m], 0.7), expected, rtol=1e-9, atol=1e-9)
    for name in ("mask", "blur", "downsample", "grey", "fourier"):
        operator, shape = OPERATORS[name]
        assert Measurement(operator, 0.3, shape, torch.device("cpu")).gram is not None


def test_what_is_measured() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert Downsample(2)(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert Mask(torch.tensor([[0, 0, 0, 1]] * 4))(x).tolist() == [[3.0, 7.0, 11.0, 15.0]]
    assert Blur([[0.0, 0.0, 1.0]])(x)[0, 0, 0].tolist() == pytest.approx([3.0, 0.0, 1.0, 2.0], abs=1e-5)
    assert Grey([0.0, 1.0])(torch.cat([x, 2 * x], 1))[0, 0].equal(2 * x[0, 0])
    seen = torch.zeros(4, 4, dtype=torch.bool)
    seen[0, 0] = seen[1, 3] = True
    spectrum = torch.fft.fft2(x.double(), norm="ortho")
    found = Fourier(seen)(x.double()).flatten()
    pair = 2**0.5 * spectrum[0, 0, 1, 3]
    torch.testing.assert_close(found, torch.stack([pair.real, pair.imag, spectrum[0, 0, 0, 0].real]))


def test_an_observation_of_a_mask_may_be_the_whole_sample() -> None:
    mask = Mask([True, False, True])
    assert mask.read(torch.tensor([[1.0, math.nan, 3.0]]), (3,)).tolist() == [[1.0, 3.0]]
    assert mask.read(torch.tensor([[1.0, 3.0]]), (3,)).tolist() == [[1.0, 3.0]]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Matrix([1.0, 2.0]), "matrix"),
        (lambda: Matrix([[math.inf]]), "finite"),
        (lambda: Mask([False, False]), "sees nothing"),
        (lambda: Mask([0.5, 1.0]), "True where"),
        (lambda: Mask([True, False])(torch.zeros(2, 3)), "does not fit"),
        (lambda: Matrix([[1.0, 2.0]])(torch.zeros(2, 3)), "2 numbers"),
        (lambda: Blur(), "either a kernel"),
        (lambda: Blur(std=0.0), "std"),
        (lambda: Blur([[1.0, 1.0]]), "odd sizes"),
        (lambda: Blur(std=1.0)(torch.zeros(2, 64)), "Reshape"),
        (lambda: Downsample(1), "at least 2"),
        (lambda: Downsample(3)(torch.zeros(1, 1, 4, 4)), "multiples of 3"),
        (lambda: Grey()(torch.zeros(1, 1, 4, 4)), "3 channels"),
        (lambda: Fourier(torch.zeros(3, 3)), "sees something"),
        (lambda: Fourier(torch.ones(3, 3))(torch.zeros(1, 4, 4)), "does not fit"),
        (lambda: Nonlinear(3), "callable"),
        (lambda: Nonlinear(lambda x: x.sum())(torch.zeros(2, 3)), "row for each"),
        (lambda: Nonlinear(torch.tanh).matrix((3,)), "not linear"),
        (lambda: Nonlinear(torch.tanh).transpose(torch.zeros(1, 3), (3,)), "no transpose"),
        (lambda: Measurement(Mask([True]), -1.0, (1,), torch.device("cpu")), "positive"),
        (lambda: Measurement(Mask([True]), [1.0, 1.0], (1,), torch.device("cpu")), "vector"),
        (lambda: Measurement(Mask([True, True]), [[1.0, 2.0], [2.0, 1.0]], (2,), torch.device("cpu")), "definite"),
    ],
)  # fmt: skip
def test_what_is_refused(make, says: str) -> None:
    with pytest.raises(sg.ConfigError, match=says):
        make()
