r"""Clothes in 20 minutes: our experiment beside other libraries' training, at equal time and parameters.

    OMP_NUM_THREADS=1 python benchmarks/fashion_mnist.py --out docs/verification/fashion_mnist.md

Each is trained for the same time on the same 60,000 images of 28x28, with some 1.9 million weights (`--only NAME` for
one, `--root FOLDER` for the four IDX files; what is trained is not trained again):

experiment   `python -m sde_gen.train experiment=fashion_mnist`, class-conditional
unlabelled   the same without labels, as all of the following are
ddpmpp       DDPM++ under a VP SDE with the settings of score_sde (Song et al. 2021, arXiv:2011.13456)
diffusers    its example train_unconditional.py: DDPM, AdamW, cosine learning rate, averaged weights
ddp          denoising-diffusion-pytorch as in its README: sigmoid schedule, v, Adam, averaged weights

The loops of the last two are those of their scripts: the same batch, learning rate, warm-up, clipping, average and
loss, on tensors in memory. The warm-up of score_sde, 5,000 steps of 1.3 million, is shortened to 100 steps, in its
favour. All are then sampled alike, by our rule of 20 calls from the same noise, so that what is compared is what was
learned; each of the last two also by its own DDIM of 20 steps. Measured against test images, beside as many training
images: the Fréchet distance of EfficientNet-Lite0's features, the share of correct answers of a classifier, energy
distance. Needs sde_gen[metrics], and for the last two diffusers and denoising-diffusion-pytorch.
"""

import argparse
import importlib.machinery
import json
import math
import os
import platform
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sde_gen as sg
from sde_gen import metrics, pictures
from sde_gen.data import fashion_mnist

OURS = {
    "experiment": ["experiment=fashion_mnist"],
    "unlabelled": ["experiment=fashion_mnist", "class_conditional=false"],
    "ddpmpp": ["data=fashion_mnist", "sde=vp", "network=ddpmpp", "network.width=32", "network.multipliers=[1,2,3]",
               "network.blocks=1", "network.attention=[-1]", "network.dropout=0.1", "trainer.steps=1000000",
               "trainer.batch_size=128", "trainer.learning_rate=2e-4", "trainer.warmup=100",
               "trainer.schedule=constant", "trainer.ema=0.9999"],
}  # fmt: skip
TITLES = {
    "experiment": "`experiment=fashion_mnist`, with labels",
    "unlabelled": "the same, no labels",
    "ddpmpp": "DDPM++ as in score_sde",
    "diffusers": "diffusers' example",
    "ddp": "denoising-diffusion-pytorch",
}
METRICS = {"frechet_distance": "FD", "c2st": "classifier", "energy_distance": "energy"}


def train_ours(name: str, run: Path, root: str | None, seconds: float) -> dict[str, Any]:
    """Train by the command; its steps and CPU seconds."""
    command = [sys.executable, "-m", "sde_gen.train", *OURS[name], f"run={run.name}", f"runs_dir={run.parent}",
               f"trainer.max_seconds={seconds}"]  # fmt: skip
    command += [f"data.root={root}"] if root else []
    print(" ".join(command[1:]), flush=True)
    before = os.times()
    subprocess.run(command, check=True)
    after = os.times()
    rows = (run / "metrics.csv").read_text("utf-8").splitlines()
    steps = int(rows[-1].split(",")[rows[0].split(",").index("step")])
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"steps": steps, "cpu_seconds": cpu, "batch": 128 if name == "ddpmpp" else 32}


def batches(images: Tensor, size: int, seed: int = 0) -> Iterator[Tensor]:
    """Shuffled epochs without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for part in torch.randperm(len(images), generator=generator).split(size):
            if len(part) == size:
                yield images[part]


def loop(seconds: float, step: Callable[[], float]) -> dict[str, Any]:
    """Repeat `step` until the time is spent; steps and CPU seconds."""
    began, cpu, steps = time.perf_counter(), time.process_time(), 0
    while (spent := time.perf_counter() - began) < seconds:
        loss = step()
        steps += 1
        if steps % 500 == 0:
            print(f"{steps} steps  {spent:.0f} s  loss {loss:.4f}", flush=True)
    return {"steps": steps, "cpu_seconds": time.process_time() - cpu}


def train_diffusers(run: Path, images: Tensor, seconds: float) -> dict[str, Any]:
    """What examples/unconditional_image_generation does with its defaults, on a network of our size."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=28, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"), norm_num_groups=8,
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    feed, began, done = batches(images, 16), time.perf_counter(), 0

    def step() -> float:
        nonlocal done
        # Its schedule falls with the steps; how many there will be is known here by the time only.
        share = min((time.perf_counter() - began) / seconds, 1.0)
        optimizer.param_groups[0]["lr"] = 1e-4 * min(1.0, (done + 1) / 500) * 0.5 * (1 + math.cos(math.pi * share))
        x = next(feed)
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (len(x),))
        loss = (network(scheduler.add_noise(x, noise, t), t).sample - noise).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(network.parameters())
        done += 1
        return loss.item()

    found = loop(seconds, step)
    average.copy_to(network.parameters())
    DDPMPipeline(network, scheduler).save_pretrained(run)
    return {**found, "batch": 16}


