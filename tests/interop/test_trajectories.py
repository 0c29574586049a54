"""The same trajectories as diffusers' own loops, from the same noise, with its networks and its schedulers (0.42.1).

Each gap is max |ours - theirs| / max |theirs| at the end of the trajectory. Its tables are float32; with equal tables
the gap is that of float64.
"""

import pytest
import torch

import sde_gen as sg
from tests.interop.nets import gap, ours, states, theirs, unet
from tests.peers.problem import Noise

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::sde_gen.errors.BetweenNodesWarning"),
]
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
X = states(2, 3, 8, 8)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_ddim(betas, predicts, spacing):
    network = unet()
    scheduler = diffusers.DDIMScheduler(
        beta_schedule=betas, prediction_type=predicts, clip_sample=False, timestep_spacing=spacing
    )
    # Of data their noise is derived anew in float32; the cosine chain ends at alpha = 5e-5, which their table rounds.
    bar = 2e-4 if predicts == "sample" else 2e-5 if (betas, spacing) == ("squaredcos_cap_v2", "trailing") else 3e-6
    assert gap(ours(network, scheduler, 20, X), theirs(network, scheduler, 20, X)) < bar


@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
def test_ddim_in_float64_with_one_table(predicts):
    network, x = unet().double(), X.double()
    scheduler = diffusers.DDIMScheduler(prediction_type=predicts, clip_sample=False)
    model = sg.interop.diffusers.from_modules(network, scheduler)
    p = model.perturbation
    scheduler.alphas_cumprod = p.alpha(p.nodes) ** 2
    scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    mine = sg.interop.diffusers.own_sampler(model, 20)(model, start=x).x
    assert gap(mine, theirs(network, scheduler, 20, x)) < 1e-12


@pytest.mark.parametrize(
    ("given", "clip", "steps"),
    [
        ({"variance_type": "fixed_small", "clip_sample": False}, False, 100),
        ({"variance_type": "fixed_large", "clip_sample": False}, False, 100),
        ({}, "own", 100),
        ({"thresholding": True}, "own", 100),
        ({"variance_type": "learned_range", "clip_sample": False}, False, 250),
    ],
    ids=["small", "large", "clip", "threshold", "learned"],
)
def test_ddpm(monkeypatch, given, clip, steps):
    from diffusers.schedulers import scheduling_ddpm

    network = unet(out=6) if steps == 250 else unet()
    scheduler, noise = diffusers.DDPMScheduler(**given), Noise()
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", noise.in_order())
    assert gap(ours(network, scheduler, steps, X, clip, noise=noise), theirs(network, scheduler, steps, X)) < 5e-5


def test_a_clip_from_which_noise_follows():
    """DDIM with use_clipped_model_output=True, the step of a denoiser; without it, their default, noise is not that of
    the clipped x0."""
    scheduler, network = diffusers.DDIMScheduler(), unet()
    mine = ours(network, scheduler, 20, X, "own")
    assert gap(mine, theirs(network, scheduler, 20, X, use_clipped_model_output=True)) < 3e-5
    assert gap(mine, theirs(network, scheduler, 20, X)) > 0.1


@pytest.mark.parametrize(
    ("name", "given", "steps", "bar"),
    [
        ("DDIMScheduler", {**SD, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}, 20, 3e-6),
        ("EulerDiscreteScheduler", SD, 15, 3e-6),
        ("EulerDiscreteScheduler", {**SD, "timestep_spacing": "trailing"}, 15, 3e-6),
        ("EulerDiscreteScheduler", {**SD, "use_karras_sigmas": True}, 15, 3e-6),
        ("HeunDiscreteScheduler", {}, 10, 3e-6),
        ("HeunDiscreteScheduler", {"use_karras_sigmas": True}, 10, 3e-6),
        ("DPMSolverMultistepScheduler", SD, 20, 5e-6),
        ("DPMSolverMultistepScheduler", {**SD, "use_karras_sigmas": True}, 20, 5e-6),
        ("DPMSolverMultistepScheduler", {**SD, "solver_type": "heun", "prediction_type": "v_prediction"}, 20, 5e-6),
        ("DPMSolverMultistepScheduler", {**SD, "solver_order": 1}, 20, 5e-6),
        ("EDMEulerScheduler", {}, 18, 3e-6),
        ("EDMEulerScheduler", {"prediction_type": "v_prediction"}, 18, 3e-6),
        ("EDMDPMSolverMultistepScheduler", {}, 18, 3e-6),
        ("EDMDPMSolverMultistepScheduler", {"sigma_schedule": "exponential"}, 18, 3e-6),
        ("FlowMatchEulerDiscreteScheduler", {}, 20, 2e-6),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 20, 2e-6),
        ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1}, 20, 2e-6),
        ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}, 20, 2e-6),
    ],
    ids=lambda v: v.removesuffix("Scheduler") if isinstance(v, str) else None,
)
def test_deterministic_schedulers(name, given, steps, bar):
    network, scheduler = unet(), getattr(diffusers, name)(**given)
    x = X * 80 if name.startswith("EDM") else X
    assert gap(ours(network, scheduler, steps, x), theirs(network, scheduler, steps, x)) < bar


