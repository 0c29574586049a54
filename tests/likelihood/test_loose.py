"""The adaptive likelihood is about as exact as it is told to be, at loose tolerances too."""

import pytest
import torch

import sde_gen as sg


def law() -> sg.GaussianMixture:
    """2-D, 16 modes of unequal weight and place, standard deviations from 0.05 to 0.3."""
    g = torch.Generator().manual_seed(3)
    weights = torch.rand(16, generator=g, dtype=torch.float64) + 0.2
    means = 4 * torch.rand(16, 2, generator=g, dtype=torch.float64) - 2
    sizes = 0.05 * 6 ** torch.rand(16, 2, generator=g, dtype=torch.float64)
    return sg.GaussianMixture(weights, means, torch.diag_embed(sizes.square()))


@pytest.mark.parametrize(("tol", "bar", "calls"), [(1e-2, 4e-3, 90), (1e-3, 5e-4, 110), (1e-5, 3e-5, 170)])
def test_error_at_a_tolerance(tol: float, bar: float, calls: int) -> None:
    """Mean absolute error in nats per dimension, the known terms taken off, and calls of a sample in the mean."""
    mixture = law()
    x = mixture.sample(256, seed=1)
    ll = sg.log_likelihood(mixture.model(sg.VP()), x, rtol=tol, atol=tol)
    error = (ll.log_prob - ll.prior_mismatch - ll.truncation - mixture.log_prob(x)).abs() / mixture.dim
    assert float(error.mean()) < bar
    assert float(ll.nfe_per_sample.double().mean()) < calls
