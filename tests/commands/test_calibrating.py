"""`evaluate task=...` and `sample task=posterior`: what an observation leaves open, of a run of one's own."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands.helpers import TINY, Command

QUICK = ("device=cpu", "sampler=ancestral", "sampler.steps=3")


@pytest.fixture
def digits(command: Command) -> Command:
    network = ("network=unet", "network.width=8", "network.multipliers=[1]", "network.attention=[]", "network.blocks=1")
    assert command("train", "data=digits", *network, *TINY[6:], "trainer.steps=2", "run=d").code == 0
    return command


@pytest.mark.parametrize(
    "task", [["superres"], ["inpaint", "mask=mask.npy"], ["deblur", "method=smc", "particles=2"]]
)
def test_the_calibration_of_a_task(digits: Command, task: list[str]) -> None:
    np.save("mask.npy", np.arange(64).reshape(8, 8) % 2)
    result = digits("evaluate", "run=d", f"task={task[0]}", *task[1:], *QUICK, "observations=3", "draws=4", "out=e",
                    "noise_std=0.3")  # fmt: skip
    assert result.code == 0, result.err
    found = json.loads(Path("e/calibration.json").read_text())
    assert (found["n"], found["draws"]) == (3, 4)
    assert found["crps"] > 0
    assert [region["level"] for region in found["coverage"]] == [0.5, 0.9]
    assert found["residual"] > 0
    assert "CRPS" in result.out
    with Image.open("e/calibration.png") as picture:
        assert picture.width >= 600


def test_a_row_of_a_matrix_is_seen_as_far_as_its_noise(trained: Command) -> None:
    np.save("a.npy", np.array([[1.0, -1.0]]))
    np.save("y.npy", np.array([0.7]))
    result = trained("sample", "run=tiny", "task=posterior", "operator=a.npy", "observation=y.npy", "num_samples=40",
                     "noise_std=0.01", "sampler=ancestral", "sampler.steps=60", "device=cpu", "out=o")  # fmt: skip
    assert result.code == 0, result.err
    x = np.load("o/samples.npz")["model_x"]
    # Whatever the network says of the data, what is measured to 0.01 stands to about that.
    np.testing.assert_allclose(x[:, 0] - x[:, 1], 0.7, atol=0.1)
    assert Path("o/samples.png").is_file()


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["task=posterior"], 2, "needs operator=FILE"), (["task=posterior", "operator=none.npy"], 66, "operator"),
    (["task=posterior", "operator=wide.npy"], 65, r"shape (m, 2)"), (["task=superres"], 65, "task=posterior"),
])  # fmt: skip
def test_what_does_not_fit(trained: Command, arguments: list[str], code: int, message: str) -> None:
    np.save("wide.npy", np.eye(3))
    for name in ("sample", "evaluate"):
        result = trained(name, "run=tiny", "device=cpu", *arguments)
        assert (result.code, result.err.count("\n")) == (code, 1), result.err
        assert message in result.err
