"""The programs in docs/training.md run."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

import sde_gen

PAGE = Path(sde_gen.__file__).parents[1] / "docs" / "training.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="an installed package has no docs")


def _program(title: str, mark: str) -> str:
    section = PAGE.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    found = re.search(rf"<!-- {re.escape(mark)} -->\n```python\n(.*?)```", section, flags=re.DOTALL)
    assert found is not None, f"no program marked {mark!r} under {title!r}"
    return found[1]


def test_a_loop_of_ones_own() -> None:
    program = _program("Your own loop", "run by tests/test_docs_training.py")
    body = program.split("ema = EMA")[1].splitlines()
    assert len(body) <= 15
    names: dict[str, Any] = {}
    exec(compile(program, str(PAGE), "exec"), names)  # noqa: S102 - our own page
    x = names["samples"]
    assert x.shape == (1000, 2)
    assert names["loss"] < 0.9, "a network that knows nothing has 1"
    assert 0.5 < float(x.std()) < 1.5


@pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="needs lightning")
@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    program = _program("Your own loop", "run by tests/test_docs_training.py where lightning is installed")
    exec(compile(program, str(PAGE), "exec"), names)  # noqa: S102 - our own page
    assert names["trainer"].global_step == 16
    assert names["samples"].shape == (100, 2)
