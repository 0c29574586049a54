"""Draws of what an observation leaves open: the work of `python -m sde_gen.sample task=...`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen import pictures
from sde_gen.config.launch import say
from sde_gen.config.schema import SampleConfig
from sde_gen.data.transform import Affine
from sde_gen.errors import CheckpointError, ConfigError
from sde_gen.files import write_json
from sde_gen.inverse import Blur, Downsample, Grey, Mask, Operator, Particles, Posterior, TwistedSMC
from sde_gen.jobs.classes import Labels
from sde_gen.jobs.common import Trained, table
from sde_gen.jobs.given import read_mask, read_samples
from sde_gen.jobs.guiding import made_of
from sde_gen.jobs.target import Target
from sde_gen.rng import SeededNoise
from sde_gen.samplers import Ancestral, Samples
from sde_gen.streaming import write_npz

#: Network calls of a sample, unless sampler= says otherwise.
_STEPS = 100
_SEES = {
    "inpaint": "mask=FILE says what is seen",
    "superres": "its sides are those of a sample over factor",
    "deblur": "it has the size of a sample",
    "colourise": "it has one channel",
}


@dataclass(frozen=True)
class Task:
    """What was measured of which sample, on the model's scale."""

    operator: Operator
    y: Tensor
    truth: Tensor | None
    seen: Tensor | None

    @property
    def shown(self) -> Tensor:
        """The observation as an image, NaN where nothing is seen."""
        return self.y if self.seen is None else torch.where(self.seen, self.y, math.nan)


def restored(cfg: SampleConfig, what: Trained, arguments: Sequence[str], labels: Labels | None) -> dict[str, Any]:
    """Draw as `cfg` says, write samples, report and picture, and return the report.

    Raises:
        SDEGenError: one of its subclasses, before any long work where possible.
    """
    model, shape, transform = what.model, what.model.shape, what.model.transform
    if transform is None or len(shape) != 3:
        raise CheckpointError(f"task={cfg.task} is of images (channels, height, width), and this model has {shape}")
    if cfg.start is not None or what.processes.world > 1:
        raise ConfigError(f"task={cfg.task} starts from noise in one process; leave start out, and torchrun")
    task = _task(cfg, transform, shape)
    target = Target.of(cfg, what.checkpoint)
    if not cfg.overwrite:
        target.check_free()
    method = "mmps" if cfg.method == "smc" else cfg.method
    posterior = Posterior(model, task.operator, task.y, cfg.noise_std, method)
    chosen = any(argument.startswith(("sampler=", "sampler.")) for argument in arguments)
    sampler: Any = what.sampler if chosen else Ancestral(steps=_STEPS, grid="karras")
    if cfg.method == "smc":
        sampler = TwistedSMC(particles=cfg.particles, steps=_STEPS)
    say(f"task={cfg.task}: {cfg.num_samples} draws given {tuple(task.y.shape)} with {sampler}")
    named: dict[str, Any] = {}
    if labels is not None:  # one for all makes one evidence of all systems
        one = len(labels.values) == 1
        named["label"] = labels.values[0] if one else labels.rows(0, cfg.num_samples).to(what.device)
    result: Samples = sampler(posterior, (cfg.num_samples, *shape), seed=cfg.seed, chunk=cfg.chunk, device=what.device,
                              **named)  # fmt: skip
    x = result.x.detach().float().cpu()
    report = {"task": cfg.task, "operator": repr(task.operator), "method": cfg.method, "noise_std": cfg.noise_std,
              "sampler": repr(sampler), **what.about(), **made_of(cfg), "weights": cfg.weights, "seed": cfg.seed,
              "num_samples": cfg.num_samples, "nfe": result.nfe, "products": result.products,
              "seconds": round(result.seconds, 3), **_numbers(cfg, task, x, result, labels)}  # fmt: skip
    if labels is not None:
        report["label"] = list(labels.names) or "none"
    _write(target, transform, task, x, report)
    rows = [("network calls", str(result.nfe)), ("gradients of the network", str(result.products))]
    rows += [(name.replace("_", " "), f"{report[name]:.4g}") for name in _TOLD if report.get(name) is not None]
    rows += [(f"log evidence of {name}", f"{v:.4g}") for name, v in report.get("log_evidence_of", {}).items()]
    table([*rows, ("written to", str(target.folder))])
    return report


