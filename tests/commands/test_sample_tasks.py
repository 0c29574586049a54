"""`sample task=...`: draws of what an observation leaves open, from files to a picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sde_gen as sg
from sde_gen.inverse import Blur, Downsample, Grey, Mask, Posterior
from tests.commands.helpers import Command

QUICK = ("sample", "device=cpu", "run=c", "num_samples=4", "overwrite=true", "seed=7", "out=o", "noise_std=0.2")
FEW = ("sampler=ddim", "sampler.steps=4")


@pytest.fixture
def colours(command: Command) -> Command:
    """A run on small images of three colours, in two classes."""
    rng = np.random.default_rng(0)
    np.savez("colours.npz", x=rng.integers(0, 256, (40, 3, 4, 4), np.uint8), y=np.arange(40) % 2)
    result = command("train", "data=array_file", "data.path=colours.npz", "data.key=x", "data.label_key=y",
                     "network=unet", "network.width=4", "network.multipliers=[1]", "class_conditional=true",
                     "objective.label_dropout=0.2", "run=c", "trainer.steps=2", "trainer.batch_size=8",
                     "trainer.preview_samples=0", "device=cpu")  # fmt: skip
    assert result.code == 0, result.err
    return command


def drawn(command: Command, *arguments: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    result = command(*QUICK, *arguments)
    assert result.code == 0, result.err
    with np.load("o/samples.npz") as file:
        arrays = dict(file)
    with Image.open("o/samples.png") as picture:
        assert picture.width > 600
    return arrays, json.loads(Path("o/report.json").read_text())


def test_each_task_draws_what_a_posterior_draws(colours: Command) -> None:
    model, rng = sg.load("runs/c"), np.random.default_rng(1)
    whole = rng.integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(whole).save("whole.png")
    Image.fromarray(whole[:2, :2]).save("small.png")
    Image.fromarray(whole[..., 0]).save("grey.png")
    seen = np.arange(16).reshape(4, 4) % 3 > 0
    Image.fromarray(np.where(seen, 255, 0).astype(np.uint8)).save("mask.png")
    np.save("mask.npy", seen)
    y = torch.from_numpy(whole / 127.5 - 1).permute(2, 0, 1)
    mask = Mask(torch.from_numpy(seen))
    for task, operator, seen_y in (
        (("inpaint", "observation=whole.png", "mask=mask.png"), mask, y),
        (("inpaint", "observation=whole.png", "mask=mask.npy", "method=pigdm"), mask, y),
        (("superres", "observation=small.png", "factor=2"), Downsample(2), y[:, :2, :2]),
        (("deblur", "observation=whole.png", "blur=0.7"), Blur(std=0.7), y),
        (("colourise", "observation=grey.png"), Grey(), y[:1]),
    ):
        method = "pigdm" if "method=pigdm" in task else "mmps"
        arrays, report = drawn(colours, f"task={task[0]}", *task[1:], *FEW)
        expected = sg.DDIM(steps=4)(Posterior(model, operator, seen_y, 0.2, method), (4, 3, 4, 4), seed=7).x
        np.testing.assert_allclose(arrays["model_x"], expected, atol=1e-4)
        np.testing.assert_allclose(arrays["mean"], expected.mean(0), atol=1e-4)
        assert (report["task"], report["method"], report["nfe"]) == (task[0], method, 4)
        residual = (operator.apply(expected.double()).flatten(1) - operator.read(seen_y[None], (3, 4, 4))) / 0.2
        assert report["residual"] == pytest.approx(float(residual.square().mean()), rel=1e-3)
        assert "rmse_of_mean" not in report
        assert np.isnan(arrays["observation"]).any() == (task[0] == "inpaint")


def test_a_truth_makes_the_observation_and_is_compared_with(colours: Command) -> None:
    truth = np.random.default_rng(2).integers(0, 256, (3, 4, 4))
    np.save("truth.npy", truth)
    arrays, report = drawn(colours, "task=superres", "truth=truth.npy", "label=1", "guidance=cfg", *FEW)
    x0 = truth / 127.5 - 1
    np.testing.assert_allclose(arrays["truth"], x0, atol=1e-6)
    noise = (arrays["observation"] - x0.reshape(3, 2, 2, 2, 2).mean((2, 4))) / 0.2
    assert 0 < np.abs(noise).max() < 5
    assert report["rmse_of_mean"] == pytest.approx(float(np.sqrt(((arrays["mean"] - x0) ** 2).mean())), rel=1e-3)
    assert 0 <= report["coverage_90"] <= 1
    assert (report["label"], report["guidance"]["scale"]) == (["1"], 2.0)
    again, _ = drawn(colours, "task=superres", "truth=truth.npy", "label=1", "guidance=cfg", "chunk=3", *FEW)
    np.testing.assert_allclose(again["x"], arrays["x"], atol=1e-3)


def test_particles_tell_the_evidence(colours: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sde_gen.jobs.restoring._STEPS", 4)
    np.save("truth.npy", np.random.default_rng(2).integers(0, 256, (3, 4, 4)))
    arguments = ("task=superres", "truth=truth.npy", "method=smc", "particles=3")
    arrays, report = drawn(colours, *arguments)
    y = torch.from_numpy(arrays["observation"])
    sampler = sg.TwistedSMC(particles=3, steps=4)
    expected = sampler(Posterior(sg.load("runs/c"), Downsample(2), y, 0.2), (4, 3, 4, 4), seed=7)
    np.testing.assert_allclose(arrays["model_x"], expected.x, atol=1e-4)
    assert report["log_evidence"] == pytest.approx(float(expected.log_evidence), rel=1e-4)
    assert report["nfe"] == 12
    assert 1 <= report["least_ess"] <= 3
    _, report = drawn(colours, *arguments, "label=cycle")
    assert set(report["log_evidence_of"]) == {"0", "1"}


def test_what_cannot_be_done_is_one_sentence(colours: Command) -> None:
    np.save("truth.npy", np.zeros((3, 4, 4)))
    np.save("small.npy", np.zeros((3, 2, 2)))
    np.save("nothing.npy", np.zeros((4, 4)))
    for arguments, code, said in (
        (("task=inpaint", "truth=truth.npy"), 2, "needs mask=FILE"),
        (("task=inpaint", "truth=truth.npy", "mask=small.npy"), 65, "must hold a mask of shape (4, 4)"),
        (("task=inpaint", "truth=truth.npy", "mask=nothing.npy"), 65, "sees something"),
        (("task=superres",), 2, "needs observation=FILE"),
        (("task=superres", "observation=truth.npy"), 65, "has shape (3, 2, 2)"),
        (("task=superres", "factor=3", "truth=truth.npy"), 2, "not multiples of 3"),
        (("task=deblur", "truth=gone.npy"), 66, "gone.npy"),
        (("task=colourise", "truth=truth.npy", "start=truth.npy"), 2, "leave start out"),
        (("task=paint",), 2, "task"),
        (("task=deblur", "noise_std=0"), 2, "noise_std"),
    ):
        result = colours(*QUICK, *arguments)
        assert (result.code, result.err.count("\n"), said in result.err) == (code, 1, True), (arguments, result.err)
    assert not Path("o").exists()
