"""Folders of diffusers, both ways, and what a stranger's folder may not do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sde_gen as sg
from tests.interop.nets import TINY, gap, states, theirs, unet

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::sde_gen.errors.BetweenNodesWarning"),
]
D = sg.interop.diffusers
X = states(2, 3, 8, 8)


@pytest.fixture
def folder(tmp_path):
    diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


def _edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_folder_as_it_was_saved(folder):
    model = sg.load(folder)
    assert model.shape == (3, 8, 8)
    assert model.perturbation == sg.DDPM(1000)
    assert model.parameterization == sg.NoisePrediction(sg.Convention(sg.DDPM(1000), "index"))
    assert model.transform.to_dict()["levels"] == 256
    assert not model.training
    pipeline = diffusers.DDPMPipeline.from_pretrained(folder)
    clipped = D.from_pretrained(folder, clip="own")
    mine = D.own_sampler(clipped, 20)(clipped, start=X, noise=_no_noise).x
    from diffusers.schedulers import scheduling_ddpm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduling_ddpm, "randn_tensor", lambda shape, **_: torch.zeros(shape))
        bare = theirs(pipeline.unet, pipeline.scheduler, 20, X)
    assert gap(mine, bare) < 5e-5


def _no_noise(like, step, draw):
    return torch.zeros_like(like)


def test_a_network_at_the_top_of_its_folder(folder):
    """As older folders have it."""
    want = sg.load(folder)(X, 0.5).noise
    for path in (folder / "unet").iterdir():
        path.rename(folder / path.name)
    (folder / "unet").rmdir()
    (folder / "scheduler" / "scheduler_config.json").rename(folder / "scheduler_config.json")
    assert torch.equal(sg.load(folder)(X, 0.5).noise, want)


def test_a_network_alone_needs_its_scheduler(folder):
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(sg.CheckpointError, match=r"what the network predicts is not known; give scheduler="):
        D.from_pretrained(folder / "unet")
    model = D.from_pretrained(folder / "unet", scheduler=diffusers.DDPMScheduler(prediction_type="v_prediction"))
    assert isinstance(model.parameterization, sg.VPrediction)


def test_weights_of_torchs_own_format(folder):
    from safetensors.torch import load_file

    want = sg.load(folder)(X, 0.5).noise
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    assert torch.equal(sg.load(folder)(X, 0.5).noise, want)
    file.with_suffix(".bin").write_bytes(b"\x80\x04cposix\nsystem\n(S'touch owned'\ntR." + b" " * 500_000)
    with pytest.raises(sg.CheckpointError, match="safe_serialization"):
        sg.load(folder)
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("model_index.json", {"unet": ["os", "system"]}, "no class of diffusers; code that comes with a folder"),
        ("model_index.json", {"unet": ["diffusers", "AutoencoderKL"]}, "'AutoencoderKL' is not one that sde_gen runs"),
        ("model_index.json", {"unet": ["my_code", "UNet2DModel"]}, "no class of diffusers; code that comes"),
        ("unet/config.json", {"_class_name": "posix.system"}, "'posix.system' is not one that sde_gen runs"),
        ("unet/config.json", {"auto_map": {"AutoModel": "evil.Net"}}, "auto_map, which needs other people's code"),
        ("unet/config.json", {"quantization_config": {"quant_method": "x"}}, "quantization_config, which needs"),
        ("unet/config.json", {"block_out_channels": [4096, 8192]}, "they do not belong together"),
        ("unet/config.json", {"block_out_channels": [10**12, 8]}, "is no size that is built"),
        ("unet/config.json", {"layers_per_block": 10**9}, "is no size that is built"),
        ("unet/config.json", {"block_out_channels": [8] * 10**4}, "lists 10000 parts"),
        ("unet/config.json", {"down_block_types": ["os.system", "DownBlock2D"]}, "cannot be built with these settings"),
        ("unet/config.json", {"out_channels": 5}, "in_channels=3 and out_channels=5 do not go together|cannot be read"),
        ("scheduler/scheduler_config.json", {"_class_name": "os.system"}, "is not one that sde_gen knows"),
        ("scheduler/scheduler_config.json", {"_class_name": "LCMScheduler"}, "a consistency function is not a score"),
        ("scheduler/scheduler_config.json", {"_class_name": "CMStochasticIterativeScheduler"}, "not a score"),
        ("scheduler/scheduler_config.json", {"prediction_type": "magic"}, "prediction_type='magic' is not known"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "magic"}, "beta_schedule='magic' is not known"),
        ("scheduler/scheduler_config.json", {"variance_type": "learned"}, "learned_range is read"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}, "is no number of nodes"),
        ("scheduler/scheduler_config.json", {"trained_betas": [2.0, 3.0]}, "its settings are of no use"),
        ("scheduler/scheduler_config.json", {"beta_end": "x"}, "its settings are of no use"),
    ],
)
def test_what_is_refused(folder, file, values, message):
    _edit(folder / file, **values)
    with pytest.raises((sg.CheckpointError, sg.ConfigError), match=message) as caught:
        sg.load(folder)
    assert "\n" not in str(caught.value)


def test_flow_with_turned_time_and_fourier_networks_under_others():
    with pytest.raises(sg.CheckpointError, match="invert_sigmas=true counts time from noise to data"):
        D.from_modules(unet(), diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True))
    with pytest.raises(sg.CheckpointError, match=r"divides what it says by sigma.*give ScoreSdeVeScheduler"):
        D.from_modules(unet(time_embedding_type="fourier"), diffusers.DDPMScheduler())
    with pytest.raises(sg.ConfigError, match="came with no scheduler of diffusers"):
        D.own_sampler(sg.ScoreModel(lambda x, c: x, sg.VP()), 5)


def test_a_damaged_folder(folder):
    (folder / "model_index.json").write_text("[" * 100_000)
    with pytest.raises(sg.CheckpointError, match="damaged"):
        sg.load(folder)
    (folder / "model_index.json").write_text('{"vae": ["diffusers", "AutoencoderKL"]}')
    with pytest.raises(sg.CheckpointError, match="names no unet, transformer or model; there are vae"):
        sg.load(folder)


def test_a_network_of_the_configuration_trains_from_scratch():
    """`network=Network network.model=UNet2DModel network.config={...}`."""
    network = D.Network("UNet2DModel", {**TINY, "in_channels": 1, "out_channels": 1})
    model = sg.ScoreModel(network, sg.VP())
    assert network.shape == (1, 8, 8)
    loss = sg.DenoisingScoreMatching()(model, states(4, 1, 8, 8))
    loss.mean().backward()
    assert all(p.grad is not None for p in network.parameters())
    with pytest.raises(sg.ConfigError, match="has no setting 'in_chanels'; did you mean 'in_channels'"):
        D.Network("UNet2DModel", {"in_chanels": 1})


def test_saved_and_loaded_by_the_library_itself(folder, tmp_path):
    model = sg.load(folder)
    again = sg.load(sg.save(model, tmp_path / "ours"))
    assert torch.equal(again(X, 0.5).noise, model(X, 0.5).noise)
    assert (again.shape, again.parameterization) == (model.shape, model.parameterization)
    assert D.own_sampler(again, 10) == D.own_sampler(model, 10)


# -- out ---------------------------------------------------------------------------------------------------------------

PROCESSES = [sg.VP(), sg.VE(), sg.EDM(), sg.Cosine(), sg.FlowMatching(), sg.DDPM(1000), sg.NCSN()]


def _ours(p, parameterization=None):
    torch.manual_seed(0)
    model = sg.ScoreModel(sg.UNet(channels=3, width=8, multipliers=(1, 2)), p, parameterization).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.any():
                weight.normal_(std=0.1)
    model.shape = (3, 8, 8)
    return model


@pytest.mark.parametrize("parameterization", [sg.NoisePrediction(), sg.VPrediction()], ids=["noise", "v"])
@pytest.mark.parametrize("p", PROCESSES, ids=lambda p: type(p).__name__)
def test_export(p, parameterization, tmp_path):
    """Their DDIM loop on what was saved, and ours on the same levels under the model's own formulation."""
    model = _ours(p, parameterization)
    place = D.save_pretrained(model, tmp_path / "out")
    pipeline = diffusers.DDIMPipeline.from_pretrained(place)
    pipeline.scheduler.set_timesteps(20)
    index = pipeline.scheduler.timesteps
    lambdas = pipeline.unet.lambdas[index]
    t = p.time(lambdas)
    scale = float((p.alpha(t[0]) ** 2 + p.sigma(t[0]) ** 2).sqrt())
    mine = sg.DDIM(grid=sg.GivenTimes(tuple(t.tolist())))(model, start=X * scale).x
    assert gap(mine, theirs(pipeline.unet, pipeline.scheduler, 20, X)) < 3e-6
    again = sg.load(place)
    assert (again.perturbation, again.parameterization, again.shape) == (p, parameterization, (3, 8, 8))
    assert torch.equal(again(X, float(t[10])).noise, model(X, float(t[10])).noise)