_TOLD = ("residual", "coverage_90", "rmse_of_mean", "log_evidence", "log_evidence_error", "least_ess")


def _numbers(cfg: SampleConfig, task: Task, x: Tensor, result: Samples, labels: Labels | None) -> dict[str, Any]:
    """What can be said of the draws: the residual in units of the noise (1 is right), and more where the truth is."""
    off = task.operator.apply(x.double()).flatten(1) - task.operator.read(task.y[None].double(), tuple(x.shape[1:]))
    found: dict[str, Any] = {"residual": float((off / cfg.noise_std).square().mean())}
    if task.truth is not None and len(x) > 1:
        low, high = (torch.quantile(x, q, dim=0) for q in (0.05, 0.95))
        found["coverage_90"] = float(((task.truth >= low) & (task.truth <= high)).float().mean())
        found["rmse_of_mean"] = float((x.mean(0) - task.truth).square().mean().sqrt())
    if not isinstance(result, Particles):
        return found
    if result.log_evidence.ndim == 0:
        found["log_evidence"] = float(result.log_evidence)
        found["log_evidence_error"] = float(result.log_evidence_error) if len(x) > 1 else None
    elif labels is not None:  # the mean over the systems of each class
        turns = torch.arange(len(x)) % len(labels.values)
        each = result.system_log_evidence.cpu()
        found["log_evidence_of"] = {
            name: float(each[turns == i].logsumexp(0)) - math.log(int((turns == i).sum()))
            for i, name in enumerate(labels.names[: len(x)])
        }
    found |= {"least_ess": float(result.ess.min()), "ancestors": float(result.ancestors.mean())}
    if found["ancestors"] < 2 <= cfg.particles:
        say("note: the particles of a draw descend from one of those at its start; a larger particles= makes the "
            "evidence better known, and for pictures method=mmps is the better choice")  # fmt: skip
    return found


def _task(cfg: SampleConfig, transform: Affine, shape: tuple[int, ...]) -> Task:
    """Operator and observation."""
    seen = None
    if cfg.task == "inpaint":
        if cfg.mask is None:
            raise ConfigError("task=inpaint needs mask=FILE: a picture, white where a pixel is seen, or truth values")
        seen = read_mask(cfg.mask, "mask", shape)
        operator: Operator = Mask(seen)
    elif cfg.task == "superres":
        operator = Downsample(cfg.factor)
    elif cfg.task == "deblur":
        operator = Blur(std=cfg.blur)
    else:
        operator = Grey()
    out = shape if cfg.task == "inpaint" else operator.output_shape(shape)
    truth = None if cfg.truth is None else read_samples(cfg.truth, "truth", transform, shape)[0]
    if cfg.observation is not None:
        return Task(operator, read_samples(cfg.observation, "observation", transform, out)[0], truth, seen)
    if truth is None:
        raise ConfigError(f"task={cfg.task} needs observation=FILE ({_SEES[str(cfg.task)]}), or truth=FILE to "
                          "make one of")  # fmt: skip
    clean = truth if cfg.task == "inpaint" else operator.apply(truth[None])[0]
    # With noise of a stream of its own: that of the samples has numbers from 0.
    return Task(operator, clean + cfg.noise_std * SeededNoise(cfg.seed, 2**40)(clean[None], -1, 0)[0], truth, seen)


def _write(target: Target, transform: Affine, task: Task, x: Tensor, report: dict[str, Any]) -> None:
    mean, std = x.mean(0), x.std(0, correction=0)
    raw = transform.inverse(x).numpy()
    parts = {"model_x": x, "observation": task.shown, "mean": mean, "std": std}
    parts |= {} if task.truth is None else {"truth": task.truth}
    arrays = {"x": raw} | {name: part.numpy() for name, part in parts.items()}
    write_npz(target.path(".npz"), {name: (a.shape, str(a.dtype), iter([a])) for name, a in arrays.items()})
    write_json(target.report, report)
    if not pictures.has_matplotlib():
        say("matplotlib is not installed, so there is no picture; run pip install 'sde_gen[plot]'")
        return
    title = f"task={report['task']} by {report['method']}, {report['nfe']} calls of the network for a draw"
    if report.get("log_evidence") is not None:
        title += f"; log evidence {report['log_evidence']:.2f}"
    picture = pictures.posterior_picture(x, task.shown, task.truth, mean=mean, std=std, title=title)
    pictures.save_image(picture, target.path(".png"))
