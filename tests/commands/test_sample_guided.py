"""`sample` with guidance, a clip, and a start from data of one's own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sde_gen as sg
from sde_gen.guidance import Autoguidance, ClassifierFree, Clipped, Edited
from sde_gen.rng import SeededNoise
from tests.commands.helpers import Command

QUICK = ("sample", "sampler=ddim", "sampler.steps=3", "device=cpu", "run=c", "metrics=false", "num_samples=5",
         "overwrite=true", "seed=7")  # fmt: skip


@pytest.fixture
def digits(command: Command) -> Command:
    """A run on digits with labels, some of them dropped."""
    result = command("train", "data=digits", "network=unet", "network.width=4", "network.multipliers=[1]",
                     "class_conditional=true", "objective.label_dropout=0.2", "run=c", "trainer.steps=2",
                     "trainer.batch_size=8", "trainer.preview_samples=0", "device=cpu")  # fmt: skip
    assert result.code == 0, result.err
    return command


def drawn(command: Command, *arguments: str) -> tuple[np.ndarray, dict[str, Any], str]:
    result = command(*QUICK, "out=o", *arguments)
    assert result.code == 0, result.err
    return np.load("o/samples.npz")["model_x"], json.loads(Path("o/report.json").read_text()), result.out


def test_the_commands_draw_what_the_wrappers_draw(digits: Command) -> None:
    model, sampler = sg.load("runs/c"), sg.DDIM(steps=3)
    threes, turns = torch.full((5,), 3), torch.arange(5)

    def same(model: sg.ScoreModel, *arguments: str, label: torch.Tensor = threes) -> dict[str, Any]:
        x, report, _ = drawn(digits, *arguments)
        np.testing.assert_array_equal(x, sampler(model, (5, 1, 8, 8), seed=7, label=label).x)
        return report

    report = same(ClassifierFree(model, 3.0, (0.2, 2.0)), "label=3", "guidance=cfg", "guidance.scale=3",
                  "guidance.interval=[0.2,2]")  # fmt: skip
    assert report["guidance"]["scale"] == 3
    assert report["nfe"] in (3, 4, 5, 6)
    same(Clipped(ClassifierFree(model)), "guidance=cfg", "clip=true", label=turns)
    same(ClassifierFree(model, null=1), "guidance=cfg", "guidance.null=1", "label=3")
    same(Autoguidance(model, model, 1.5), "guidance=autoguidance", "guidance.bad=c", "guidance.scale=1.5", "label=3")
    assert "guidance" not in same(model, "label=3")


def test_a_start_from_ones_own_picture(digits: Command) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save("mine.png")
    np.save("mine.npy", pixels / 255 * 16)
    x0 = torch.from_numpy(pixels / 127.5 - 1).float()[None, None].expand(5, 1, 8, 8)
    edited = Edited(sg.load("runs/c"), 0.3)
    expected = sg.DDIM(steps=3)(edited, start=edited.start(x0, seed=7), label=torch.full((5,), 3)).x
    for name in ("mine.png", "mine.npy"):
        x, report, _ = drawn(digits, f"start={name}", "strength=0.3", "label=3")
        np.testing.assert_allclose(x, expected, atol=1e-5)
        assert (report["start"], report["strength"]) == (name, 0.3)
    np.savez("two.npz", x=np.stack([pixels, pixels * 0])[:, None] / 255 * 16)
    x, _, _ = drawn(digits, "start=two.npz", "strength=0.3", "label=3", "chunk=2")
    np.testing.assert_allclose(x[[0, 2, 4]], expected[[0, 2, 4]], atol=1e-5)


WRONG: list[tuple[tuple[str, ...], int, str]] = [
    (("guidance=cfg", "label=none"), 2, "nothing to strengthen"),
    (("guidance=cfg", "guidance.scale=much"), 2, "scale must be a number"),
    (("guidance=cfg", "guidance.size=2"), 2, "guidance.size is not a setting"),
    (("guidance=free",), 2, "guidance=free is not a choice"),
    (("guidance=autoguidance",), 2, "guidance.bad is missing"),
    (("guidance=autoguidance", "guidance.bad=gone"), 66, "gone"),
    (("start=gone.png",), 66, "gone.png"),
    (("start=wide.npy",), 65, "what is wanted has shape (1, 8, 8)"),
    (("start=words.npy",), 65, "words.npy"),
    (("start=nan.npy",), 65, "NaN"),
    (("strength=0",), 2, "strength"),
]


def test_what_cannot_be_done_is_one_sentence(digits: Command) -> None:
    np.save("wide.npy", np.zeros((3, 9, 9)))
    np.save("nan.npy", np.full((8, 8), np.nan)[None])
    np.save("words.npy", np.array(["a", "b"]))
    for arguments, code, said in WRONG:
        result = digits(*QUICK, "out=o", *arguments)
        assert (result.code, result.err.count("\n"), said in result.err) == (code, 1, True), (arguments, result.err)


def test_guidance_needs_labels_that_were_dropped(command: Command) -> None:
    tiny = ("data=mixture", "data.n=64", "data.n_test=64", "network=mlp", "network.hidden=8", "network.layers=1",
            "trainer.steps=2", "trainer.batch_size=8", "trainer.preview_samples=0", "device=cpu")  # fmt: skip
    assert command("train", *tiny, "run=c").code == 0
    result = command(*QUICK, "guidance=cfg")
    assert (result.code, "has no classes" in result.err) == (2, True), result.err
    result = command(*QUICK, "clip=true")
    assert (result.code, "these data have none" in result.err) == (2, True), result.err
    assert command("train", *tiny, "run=d", "class_conditional=true").code == 0
    result = command(*(a for a in QUICK if a != "run=c"), "run=d", "guidance=cfg", "label=0")
    assert (result.code, "objective.label_dropout=0.1" in result.err) == (2, True), result.err
    with pytest.raises(sg.ConfigError, match="which training never did"):
        ClassifierFree(sg.load("runs/d").under(sg.VE()))
    assert ClassifierFree(sg.load("runs/d"), null=1).null == {"label": 1}


# -- in Python ---------------------------------------------------------------------------------------------------------

MODEL = sg.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [[[0.04, 0.0], [0.0, 0.04]]] * 2).model(sg.VP())


def test_an_edited_start_is_noised_data() -> None:
    x0 = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    edited = Edited(MODEL, 0.4)
    alpha, sigma = edited.perturbation.curves(torch.tensor(0.4))
    expected = alpha * x0 + sigma * SeededNoise(3)(x0, -1, 0)
    torch.testing.assert_close(edited.start(x0, seed=3), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(edited.start(x0[2:], seed=3, first=2), expected[2:], rtol=1e-6, atol=1e-6)
    assert edited.times_within() == (MODEL.times_within()[0], edited.time)
    with pytest.raises(sg.ConfigError, match="give start="):
        sg.DDIM(steps=3)(edited, (4, 2))


def test_an_edit_is_the_same_under_every_formulation() -> None:
    x0 = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lambdas, states = [], []
    for p in (sg.VP(), sg.VE(), sg.FlowMatching(), sg.EDM()):
        oracle = MODEL.under(p)
        oracle.trained_under = MODEL.perturbation
        edited = Edited(oracle, 0.4)
        lambdas.append(float(p.half_log_snr(edited.time)))
        states.append(edited.start(x0) / float(p.size(torch.tensor(edited.time, dtype=torch.float64))))
    assert max(lambdas) - min(lambdas) < 1e-9
    for state in states[1:]:
        torch.testing.assert_close(state, states[0], rtol=0, atol=1e-9)


def test_little_strength_keeps_the_data_and_full_strength_forgets_them() -> None:
    x0 = torch.tensor([[-1.0, 0.3]], dtype=torch.float64).expand(200, 2)
    sampler = sg.Heun(steps=20)
    left = []
    for strength in (0.05, 1.0):
        edited = Edited(MODEL, strength)
        left.append(float((sampler(edited, start=edited.start(x0)).x[:, 0] < 0).double().mean()))
    assert left[0] == 1.0
    assert 0.3 < left[1] < 0.7


@pytest.mark.parametrize(("strength", "wrong"), [(0.0, "strength"), (1.5, "strength"), (1e-4, "less noise")])
def test_a_strength_out_of_range(strength: float, wrong: str) -> None:
    with pytest.raises(sg.ConfigError, match=wrong):
        Edited(MODEL, strength)
