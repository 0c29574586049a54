"""Runs in latent space: a codec beside the run, decoded pictures, distances in either space."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sde_gen as sg
from sde_gen.codecs import Codec, read_codec, save_codec
from sde_gen.config.restore import find_checkpoint, stored_data
from sde_gen.metrics import summary
from tests.codecs.small import trained as autoencoder
from tests.commands.helpers import Command

HERE = "trust=[tests.codecs.small]"
SAMPLE = ("sampler=dpmpp2m", "sampler.steps=3", "device=cpu")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves what all begin with."""
    return tmp_path_factory.mktemp("latents") / "kept"


@pytest.fixture
def latent(command: Command, kept: Path) -> Command:
    """As `command`, with a run `l` on latents of digits."""
    if kept.exists():
        shutil.copytree(kept, ".", dirs_exist_ok=True)
        return command
    save_codec(Codec(autoencoder()), "ae")
    result = command("train", "data=latents", "data.codec=ae", HERE, "run=l", "network=unet", "network.width=8",
                     "network.blocks=1", "class_conditional=true", "trainer.steps=2", "trainer.batch_size=8",
                     "trainer.preview_samples=4", "trainer.preview_steps=2", "device=cpu")  # fmt: skip
    assert result.code == 0, result.err
    assert "latents of samples of shape (1, 8, 8); their codec's error on held-out ones is 0." in result.out
    shutil.copytree(".", kept)
    return command


def test_a_run_keeps_its_codec_and_samples_are_decoded(latent: Command) -> None:
    assert sorted(path.name for path in Path("runs/l/codec").iterdir()) == ["config.json", "model.safetensors"]
    with Image.open("runs/l/samples/step_00000002.png") as picture:
        assert picture.mode == "L"  # of digits, and not of four channels
    shutil.rmtree("ae")  # a run needs it no more
    done = latent("sample", "run=l", HERE, *SAMPLE, "num_samples=5", "out=s", "label=3", "animation=true")
    assert done.code == 0, done.err
    assert json.loads(Path("s/report.json").read_text())["space"] == "pixels"
    codec, model = read_codec("runs/l", trust=["tests.codecs.small"]), sg.load("runs/l")
    with np.load("s/samples.npz") as arrays:
        z, x = torch.from_numpy(arrays["model_x"]), arrays["x"]
        assert (z.shape, x.shape) == ((5, 4, 2, 2), (5, 1, 8, 8))
        raw = 8 * codec.decode(model.transform.inverse(z)).numpy() + 8  # digits are 0 to 16
        np.testing.assert_allclose(x, raw, rtol=1e-5, atol=1e-4)
    expected = sg.DPMSolverPP2M(steps=3)(model, (5, 4, 2, 2), seed=0, label=torch.full((5,), 3)).x
    torch.testing.assert_close(z, expected, rtol=1e-4, atol=1e-4)
    done = latent("train", "resume=l", "trainer.steps=3", HERE)
    assert done.code == 0, done.err
    assert "continued from step 2" in done.out


def test_a_codec_that_is_not_there_or_another_is_refused(latent: Command) -> None:
    Path("runs/l/codec").rename("elsewhere")
    done = latent("sample", "run=l", HERE, *SAMPLE)
    assert done.code != 0
    assert "their codec is not at runs/l/codec; copy it there" in done.err
    other = autoencoder(2)
    save_codec(Codec(other), "runs/l/codec")
    done = latent("sample", "run=l", HERE, *SAMPLE)
    assert "runs/l/codec is not the one that checkpoint" in done.err
    done = latent("sample", "run=l", *SAMPLE)
    assert "add trust=[tests.codecs.small]" in done.err


def test_a_run_goes_on_with_the_same_latents(latent: Command) -> None:
    Path("ae").rename("moved")
    done = latent("train", "resume=l", "data=latents", "data.codec=moved", "trainer.steps=3", HERE)
    assert done.code == 0, done.err
    assert "changed: data.codec was ae, is moved" in done.out
    save_codec(Codec(autoencoder(2)), "moved")
    done = latent("train", "resume=l", "data=latents", "data.codec=moved", "trainer.steps=4", HERE)
    assert "was trained on other data than latents of digits" in done.err


