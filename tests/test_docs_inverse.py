"""The programs in docs/inverse.md run, one after the other."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import sde_gen
from sde_gen.inverse import Mask

PAGE = Path(sde_gen.__file__).parents[1] / "docs" / "inverse.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="an installed package has no docs")


def test_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 7
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102 - our own page
    exact, result = names["exact"], names["result"]
    assert float((result.log_evidence - exact.log_evidence).abs()) < 0.1
    assert names["x"].shape == result.x.shape[:0] + (3, 5)
    other = names["wide"].law.condition(Mask([True, False]), [0.1], 0.3)
    found = names["seen"].experts.mean(0)[0].logit()  # of two alike, the log of the ratio of the evidence
    assert float((found - exact.log_evidence + other.log_evidence).abs()) < 0.2
    assert names["mixed"].shape == (256, 2)
    assert len(torch.unique(names["signs"], dim=0)) == 4  # every pair of signs is found
    assert "particles, MMPS" in capsys.readouterr().out