def _lucid() -> Any:
    """denoising-diffusion-pytorch; it imports torchvision for its datasets, which this does not use."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in ("torchvision", "torchvision.transforms", "torchvision.utils"):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(sys.modules["torchvision"]).update(
            transforms=sys.modules["torchvision.transforms"], utils=sys.modules["torchvision.utils"]
        )
    from denoising_diffusion_pytorch import denoising_diffusion_pytorch

    return denoising_diffusion_pytorch


def _ddp() -> Any:
    library = _lucid()
    return library.GaussianDiffusion(library.Unet(28, dim_mults=(1, 2, 4), channels=1), image_size=28)


def train_ddp(run: Path, images: Tensor, seconds: float) -> dict[str, Any]:
    """What its Trainer does with the settings of its README (batch 32 twice, 8e-5, average 0.995 every 10 steps)."""
    from ema_pytorch import EMA

    torch.manual_seed(0)
    diffusion = _ddp()
    average = EMA(diffusion, beta=0.995, update_every=10)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=8e-5, betas=(0.9, 0.99))
    feed = batches(images, 32)

    def step() -> float:
        total = 0.0
        for _ in range(2):
            loss = diffusion((next(feed) + 1) / 2) / 2  # it takes [0, 1]
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        return total

    found = loop(seconds, step)
    run.mkdir(parents=True, exist_ok=True)
    torch.save({"ema": average.ema_model.state_dict()}, run / "model.pt")
    return {**found, "batch": 64}


def load_ddp(run: Path) -> tuple[sg.ScoreModel, Any]:
    """The averaged network as a model of ours, and as its own."""
    diffusion = _ddp()
    diffusion.load_state_dict(torch.load(run / "model.pt", weights_only=True)["ema"])
    chain = sg.Table.from_alpha_bars(diffusion.alphas_cumprod.double())
    said = sg.VPrediction(sg.Convention(chain, "index"))
    return sg.ScoreModel(diffusion.eval().model, chain, said), diffusion


def own_ddim(name: str, run: Path, count: int, steps: int = 20) -> Tensor:
    """Samples in [-1, 1] by the library's own DDIM, some at a time."""
    torch.manual_seed(0)
    if name == "ddp":
        diffusion = load_ddp(run)[1]
        diffusion.sampling_timesteps, diffusion.is_ddim_sampling = steps, True
        return torch.cat([diffusion.sample(batch_size=n).cpu() * 2 - 1 for n in _parts(count)])
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline

    trained = DDPMPipeline.from_pretrained(run)
    pipeline = DDIMPipeline(trained.unet, DDIMScheduler.from_config(trained.scheduler.config))
    pipeline.set_progress_bar_config(disable=True)
    made = [pipeline(batch_size=n, num_inference_steps=steps, output_type="np").images for n in _parts(count)]
    return torch.cat([torch.as_tensor(m).permute(0, 3, 1, 2) * 2 - 1 for m in made])


def _parts(count: int) -> list[int]:
    return [min(128, count - first) for first in range(0, count, 128)]


def drawn(model: sg.ScoreModel, calls: int, count: int, labels: Tensor | None) -> Tensor:
    """Samples of our rule."""
    rule, made, first = sg.Auto(nfe=calls, calls=0), [], 0
    for seed, n in enumerate(_parts(count)):
        label = None if labels is None else labels[first : first + n]
        made.append(rule(model, (n, 1, 28, 28), seed=seed, label=label).x)
        first += n
    return torch.cat(made)


def measure(x: Tensor, data: Any, features: Any) -> dict[str, Any]:
    """Value, its error, and that of real data, of each metric."""
    found = metrics.summary(
        x.clamp(-1, 1), data.test, data.train, metrics=list(METRICS), features=features, largest=len(x)
    )
    return {r.name: [r.value, r.standard_error, r.real_against_real] for r in found}


