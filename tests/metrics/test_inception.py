"""Features of other projects' networks: refused in one sentence without them, and the same numbers with them."""

import importlib
import sys

import pytest
import torch

from sde_gen import metrics
from sde_gen.errors import DataError, MissingInputError


@pytest.mark.parametrize(("make", "package"), [("inception", "torch_fidelity"), ("dinov2", "timm")])
def test_without_its_library(make: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(package)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingInputError, match=r"pip install 'sde_gen\[fid\]'"):
        getattr(metrics, make)()


def test_the_inception_network_of_torch_fidelity(tmp_path) -> None:
    """At random weights, which its constructor reads from a file as it does its own."""
    pytest.importorskip("torch_fidelity", exc_type=Exception)
    theirs = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    cls = theirs.FeatureExtractorInceptionV3
    state = {}

    def as_it_is(self, _):
        state.update(self.state_dict())

    torch.save({}, tmp_path / "empty.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "load_state_dict", as_it_is)
        torch.manual_seed(0)
        cls("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(tmp_path / "empty.pth"))
    torch.save(state, tmp_path / "random.pth")
    features = metrics.inception(str(tmp_path / "random.pth"))
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    module = cls("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(tmp_path / "random.pth"))
    pixels = ((x + 1) / 2 * 255).round().to(torch.uint8)
    torch.testing.assert_close(features(x), module(pixels)[0].double(), rtol=1e-4, atol=1e-5)
    assert (features.name, features(x).shape) == ("inception-v3", (3, 2048))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match="weights of features=inception cannot be used"):
        metrics.inception(str(tmp_path / "other.pth"))


def test_the_class_token_of_dinov2() -> None:
    timm = pytest.importorskip("timm", exc_type=Exception)
    torch.manual_seed(0)
    features = metrics.dinov2("vit_small_patch14_dinov2.lvd142m", size=28, pretrained=False)
    x = torch.rand(2, 3, 28, 28) * 2 - 1
    whole = timm.create_model("vit_small_patch14_dinov2.lvd142m", pretrained=False, img_size=28, num_classes=0)
    whole.load_state_dict(features.module.state_dict(), strict=False)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        token = whole.eval().forward_features(((x + 1) / 2 - mean) / std)[:, 0]
    torch.testing.assert_close(features(x), token.double(), rtol=1e-4, atol=1e-4)
    assert features.name == "vit-small-patch14-dinov2"
