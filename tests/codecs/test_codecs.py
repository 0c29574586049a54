"""Encoders and decoders, the latents of data, and their folders."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import sde_gen as sg
from sde_gen.codecs import Codec, Pair, latents, read_codec, save_codec
from sde_gen.config.objects import build
from sde_gen.data import Description
from sde_gen.errors import CheckpointError, ConfigError, DataError, MissingInputError
from tests.codecs.small import Small, trained

HERE = "tests.codecs.small"


@pytest.fixture(scope="module")
def data():
    return latents(trained())


def test_latents_have_unit_channels_and_lead_back_to_what_they_were_made_of(data):
    assert (data.kind, data.shape, data.name) == ("image", (4, 2, 2), "latents of digits")
    flat = data.train.transpose(0, 1).flatten(1).double()
    assert flat.mean(1).abs().max() < 1e-6
    assert (flat.std(1, correction=0) - 1).abs().max() < 1e-6
    z = trained().encode(data.pixels.test)
    torch.testing.assert_close(data.transform.inverse(data.test), z, rtol=1e-5, atol=1e-5)
    x = data.codec.decode(data.transform.inverse(data.test))
    torch.testing.assert_close(x, trained().decode(z), rtol=1e-4, atol=1e-4)
    assert float((x - data.pixels.test).square().mean()) < 0.35 * float(data.pixels.test.var())
    assert torch.equal(data.test_labels, data.pixels.test_labels)


def test_the_numbers_of_a_codec_itself(data):
    own = latents(trained(), standardise=False)
    torch.testing.assert_close(own.train, (trained().encode(own.pixels.train) - 0.25) * 0.5)
    assert own.transform.log_scale(own.shape) == pytest.approx(16 * np.log(2))
    assert data.transform.log_scale(data.shape) == pytest.approx(4 * sum(np.log(data.transform.scale)))
    assert own.fingerprint != data.fingerprint


def test_the_fingerprint_is_that_of_what_they_were_made_of(data):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        other = latents(Small())
    again = latents(trained(), sg.data.digits())
    fewer = latents(trained(), sg.data.digits(held_out=100))
    assert again.fingerprint == data.fingerprint
    assert len({data.fingerprint, other.fingerprint, fewer.fingerprint}) == 3


def test_a_description_comes_back(data):
    about = Description.from_dict(json.loads(json.dumps(data.to_dict())))
    assert about == data.description
    assert about.codec == data.codec.digest
    assert about.pixels == data.pixels.description
    with pytest.raises(DataError, match="description of the data"):
        Description.from_dict({**data.to_dict(), "pixels": {"shape": [1]}})


def test_a_folder_holds_plain_data_and_comes_back(tmp_path, data):
    folder = save_codec(data.codec, tmp_path / "c")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    codec = read_codec(folder, trust=[HERE])
    assert codec.digest == data.codec.digest
    x = data.pixels.test[:3]
    assert torch.equal(codec.encode(x), data.codec.encode(x))
    assert latents(str(folder), trust=[HERE]).fingerprint == data.fingerprint


def test_a_strangers_folder_runs_no_code(tmp_path, data):
    folder = save_codec(data.codec, tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"tests\.codecs\.small\.Small is not one of sde_gen's own.*add trust="):
        read_codec(folder)
    # A configuration may not bring its own permission.
    node = {"_target_": "sde_gen.codecs.latents", "codec": str(folder), "trust": [HERE]}
    with pytest.raises(CheckpointError, match="add trust="):
        build(node, stored=True)
    for wrong in ({"_target_": "os.system", "command": "true"}, {"_target_": f"{HERE}.Small", "channels": 10**9}, 3):
        (folder / "config.json").write_text(json.dumps({"codec": wrong}))
        with pytest.raises(CheckpointError):
            read_codec(folder, trust=[HERE])


def test_damaged_and_missing_folders_are_refused(tmp_path, data):
    folder = save_codec(data.codec, tmp_path / "c")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        read_codec(folder, trust=[HERE])
    (folder / "config.json").unlink()
    with pytest.raises(MissingInputError, match="of an AutoencoderKL, or of a run"):
        read_codec(folder)
    with pytest.raises(MissingInputError, match="no folder"):
        read_codec(tmp_path / "nowhere")


def test_two_modules_make_one_codec_and_modes_are_kept():
    flat = Pair(nn.Sequential(nn.Flatten(), nn.Dropout(0.5)), nn.Unflatten(1, (1, 8, 8))).train()
    found = latents(flat, standardise=False)
    assert (found.kind, found.shape) == ("vector", (64,))
    assert torch.equal(found.train, found.pixels.train.flatten(1))
    assert flat.training
    assert torch.equal(Codec(flat).decode(found.test), found.pixels.test)


def test_what_encoders_return_beside_tensors():
    class Law(nn.Module):
        def encode(self, x):
            return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: 2 * x, sample=lambda: 1 / 0))

        def decode(self, z):
            return SimpleNamespace(sample=z / 2)

    x = torch.rand(3, 1, 2, 2)
    assert torch.equal(Codec(Law()).encode(x), 2 * x)
    assert torch.equal(Codec(Law()).decode(2 * x), x)


def test_what_is_no_codec_is_refused():
    with pytest.raises(ConfigError, match="encode and decode"):
        latents(nn.Linear(2, 2))
    with pytest.raises(DataError, match=r"cannot encode samples of shape \(2,\)"):
        latents(trained(), sg.data.rings(n=8, n_test=8))
    with pytest.raises(DataError, match="another codec, or data of its shape"):
        latents(Pair(nn.Identity(), nn.Flatten()))
    with pytest.raises(DataError, match="NaN"):
        Codec(Pair(nn.Identity(), nn.Identity())).encode(torch.full((1, 2), torch.nan))
    with pytest.raises(ConfigError, match=r"data\.source=csv_file needs more than its name"):
        latents(trained(), "csv_file")
    with pytest.raises(ConfigError, match=r"data\.source must be"):
        latents(trained(), 3)
    with pytest.raises(ConfigError, match="cannot be written down"):
        save_codec(Codec(Pair(nn.Identity(), nn.Identity())), "unused")