def test_distances_in_either_space(latent: Command) -> None:
    asked = ("evaluate", "run=l", HERE, *SAMPLE, "num_samples=40", "nll.samples=4", "nll.steps=5", "compared=30")
    reports, arrays = {}, {}
    for space in ("pixels", "latent"):
        done = latent(*asked, f"space={space}", f"out={space}")
        assert done.code == 0, done.err
        reports[space] = json.loads(Path(space, "evaluation.json").read_text())
        assert (reports[space]["space"], reports[space]["likelihood_space"]) == (space, "latent")
        assert "NLL by the ODE of latents" in done.out
        with np.load(Path(space, "evaluation.npz")) as found:
            arrays[space] = {name: found[name] for name in ("x", "model_x")}
    assert reports["pixels"]["likelihood"]["ode"]["nll"] == reports["latent"]["likelihood"]["ode"]["nll"]
    data = stored_data(find_checkpoint("runs/l")[0], trust=["tests.codecs.small"])
    z = torch.from_numpy(arrays["latent"]["model_x"])
    np.testing.assert_array_equal(arrays["pixels"]["model_x"], z.numpy())
    x = data.codec.decode(data.transform.inverse(z))
    np.testing.assert_allclose(arrays["pixels"]["x"], data.pixels.transform.inverse(x).numpy(), atol=1e-3)
    for space, seen, real in (("pixels", x, data.pixels), ("latent", z, data)):
        expected = summary(seen, real.test, real.train, metrics=["energy_distance"], largest=30)[0].value
        (got,) = [m["value"] for m in reports[space]["metrics"] if m["name"] == "energy_distance"]
        assert got == pytest.approx(expected, rel=1e-4)
    done = latent(*asked, "samples=pixels/evaluation.npz", "likelihood=none", "metrics=[mmd]", "out=again")
    (got,) = (m["value"] for m in json.loads(Path("again/evaluation.json").read_text())["metrics"])
    (was,) = (m["value"] for m in reports["pixels"]["metrics"] if m["name"] == "mmd")
    assert got == pytest.approx(was, rel=1e-5)


def test_a_picture_to_start_from_is_encoded_and_tasks_are_refused(latent: Command) -> None:
    data = sg.data.digits()
    np.save("start.npy", data.transform.inverse(data.test[:1]).numpy())
    done = latent("sample", "run=l", HERE, *SAMPLE, "start=start.npy", "strength=0.01", "num_samples=1", "out=e",
                  "metrics=false")  # fmt: skip
    assert done.code == 0, done.err
    expected = autoencoder().decode(autoencoder().encode(data.test[:1])).detach()
    with np.load("e/samples.npz") as arrays:
        assert float((data.transform.forward(torch.from_numpy(arrays["x"])) - expected).abs().max()) < 0.5
    done = latent("sample", "run=l", HERE, *SAMPLE, "task=superres", "observation=start.npy")
    assert done.code != 0
    assert "this one draws latents" in done.err


@pytest.mark.slow
def test_a_latent_model_draws_digits(command: Command) -> None:
    """Decoded samples of a trained model against held-out digits, beside reconstructions: energy distances.

    Noise of one unit in latent space has an energy distance of more than 1; the codec alone one of about 0.1.
    """
    save_codec(Codec(autoencoder(600)), "ae")
    done = command("train", "data=latents", "data.codec=ae", HERE, "run=l", "parameterization=v", "trainer.steps=800",
                   "trainer.preview_samples=0", "network=unet", "network.width=32", "device=cpu")  # fmt: skip
    assert done.code == 0, done.err
    done = command("evaluate", "run=l", HERE, "sampler=dpmpp2m", "sampler.steps=20", "num_samples=360",
                   "likelihood=none", "metrics=[energy_distance]", "out=o", "device=cpu")  # fmt: skip
    (found,) = json.loads(Path("o/evaluation.json").read_text())["metrics"]
    data = stored_data(find_checkpoint("runs/l")[0], trust=["tests.codecs.small"])
    noise = data.codec.decode(torch.randn(360, *data.shape, generator=torch.Generator().manual_seed(0)))
    assert found["value"] < 0.5 * sg.metrics.energy_distance(noise, data.pixels.test)
