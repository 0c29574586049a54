"""Affine: forward and inverse, what is stored, what is refused."""

import json
import math

import pytest
import torch

from sde_gen.data import Affine
from sde_gen.errors import DataError


@pytest.mark.parametrize("transform", [Affine(8, 8, 0, 16, 17), Affine(), Affine((1.0, -2.0), (0.5, 3.0))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_undoes_forward(transform: Affine, dtype: torch.dtype) -> None:
    raw = 16 * torch.rand(10, 2, dtype=dtype)
    x = transform.forward(raw)
    assert x.dtype == dtype
    torch.testing.assert_close(transform.inverse(x), raw)


def test_to_unit_takes_the_range_to_minus_one_one_exactly() -> None:
    transform = Affine.to_unit(0, 255, 256)
    x = transform.forward(torch.arange(256, dtype=torch.uint8))
    assert x.dtype == torch.float32
    assert x[0] == -1
    assert x[-1] == 1
    assert torch.equal(transform.quantise(x), torch.arange(256.0))
    assert transform.step == 1.0


def test_quantise_clips_and_rounds_to_the_levels() -> None:
    transform = Affine.to_unit(0, 16, 17)
    x = torch.tensor([-1.7, -1.0, 0.01, 0.99, 5.0])
    assert transform.quantise(x).tolist() == [0.0, 0.0, 8.0, 16.0, 16.0]
    assert Affine.to_unit(0, 1).quantise(torch.tensor([2.0, 0.5])).tolist() == [1.0, 0.75]
    assert Affine().quantise(torch.tensor([2.3])).tolist() == [pytest.approx(2.3)]
    assert Affine.to_unit(0, 1).step is None


def test_log_scale_is_the_log_determinant_of_the_inverse() -> None:
    for transform, shape in ((Affine(8, 8), (1, 2, 2)), (Affine((1.0, 2.0, 3.0), (0.5, 3.0, 7.0)), (3,))):
        x = torch.randn(shape, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(transform.inverse, x).reshape(x.numel(), x.numel())
        assert transform.log_scale(shape) == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet))
    with pytest.raises(DataError, match="has 3 features, but a sample has shape"):
        Affine(0, (1.0, 2.0, 3.0)).log_scale((2,))


@pytest.mark.parametrize("transform", [Affine(8, 8, 0, 16, 17), Affine(), Affine([1, -2], [0.5, 3.0])])
def test_survives_json(transform: Affine) -> None:
    stored = json.loads(json.dumps(transform.to_dict()))
    assert Affine.from_dict(stored) == transform
    assert hash(Affine.from_dict(stored)) == hash(transform)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": 0}, "scale must be > 0"),
        ({"scale": -1.0}, "scale must be > 0"),
        ({"scale": (1.0, 0.0)}, "scale must be > 0"),
        ({"scale": math.nan}, "scale must be a finite number"),
        ({"scale": (1.0, math.inf)}, r"scale\[1\] must be a finite number"),
        ({"shift": "3"}, "shift must be a (finite )?number"),
        ({"shift": True}, "shift must be a (finite )?number"),
        ({"shift": ()}, "shift must hold at least one number"),
        ({"shift": (1.0, 2.0), "scale": (1.0, 2.0, 3.0)}, "must have one length"),
        ({"low": 0}, "low and high go together"),
        ({"low": 1, "high": 1}, "low must be below high"),
        ({"low": math.nan, "high": 1}, "low must be a finite number"),
        ({"low": 0, "high": 1, "levels": 1}, "levels must be a whole number, at least 2"),
        ({"low": 0, "high": 1, "levels": 2.0}, "levels must be a whole number, at least 2"),
        ({"levels": 2}, "needs low and high"),
    ],
)
def test_refuses_bad_values(values: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Affine(**values)


@pytest.mark.parametrize("change", [{"extra": 1}, {"levels": "many"}, {"scale": None}])
def test_from_dict_refuses_what_to_dict_does_not_write(change: dict) -> None:
    with pytest.raises(DataError):
        Affine.from_dict(Affine().to_dict() | change)
    with pytest.raises(DataError, match="expected exactly the entries"):
        Affine.from_dict({"shift": 0.0})
    with pytest.raises(DataError, match="expected exactly the entries"):
        Affine.from_dict([])  # type: ignore[arg-type]


def test_refuses_data_of_another_width() -> None:
    with pytest.raises(DataError, match="has 2 features, but the data has shape"):
        Affine((0.0, 0.0), 1.0).forward(torch.zeros(4, 3))


def test_to_unit_refuses_an_empty_range() -> None:
    with pytest.raises(DataError, match="low must be below high"):
        Affine.to_unit(1, 0)
