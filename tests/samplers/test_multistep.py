"""The coefficient of the straight line in an exponential integrator, at all step sizes."""

from fractions import Fraction

import pytest
import torch

from sde_gen.samplers.multistep import phi2


def exact(h: float) -> float:
    """(h - 1 + exp(-h))/h = sum over n >= 1 of -(-h)^n/(n + 1)!, in exact rational arithmetic."""
    x, term, total = Fraction(h), Fraction(1), Fraction(0)
    for n in range(1, 160):
        term = term * -x / (n + 1)
        total -= term
    return float(total)


@pytest.mark.parametrize("h", [1e-300, 1e-12, 1e-5, 1e-3, 5e-3, 9.9e-3, 0.01, 0.0101, 0.05, 0.1, 1.0, 7.0, 30.0])
def test_phi2(h: float) -> None:
    """To 2e-13: at 0.01, where the two forms meet, the series leaves out h^5/2520 = 4e-14 of itself and the difference
    loses 2/h of its digits."""
    assert phi2(torch.tensor(h, dtype=torch.float64)).item() == pytest.approx(exact(h), rel=2e-13, abs=0)


def test_phi2_at_its_ends() -> None:
    values = phi2(torch.tensor([0.0, torch.inf], dtype=torch.float64))
    assert values.tolist() == [0.0, 1.0]