def test_zero_terminal_snr():
    scheduler = diffusers.DDIMScheduler(
        rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False
    )
    assert gap(ours(unet(), scheduler, 20, X), theirs(unet(), scheduler, 20, X)) < 1e-6


def test_predictor_corrector_of_score_sde_ve(monkeypatch):
    """Their network is told a sigma that differs from that of their step by up to 8.5e-5."""
    from diffusers.schedulers import scheduling_sde_ve

    network, noise, order = unet(time_embedding_type="fourier"), Noise(), []
    scheduler = diffusers.ScoreSdeVeScheduler(num_train_timesteps=100, snr=0.15, sigma_min=0.01, sigma_max=50.0)

    def recorded(like, step, draw):
        order.append((step, draw))
        return noise(like, step, draw)

    mine = ours(network, scheduler, 100, X * 50, noise=recorded)
    again = iter([*order, (0, 0)])  # they draw once more, for a state that nobody looks at
    monkeypatch.setattr(scheduling_sde_ve, "randn_tensor", lambda shape, **_: noise(torch.empty(shape), *next(again)))
    scheduler.set_timesteps(100)
    scheduler.set_sigmas(100)
    x = mean = X * 50
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            sigma = scheduler.sigmas[i] * torch.ones(2)
            x = scheduler.step_correct(network(x, sigma).sample, x).prev_sample
            step = scheduler.step_pred(network(x, sigma).sample, t, x)
            x, mean = step.prev_sample, step.prev_sample_mean
    assert gap(mine, mean) < 2e-3


# -- transformers, with what they are told besides ---------------------------------------------------------------------

TEXT, POOLED, LABELS, Z = states(2, 5, 16), states(2, 12), torch.tensor([3, 7]), states(2, 4, 8, 8)


class Told(torch.nn.Module):
    """A network with what it is told besides, as their loops call it."""

    def __init__(self, network, flux=False, **told):
        super().__init__()
        self.network, self.told, self.flux = network, told, flux

    def forward(self, x, t):
        return self.network(x, timestep=(t / 1000 if self.flux else t).expand(len(x)), **self.told)


def test_dit():
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10, attention_bias=True, activation_fn="gelu-approximate",
        norm_type="ada_norm_zero", norm_elementwise_affine=False,
    ).eval()  # fmt: skip
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    model = sg.interop.diffusers.from_modules(network, scheduler)
    assert (model.shape, len(model.classes), model.learned_variance) == ((4, 8, 8), 10, True)
    mine = ours(network, scheduler, 20, Z, condition={"label": LABELS})
    assert gap(mine, theirs(Told(network, class_labels=LABELS), scheduler, 20, Z, first=4)) < 2e-6
    without = model(Z, 0.5).noise  # the class of none
    assert torch.equal(without, model(Z, 0.5, label=torch.tensor([10, 10])).noise)
    assert not torch.equal(without, model(Z, 0.5, label=LABELS).noise)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sd3(shift):
    torch.manual_seed(0)
    network = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=12,
        pos_embed_max_size=16,
    ).eval()  # fmt: skip
    told = {"encoder_hidden_states": TEXT, "pooled_projections": POOLED}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    assert gap(ours(network, scheduler, 20, Z, condition=told), theirs(Told(network, **told), scheduler, 20, Z)) < 2e-6


def _patches(x):
    return x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(len(x), 16, 16)


def test_flux():
    """Packed in patches of 2 x 2, told t and not 1000 t, positions, and the guidance of a distilled network."""
    torch.manual_seed(0)
    network = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=12, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip
    told = {"encoder_hidden_states": TEXT, "pooled_projections": POOLED}
    places = torch.tensor([[0.0, row, column] for row in range(4) for column in range(4)])
    more = {"img_ids": places, "txt_ids": torch.zeros(5, 3), "guidance": torch.full((2,), 3.5)}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
    end = theirs(Told(network, flux=True, **told, **more), scheduler, 20, _patches(Z))
    assert gap(_patches(ours(network, scheduler, 20, Z, condition=told)), end) < 2e-6


def test_nested_conditions_in_chunks_and_half_precision():
    torch.manual_seed(0)
    network = diffusers.UNet2DConditionModel(
        in_channels=4, out_channels=4, cross_attention_dim=16, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=60, sample_size=8, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    ).eval()  # fmt: skip
    added = {"text_embeds": POOLED, "time_ids": torch.ones(2, 6)}
    told = {"encoder_hidden_states": TEXT, "added_cond_kwargs": added}
    scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False)
    bare = theirs(Told(network, **told), scheduler, 20, Z)
    assert gap(ours(network, scheduler, 20, Z, condition=told), bare) < 3e-6
    assert gap(ours(network, scheduler, 20, Z, condition=told, chunk=1), bare) < 3e-6
    half = ours(network.bfloat16(), scheduler, 20, Z, condition=told)
    assert half.dtype == torch.float32
    assert 0 < gap(half, bare) < 0.1


def test_an_argument_that_the_network_does_not_take():
    model = sg.interop.diffusers.from_modules(unet(), diffusers.DDPMScheduler())
    with pytest.raises(sg.ConfigError, match="takes no 'clas_labels'; did you mean 'class_labels'"):
        model(X, 0.5, condition={"clas_labels": LABELS})
