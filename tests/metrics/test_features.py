"""What networks are given when their features are asked for."""

import pytest
import torch
from torch import Tensor, nn

from sde_gen import metrics
from sde_gen.errors import ConfigError, DataError


class _Flat(nn.Module):
    """Remembers what it was given, and returns it flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.given: list[Tensor] = []

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.training or torch.is_grad_enabled():
            raise RuntimeError("not in evaluation mode")
        self.given.append(x)
        return [x.flatten(1).float()]


IMAGES = torch.tensor([-1.0, 0.0, 0.5, 2.0]).reshape(1, 1, 2, 2)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("unit", [0.0, 0.5, 0.75, 1.0]),
        ("signed", [-1.0, 0.0, 0.5, 1.0]),
        ("bytes", [0, 128, 191, 255]),
        ("imagenet", [(v - 0.485) / 0.229 for v in (0.0, 0.5, 0.75, 1.0)]),
    ],
)
def test_values(values, expected: list[float]) -> None:
    module = _Flat()
    found = metrics.NetworkFeatures(module, "flat", values=values)(IMAGES)
    assert found.shape == (1, 12)
    assert found.dtype == torch.float64
    assert found[0, :4].tolist() == pytest.approx(expected)
    assert module.given[0].dtype == (torch.uint8 if values == "bytes" else torch.float32)


def test_size_channels_and_batches() -> None:
    module = _Flat()
    features = metrics.NetworkFeatures(module, "flat", size=6, channels=None)
    assert features(torch.zeros(300, 1, 3, 3)).shape == (300, 36)
    assert [len(x) for x in module.given] == [128, 128, 44]
    assert metrics.NetworkFeatures(module, "flat")(torch.rand(2, 3, 4, 4)).shape == (2, 48)


@pytest.mark.parametrize("training", [True, False])
def test_a_network_keeps_the_mode_of_every_part(training: bool) -> None:
    module = nn.Sequential(nn.BatchNorm2d(3), _Flat()).train(training)
    module[0].train(not training)  # one part apart from the others
    before = [m.training for m in module.modules()]
    metrics.NetworkFeatures(module, "flat")(IMAGES)
    assert [m.training for m in module.modules()] == before
    with pytest.raises(ConfigError):
        metrics.NetworkFeatures(nn.Sequential(module[0], nn.Flatten(0)), "flat")(IMAGES)
    assert [m.training for m in module.modules()] == before


def test_maps_are_averaged_and_other_shapes_refused() -> None:
    found = metrics.NetworkFeatures(lambda x: x, "map")(torch.stack([-torch.ones(3, 2, 2), torch.ones(3, 2, 2)]))
    assert found.tolist() == [[0.0] * 3, [1.0] * 3]
    with pytest.raises(ConfigError, match=r"must return \(n, d\)"):
        metrics.NetworkFeatures(lambda x: x.mean(), "mean")(IMAGES)


def test_the_name_is_in_the_titles_of_what_uses_them() -> None:
    x, y = torch.rand(20, 1, 2, 2), torch.rand(20, 1, 2, 2)
    features = metrics.NetworkFeatures(_Flat(), "flat")
    found = metrics.summary(x, y, y, features=features, metrics=["energy_distance", "frechet_distance", "precision"])
    assert [r.title for r in found] == ["energy distance", "Fréchet distance (flat)", "precision (flat)"]
    expected = metrics.frechet_distance(features(x), features(y))
    assert found[1].value == pytest.approx(expected, rel=1e-9)


def test_what_cannot_be_used_is_refused() -> None:
    features = metrics.NetworkFeatures(_Flat(), "flat")
    with pytest.raises(DataError, match="use features=pixels"):
        features(torch.rand(5, 2))
    with pytest.raises(DataError, match="NaN"):
        features(IMAGES * float("nan"))
    for wrong in ({"module": 3}, {"name": ""}, {"size": 0}, {"values": "raw"}, {"channels": 1}):
        with pytest.raises(ConfigError, match="features"):
            metrics.NetworkFeatures(**{"module": _Flat(), "name": "x", **wrong})
