"""Train the tiny network of the examples with diffusers alone: its UNet2DModel, its DDPMScheduler, its DDPMPipeline.

    python benchmarks/make_example_network.py docs/examples/digits-ddpm

8 x 8 digits of scikit-learn in [-1, 1], noise prediction, the simple loss, Adam, averaged weights; a few minutes on one
core. Nothing of sde_gen takes part: what is written is what anybody's training with diffusers writes.
"""

import copy
import json
import sys
from pathlib import Path

import diffusers
import torch
from sklearn.datasets import load_digits

STEPS, BATCH, DECAY = 1500, 64, 0.995


def main(folder: Path) -> None:
    """Train, and save the pipeline into `folder`."""
    torch.manual_seed(0)
    x = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    x = x[torch.randperm(len(x))][:1437]
    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(32, 64),
        norm_num_groups=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"), attention_head_dim=16,
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    averaged, mean = copy.deepcopy(network), 1.0
    for step in range(STEPS):
        batch = x[torch.randint(len(x), (BATCH,))]
        noise, t = torch.randn_like(batch), torch.randint(1000, (BATCH,))
        said = network(scheduler.add_noise(batch, noise, t), t).sample
        loss = (said - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
        with torch.no_grad():
            for slow, fast in zip(averaged.parameters(), network.parameters(), strict=True):
                slow.lerp_(fast, 1 - min(DECAY, (1 + step) / (10 + step)))
        mean += 0.01 * (float(loss.detach()) - mean)
        if step % 100 == 99:
            print(f"step {step + 1}: loss {mean:.4f}", flush=True)
    diffusers.DDPMPipeline(averaged.eval(), scheduler).save_pretrained(folder)
    count = sum(p.numel() for p in network.parameters())
    print(json.dumps({"numbers": count, "loss": round(mean, 4)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
