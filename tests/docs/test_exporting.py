"""docs/exporting.md is run as it stands, up to what needs other libraries."""

import re
from pathlib import Path

import pytest
import torch

import sde_gen as sg

PAGE = (Path(__file__).parents[2] / "docs" / "exporting.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_what_the_page_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sg.save(sg.ScoreModel(sg.UNet(channels=1), sg.VP()), "runs/first")
    space: dict[str, object] = {}
    assert len(BLOCKS) == 4
    for block in BLOCKS[:3]:  # the last is for diffusers, whose tests are in tests/interop
        exec(block, space)  # noqa: S102 - the page's own words
    network = space["network"]
    assert isinstance(network, torch.nn.Module)
    x, level = torch.randn(16, 1, 8, 8), torch.randn(16)
    again = torch.export.load("network.pt2").module()
    assert torch.allclose(again(x, level), network(x, level), atol=1e-6)
    model = space["again"]
    assert isinstance(model, sg.ScoreModel)
    for a, b in zip(model.network.parameters(), network.parameters(), strict=True):
        assert torch.equal(a, b)
