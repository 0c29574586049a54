"""Small networks of diffusers, and its own loops."""

import copy

import torch

import sde_gen as sg

TINY = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
}
#: Schedulers whose states are those of alpha = 1.
UNSCALED = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler")


def unet(channels=3, out=None, **given):
    import diffusers

    torch.manual_seed(0)
    return diffusers.UNet2DModel(in_channels=channels, out_channels=out or channels, **{**TINY, **given}).eval()


def states(*shape, seed=1, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@torch.no_grad()
def theirs(network, scheduler, steps, x, *, first=None, **step):
    """Their own loop from our state x of unit size."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    if type(scheduler).__name__ in UNSCALED:
        x = x * float((1 + scheduler.sigmas[0] ** 2) ** 0.5)
    for t in scheduler.timesteps:
        said = network(scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x, t)
        said = getattr(said, "sample", said)
        x = scheduler.step(said if first is None else said[:, :first], t, x, **step).prev_sample
    return x


def gap(a, b):
    return float((a - b).abs().max() / b.abs().max())


def ours(network, scheduler, steps, x, clip=False, **given):
    model = sg.interop.diffusers.from_modules(network, scheduler, clip=clip)
    return sg.interop.diffusers.own_sampler(model, steps)(model, start=x, **given).x
