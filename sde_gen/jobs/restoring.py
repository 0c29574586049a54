"""Draws of what an observation leaves open: the work of `python -m sde_gen.sample task=...`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen import pictures
from sde_gen.config.launch import say
from sde_gen.config.schema import EvaluateConfig, SampleConfig
from sde_gen.data.transform import Affine
from sde_gen.errors import CheckpointError, ConfigError
from sde_gen.files import write_json
from sde_gen.inverse import Blur, Downsample, Grey, Mask, Matrix, Operator, Particles, Posterior, TwistedSMC
from sde_gen.jobs.classes import Labels
from sde_gen.jobs.common import Trained, table
from sde_gen.jobs.given import read_mask, read_numbers, read_samples
from sde_gen.jobs.guiding import made_of
from sde_gen.jobs.target import Target
from sde_gen.model import ScoreModel
from sde_gen.rng import SeededNoise
from sde_gen.samplers import Ancestral, Samples
from sde_gen.streaming import write_npz

#: Network calls of a sample, unless sampler= says otherwise.
_STEPS = 100
_SEES = {
    "inpaint": "mask=FILE says what is seen",
    "posterior": "m numbers",
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
    if transform is None:
        raise CheckpointError(f"checkpoint {what.checkpoint.path} does not describe its data")
    if what.checkpoint.state["data"].get("codec"):
        raise ConfigError(f"task={cfg.task} observes what the model draws, and this one draws latents; train on data "
                          "themselves, or leave task out")  # fmt: skip
    if cfg.start is not None or what.processes.world > 1:
        raise ConfigError(f"task={cfg.task} starts from noise in one process; leave start out, and torchrun")
    task = _task(cfg, transform, shape)
    target = Target.of(cfg, what.checkpoint)
    if not cfg.overwrite:
        target.check_free()
    posterior = posterior_of(cfg, model, task.operator, task.y)
    sampler = sampler_of(cfg, what, arguments)
    say(f"task={cfg.task}: {cfg.num_samples} draws given {tuple(task.y.shape)} with {sampler}")
    named: dict[str, Any] = {}
    if labels is not None:  # one for all makes one evidence of all systems
        one = len(labels.values) == 1
        named["label"] = labels.values[0] if one else labels.rows(0, cfg.num_samples).to(what.device)
    result: Samples = sampler(posterior, (cfg.num_samples, *shape), seed=cfg.seed, chunk=cfg.chunk, device=what.device,
                              progress=True, **named)  # fmt: skip
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


def posterior_of(cfg: SampleConfig | EvaluateConfig, model: ScoreModel, operator: Operator, y: Any) -> Posterior:
    """The model given y, by the method asked for; particles start from "mmps"."""
    return Posterior(model, operator, y, cfg.noise_std, "mmps" if cfg.method == "smc" else cfg.method)


def sampler_of(cfg: SampleConfig | EvaluateConfig, what: Trained, arguments: Sequence[str]) -> Any:
    """Particles if asked for, else the sampler that was named, else ancestral steps, which guidance suits."""
    if cfg.method == "smc":
        return TwistedSMC(particles=cfg.particles, steps=_STEPS)
    named = any(argument.startswith(("sampler=", "sampler.")) for argument in arguments)
    return what.sampler if named else Ancestral(steps=_STEPS, grid="karras")


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
    operator, seen, out = operator_of(cfg, shape)
    truth = None if cfg.truth is None else read_samples(cfg.truth, "truth", transform, shape)[0]
    if cfg.observation is not None:
        if cfg.task == "posterior":  # of numbers that have no scale of the data's
            y = read_numbers(cfg.observation, "observation", out)
            return Task(operator, y, truth, seen)
        return Task(operator, read_samples(cfg.observation, "observation", transform, out)[0], truth, seen)
    if truth is None:
        raise ConfigError(f"task={cfg.task} needs observation=FILE ({_SEES[str(cfg.task)]}), or truth=FILE to "
                          "make one of")  # fmt: skip
    clean = truth if cfg.task == "inpaint" else operator.apply(truth[None])[0]
    return Task(operator, noisy(cfg, clean[None])[0], truth, seen)


def noisy(cfg: SampleConfig | EvaluateConfig, clean: Tensor) -> Tensor:
    """Measurements (N, ...) with their noise, of a stream of its own: that of the samples has numbers from 0."""
    return clean + cfg.noise_std * SeededNoise(cfg.seed, 2**40)(clean, -1, 0)


def operator_of(
    cfg: SampleConfig | EvaluateConfig, shape: tuple[int, ...]
) -> tuple[Operator, Tensor | None, tuple[int, ...]]:
    """What is measured, the mask of what is seen or None, and the shape of an observation.

    Raises:
        ConfigError: a task of images for a model of others, or without what it needs.
        MissingInputError, DataError: of its files.
    """
    if cfg.task == "posterior":
        if cfg.operator is None:
            raise ConfigError("task=posterior needs operator=FILE: a matrix (m, D) in .npy or .npz")
        matrix = read_numbers(cfg.operator, "operator", (None, math.prod(shape)))
        return Matrix(matrix), None, (len(matrix),)
    if len(shape) != 3:
        raise CheckpointError(f"task={cfg.task} is of images (channels, height, width), and this model has {shape}; "
                              "use task=posterior")  # fmt: skip
    if cfg.task == "inpaint":
        if cfg.mask is None:
            raise ConfigError("task=inpaint needs mask=FILE: a picture, white where a pixel is seen, or truth values")
        seen = read_mask(cfg.mask, "mask", shape)
        return Mask(seen), seen, shape
    operators = {"superres": Downsample(cfg.factor), "deblur": Blur(std=cfg.blur), "colourise": Grey()}
    operator = operators[str(cfg.task)]
    return operator, None, operator.output_shape(shape)


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
    if x.ndim != 4:
        pictures.save_image(pictures.picture_of(x), target.path(".png"))
        return
    picture = pictures.posterior_picture(x, task.shown, task.truth, mean=mean, std=std, title=title)
    pictures.save_image(picture, target.path(".png"))