def test_what_cannot_be_exported(tmp_path):
    with pytest.raises(sg.ConfigError, match=r"SubVP.*lost in the float32 tables.*model.under\(sg.VP\(\)\)"):
        D.save_pretrained(_ours(sg.SubVP()), tmp_path / "out")
    D.to_pipeline(_ours(sg.SubVP()).under(sg.VP()))
    with pytest.raises(sg.ConfigError, match=r"its \.base"):
        D.to_pipeline(sg.guidance.Clipped(_ours(sg.VP())))
    with pytest.raises(sg.ConfigError, match="scheduler must be one of DDIM, DDPM, got 'Heun'"):
        D.to_pipeline(_ours(sg.VP()), scheduler="Heun")


def test_a_network_of_diffusers_goes_back_as_itself(folder, tmp_path):
    """The other side needs no sde_gen."""
    place = D.save_pretrained(sg.load(folder), tmp_path / "out")
    assert json.loads((place / "model_index.json").read_text())["unet"] == ["diffusers", "UNet2DModel"]
    pipeline = diffusers.DDIMPipeline.from_pretrained(place)
    assert pipeline.scheduler.config.beta_schedule == "linear"
    assert torch.equal(sg.load(place)(X, 0.5).noise, sg.load(folder)(X, 0.5).noise)


def test_an_exported_folder_names_no_class_of_others(tmp_path):
    place = D.save_pretrained(_ours(sg.VP()), tmp_path / "out")
    config = json.loads((place / "unet" / "config.json").read_text())
    config["model"]["network"]["_target_"] = "os.system"
    (place / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(sg.CheckpointError, match=r"os\.system is not one of sde_gen's own classes"):
        sg.load(place)


def test_nothing_imports_diffusers_before_it_is_asked():
    code = (
        "import sys, sde_gen as sg; sg.interop.diffusers.Network; sg.load; import sde_gen.jobs.sampling; "
        "import sde_gen.jobs.importing; sys.exit('diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
