"""Reading off the affine map that a sampler is for a model with an affine score."""

import numpy as np
import torch
from torch import Tensor

import sde_gen as sg


class UnitNoise:
    """Row 0 gets zeros; every (step, draw), on first sight, takes the next `dim` rows for its unit vectors."""

    def __init__(self, dim: int, used: int = 0) -> None:
        self.dim, self.used = dim, used
        self.rows: dict[tuple[int, int], int] = {}

    def __call__(self, like: Tensor, step: int, draw: int) -> Tensor:
        first = self.rows.setdefault((step, draw), 1 + self.used + self.dim * len(self.rows))
        out = torch.zeros(like.shape, dtype=like.dtype)
        out[first : first + self.dim] = torch.eye(self.dim, dtype=like.dtype)
        return out


def law_of(
    sampler: sg.Sampler,
    model: sg.ScoreModel,
    dim: int,
    normals: int,
    start: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact mean, covariance and linear map of what a sampler returns.

    Args:
        normals: how many normal numbers it is expected to draw in all.
        start: mean m and factor L of a start m + L w, instead of the prior that the sampler draws itself.
    """
    given = None
    if start is not None:
        mean, factor = start
        given = np.tile(mean, (1 + dim + normals, 1))
        given[1 : 1 + dim] += factor.T
    noise = UnitNoise(dim, 0 if start is None else dim)
    result = sampler(
        model,
        (1 + normals, dim) if given is None else None,
        start=None if given is None else torch.from_numpy(given),
        noise=noise,
        dtype=torch.float64,
    )
    assert dim * len(noise.rows) == normals, "draws another number of normals than expected"
    out = result.x.numpy()
    linear = (out[1:] - out[0]).T
    return out[0], linear @ linear.T, linear
