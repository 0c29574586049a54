"""Fréchet and kernel distances of features against torchmetrics, given the same network."""

import pytest
import torch
from torch import Tensor, nn

from sde_gen import metrics

fid = pytest.importorskip("torchmetrics.image.fid")
kid = pytest.importorskip("torchmetrics.image.kid")


class _Network(nn.Module):
    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 6, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.double()).tanh().mean((2, 3))


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(40, 3, 8, 8, generator=g), torch.rand(50, 3, 8, 8, generator=g) ** 2
    # Their distances take bytes; these are bytes on our scale.
    return tuple((s * 255).round() / 127.5 - 1 for s in (x, y))  # type: ignore[return-value]


def _bytes(x: Tensor) -> Tensor:
    return ((x + 1) * 127.5).round().to(torch.uint8)


def test_frechet_distance(images: tuple[Tensor, Tensor]) -> None:
    network = _Network()
    theirs = fid.FrechetInceptionDistance(feature=network, normalize=False, input_img_size=(3, 8, 8))
    theirs.set_dtype(torch.float64)
    theirs.update(_bytes(images[1]), real=True)
    theirs.update(_bytes(images[0]), real=False)
    ours = metrics.NetworkFeatures(network, "tanh", values="bytes")
    assert metrics.frechet_distance(ours(images[0]), ours(images[1])) == pytest.approx(
        float(theirs.compute()), rel=1e-6
    )


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save:UserWarning")
def test_kernel_distance(images: tuple[Tensor, Tensor]) -> None:
    network = _Network()
    # One subset with all of the smaller set: theirs draws as many of the larger one.
    theirs = kid.KernelInceptionDistance(feature=network, subsets=1, subset_size=40, normalize=False)
    theirs.update(_bytes(images[1][:40]), real=True)
    theirs.update(_bytes(images[0]), real=False)
    ours = metrics.NetworkFeatures(network, "tanh", values="bytes")
    expected, _ = theirs.compute()
    assert metrics.kernel_distance(ours(images[0]), ours(images[1][:40])) == pytest.approx(float(expected), rel=1e-5)