def evaluate(name: str, run: Path, out: Path, data: Any, features: Any, count: int) -> list[dict[str, Any]]:
    """Rows of the table of one training; its picture beside the run, and of the experiment beside `out`."""
    if name == "diffusers":
        model = sg.load(run)
    else:
        model = load_ddp(run)[0] if name == "ddp" else sg.load(run)
    labels = torch.arange(count) % 10 if name == "experiment" else None
    ways = {f"ours, {calls} calls": lambda calls=calls: drawn(model, calls, count, labels)
            for calls in ((20, 10) if name == "experiment" else (20,))}  # fmt: skip
    if name in ("diffusers", "ddp"):
        ways["its DDIM, 20 calls"] = lambda: own_ddim(name, run, count)
    rows = []
    for way, make in ways.items():
        began = time.process_time()
        x = make()
        seconds = time.process_time() - began
        if not rows:
            grid = pictures.image_grid(x[:100], columns=10)
            pictures.save_image(grid, out.with_suffix(".png") if name == "experiment" else run / "drawn.png")
        rows.append({"name": name, "way": way, "sampling_seconds": seconds, **measure(x, data, features)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def markdown(found: dict[str, Any]) -> str:
    """The page."""
    minutes, counted = found["seconds"] / 60, found["samples"]
    lines = ["# Clothes, at equal time and parameters", "", f"    {found['command']}", "",
             f"{minutes:.0f} minutes of training each, {found['threads']} thread(s), on {found['machine']}.",
             f"Of {counted:,} samples against as many test images: Fréchet distance of EfficientNet-Lite0's features,",
             "share of correct answers of a classifier (0.5: it cannot tell), energy distance, with standard errors;",
             "in the last row of as many training images. `ours`: `sg.Auto(nfe=..., calls=0)`, equal noise.", "",
             "| trained by | weights | batch | steps | sampled by | FD | classifier | energy |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in found["rows"]:
        told = found["trained"][row["name"]]
        cells = " | ".join(_cell(key, *row[key][:2]) for key in METRICS)
        lines.append(f"| {TITLES[row['name']]} | {told['weights'] / 1e6:.2f} M | {told['batch']} | {told['steps']:,} | "
                     f"{row['way']} | {cells} |")  # fmt: skip
    cells = " | ".join(_cell(key, found["rows"][0][key][2], None) for key in METRICS)
    lines += [f"| real images | | | | | {cells} |", ""]
    lines += ["The first row, a class in each column:", "", "![clothes](fashion_mnist.png)"]
    return "\n".join(lines) + "\n"


def _cell(key: str, value: float, error: float | None) -> str:
    digits = {"frechet_distance": 1, "c2st": 3, "energy_distance": 4}[key]
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")


def main() -> None:
    """Train what is not trained, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--seconds", type=float, default=1200.0)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--root", help="folder of the four IDX files")
    parser.add_argument("--runs", type=Path, default=Path("runs/fashion_mnist"))
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("fashion_mnist.md"))
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    data = fashion_mnist(given.root)
    told = given.runs / "trained.json"
    trained = json.loads(told.read_text("utf-8")) if told.is_file() else {}
    for name in given.only:
        if name in trained:
            continue
        run = given.runs.absolute() / name
        if name in OURS:
            trained[name] = train_ours(name, run, given.root, given.seconds)
            network = sg.load(run).network
        else:
            train = train_ddp if name == "ddp" else train_diffusers
            trained[name] = train(run, data.train, given.seconds)
            network = load_ddp(run)[0].network if name == "ddp" else sg.load(run).network
        trained[name]["weights"] = sum(p.numel() for p in network.parameters())
        told.write_text(json.dumps(trained, indent=1), encoding="utf-8")
    if given.train_only:
        return
    features, rows = metrics.efficientnet_lite0(size=112), []
    for name in given.only:
        rows += evaluate(name, given.runs.absolute() / name, given.out, data, features, given.samples)
    threads = torch.get_num_threads()
    command = f"OMP_NUM_THREADS={threads} python benchmarks/fashion_mnist.py"
    found = {"command": command, "seconds": given.seconds, "samples": given.samples, "threads": threads,
             "machine": f"{platform.machine()}, {os.cpu_count()} cores", "trained": trained, "rows": rows}  # fmt: skip
    print(markdown(found))
    given.out.write_text(markdown(found), encoding="utf-8")
    given.out.with_suffix(".json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
