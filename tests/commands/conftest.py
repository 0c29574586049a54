"""Running the commands inside the test's own process, in a folder of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sde_gen.evaluate import main as evaluate
from sde_gen.import_weights import main as import_weights
from sde_gen.report import main as report
from sde_gen.sample import main as sample
from sde_gen.train import main as train
from tests.commands.helpers import TINY, Command, Result


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """`command("train", "sde=vp", ...)` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(name: str, *arguments: str) -> Result:
        capsys.readouterr()
        mains = {
            "train": train,
            "sample": sample,
            "evaluate": evaluate,
            "import_weights": import_weights,
            "report": report,
        }
        code = mains[name](list(arguments))
        return Result(code, *capsys.readouterr())

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def trained(command: Command) -> Command:
    """As `command`, with a tiny run called `tiny`."""
    result = command("train", *TINY, "run=tiny")
    assert result.code == 0, result.err
    return command
