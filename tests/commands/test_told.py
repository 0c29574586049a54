"""Vectors that a network is told, from a file to samples, by commands."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_gen.data import array_file
from sde_gen.errors import ConfigError, DataError
from tests.commands.helpers import TINY, Command

DATA = ("data=array_file", "data.path=lines.npz", "data.told=[vector]", "class_conditional=true", *TINY[3:])


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """x = (c, -c) and its vector (1, c), of 64 samples; two conditions to sample by."""
    c = np.random.default_rng(0).normal(size=(64, 1))
    np.savez(tmp_path / "lines.npz", x=np.hstack([c, -c]), vector=np.hstack([np.ones_like(c), c]))
    np.savez(tmp_path / "two.npz", vector=np.array([[1.0, -1.5], [1.0, 1.0]]))
    return tmp_path


def test_from_a_file_to_samples(command: Command, lines: Path) -> None:
    result = command("train", *DATA, "run=a")
    assert result.code == 0, result.err
    stored = json.loads(Path("runs/a/checkpoints/step_00000004/config.json").read_text("utf-8"))
    assert (stored["network"]["vector_size"], stored["network"].get("token_size", 0)) == (2, 0)
    result = command("sample", "run=a", "sampler=ddim")
    assert result.code == 2
    assert "was always told vector; give told=FILE.npz" in result.err
    for count, name in ((4, "one"), (2, "other")):
        result = command("sample", "run=a", "sampler=ddim", "sampler.steps=4", f"num_samples={count}", "told=two.npz",
                         f"out={name}", "device=cpu")  # fmt: skip
        assert result.code == 0, result.err
    assert json.loads(Path("one/report.json").read_text("utf-8"))["told"] == "two.npz"
    first, second = (np.load(f"{name}/samples.npz")["model_x"] for name in ("one", "other"))
    np.testing.assert_allclose(first[:2], second, rtol=1e-5, atol=1e-5)
    result = command("evaluate", "run=a", "sampler=ddim", "sampler.steps=4", "num_samples=8", "likelihood=none")
    assert result.code == 0, result.err


def test_guidance_strengthens_a_vector(command: Command, lines: Path) -> None:
    result = command("train", *DATA, "run=b", "objective.condition_dropout=0.2", "trainer.preview_samples=4")
    assert result.code == 0, result.err
    drawn = {}
    sampling = ("sample", "run=b", "sampler=ddim", "sampler.steps=3", "num_samples=4", "device=cpu")
    for name, more in (("free", ()), ("guided", ("told=two.npz", "guidance=cfg", "guidance.scale=0"))):
        result = command(*sampling, f"out={name}", *more)
        assert result.code == 0, result.err
        drawn[name] = np.load(f"{name}/samples.npz")["model_x"]
    np.testing.assert_allclose(drawn["free"], drawn["guided"], rtol=1e-5, atol=1e-5)


def test_what_a_file_holds_follows_its_samples(lines: Path) -> None:
    made = array_file(lines / "lines.npz", told=("vector",))
    for x, told in ((made.train, made.train_told), (made.test, made.test_told)):
        torch.testing.assert_close(made.transform.inverse(x)[:, 0].float(), told["vector"][:, 1], rtol=1e-4, atol=1e-5)
    assert array_file(lines / "lines.npz").train_told == {}
    with pytest.raises(ConfigError, match="told must be one of 'vector', 'tokens', got 'words'"):
        array_file(lines / "lines.npz", told=("words",))
    with pytest.raises(DataError, match=r"told needs an array 'tokens' of a \.npz"):
        array_file(lines / "lines.npz", told=("tokens",))
    for name, value, message in (
        ("short", np.zeros((5, 2)), "64 samples need as many rows of vector, got 5"),
        ("flat", np.zeros(64), r"vector must be numbers of shape \(N, size\), got float64 \(64,\)"),
        ("nan", np.full((64, 2), np.nan), "vector has values that are NaN or infinite"),
    ):
        np.savez(lines / f"{name}.npz", x=np.zeros((64, 2)) + np.arange(64)[:, None], vector=value)
        with pytest.raises(DataError, match=message):
            array_file(lines / f"{name}.npz", told=("vector",))
