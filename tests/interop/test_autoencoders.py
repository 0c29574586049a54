"""Autoencoders of diffusers as codecs: the images of its own pipelines, folders, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import sde_gen as sg
from sde_gen.codecs import latents, read_codec, save_codec
from sde_gen.errors import CheckpointError
from tests.commands.conftest import command as command
from tests.commands.helpers import Command
from tests.interop.nets import gap

diffusers = pytest.importorskip("diffusers")

SMALL = {"in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 2,
         "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
         "scaling_factor": 0.7, "shift_factor": 0.1}  # fmt: skip


def vae(**given):
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(**{**SMALL, **given}).eval()


@torch.no_grad()
def test_latents_are_the_modes_and_decode_as_they_do():
    theirs = vae()
    data = latents(theirs, standardise=False)
    z = theirs.encode(data.pixels.test).latent_dist.mode()
    assert data.shape == (2, 4, 4)
    assert gap(data.test, (z - 0.1) * 0.7) < 1e-6
    assert gap(data.codec.decode(data.transform.inverse(data.test)), theirs.decode(z).sample) < 1e-5


@torch.no_grad()
def test_a_tiny_autoencoder():
    torch.manual_seed(0)
    small = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "num_encoder_blocks": (1, 1),
             "num_decoder_blocks": (1, 1), "latent_channels": 2, "in_channels": 1, "out_channels": 1}  # fmt: skip
    theirs = diffusers.AutoencoderTiny(**small).eval()
    data = latents(theirs, standardise=False)
    assert gap(data.test, theirs.encode(data.pixels.test).latents) < 1e-6
    assert gap(data.codec.decode(data.test), theirs.decode(data.test).sample) < 1e-5


def test_folders_of_theirs_and_of_ours(tmp_path):
    theirs = vae()
    theirs.save_pretrained(tmp_path / "vae")
    read = read_codec(tmp_path)  # of a pipeline
    assert read.digest == read_codec(tmp_path / "vae").digest
    again = read_codec(save_codec(read, tmp_path / "ours"))
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(again.encode(x), read.encode(x))
    assert again.transform == read.transform == sg.data.Affine(0.1, 1 / 0.7)
    config = tmp_path / "vae" / "config.json"
    told = json.loads(config.read_text())
    for wrong in ({"_class_name": "StableDiffusionPipeline"}, {"latent_channels": 10**8}, {"layers_per_block": 10**4}):
        config.write_text(json.dumps({**told, **wrong}))
        with pytest.raises(CheckpointError):
            read_codec(tmp_path / "vae")


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A DiT in latent space, saved by diffusers."""
    torch.manual_seed(1)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=2, out_channels=4, num_layers=1, sample_size=4,
        patch_size=2, num_embeds_ada_norm=3, norm_type="ada_norm_zero", norm_num_groups=4,
    )  # fmt: skip
    folder = tmp_path / "pipe"
    made = diffusers.DiTPipeline(transformer, vae(in_channels=3, out_channels=3, shift_factor=None),
                                 diffusers.DDIMScheduler())  # fmt: skip
    made.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("way", ["imported", "checkpoint"])
def test_samples_of_a_latent_pipeline_are_its_pictures(command: Command, pipeline: Path, way: str) -> None:
    asked = [f"checkpoint=diffusers:{pipeline}"]
    if way == "imported":
        done = command("import_weights", f"from=diffusers:{pipeline}", "run=dit")
        assert done.code == 0, done.err
        asked = ["run=dit"]
    done = command("sample", *asked, "sampler=ddim", "sampler.steps=4", "num_samples=3", "label=1", "out=o")
    assert done.code == 0, done.err
    theirs = diffusers.AutoencoderKL.from_pretrained(pipeline / "vae")
    with np.load("o/samples.npz") as arrays, torch.no_grad():
        z = torch.from_numpy(arrays["model_x"])
        image = (theirs.decode(z / 0.7).sample / 2 + 0.5) * 255  # as DiTPipeline does it
        assert arrays["x"].shape == (3, 3, 8, 8)
        assert gap(torch.from_numpy(arrays["x"]), image) < 1e-5
