"""`python -m sde_gen.evaluate`: likelihood of held-out data and distances of samples from it, for a trained run."""

import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sde_gen.config.launch import launch, say

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from sde_gen.config.schema import EvaluateConfig
    from sde_gen.data import Dataset
    from sde_gen.distributed import Processes
    from sde_gen.evaluation import Evaluation, HeldOutLikelihood
    from sde_gen.metrics import Features, MetricResult
    from sde_gen.model import ScoreModel
    from sde_gen.samplers import Sampler
    from sde_gen.training import Checkpoint


def run(config: "DictConfig | Mapping[str, Any]") -> dict[str, Any]:
    """Evaluate as `config` says and return the report; the body of the command.

    Raises:
        SDEGenError: one of its subclasses, with the exit code of the command, before any long work where possible.
    """
    from sde_gen.config.objects import build, plain
    from sde_gen.config.restore import chosen_checkpoint, load_model, pick_device, stored_data
    from sde_gen.config.schema import EvaluateConfig, LikelihoodSettings
    from sde_gen.config.typed import typed
    from sde_gen.distributed import start
    from sde_gen.errors import BetweenNodesWarning
    from sde_gen.evaluation import Evaluation, read_samples, write_arrays
    from sde_gen.rng import check_seed
    from sde_gen.training import read_checkpoint

    cfg = typed(EvaluateConfig, plain(config))
    settings = typed(LikelihoodSettings, cfg.nll, "nll")
    check_seed(cfg.seed)
    _check_metrics(cfg)
    device = pick_device(cfg.device)
    sampler = build(cfg.sampler, trust=cfg.trust, where="sampler")
    perturbation = build(cfg.sde, trust=cfg.trust, where="sde")
    features = build(cfg.features, trust=cfg.trust, where="features")
    processes = start(device.type, cfg.timeout)
    device = pick_device(cfg.device, processes.local_rank) if processes.world > 1 else device
    place = (cfg.run, cfg.checkpoint, cfg.runs_dir)
    checkpoint = read_checkpoint(Path(processes.on_main(lambda: str(chosen_checkpoint(*place, say).path))))
    model = load_model(checkpoint, weights=cfg.weights, device=device, trust=cfg.trust)
    if perturbation is not None:
        model = model.under(perturbation)
    data = stored_data(checkpoint, cfg.trust)
    conditional = bool(checkpoint.state.get("conditional"))
    samples = read_samples(cfg.samples, data) if cfg.samples is not None and cfg.metrics else None
    told = json.dumps(plain(config), sort_keys=True, default=str)
    processes.agree({"settings": told, "checkpoint": checkpoint.digest, "device": device.type})
    folder = Path(processes.on_main(lambda: str(_folder(cfg, checkpoint))))

    say(f"evaluating checkpoint {checkpoint.path} under {model.perturbation} on held-out {data.name}")
    about: dict[str, Any] = {
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.step,
        "weights": cfg.weights,
        "perturbation": repr(model.perturbation),
        "trained_under": repr(model.trained_under),
        "data": data.name,
        "held_out": len(data.test),
        "seed": cfg.seed,
    }
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("once", BetweenNodesWarning)
        likelihoods = _likelihoods(cfg, settings, processes, model, data, conditional, device)
        if cfg.metrics and samples is None:
            samples, drawn = _draw(cfg, processes, sampler, model, data, conditional, device)
            about |= drawn
        elif samples is not None:
            about |= {"samples": str(cfg.samples), "num_samples": len(samples)}
    for note in dict.fromkeys(str(note.message) for note in notes):
        say(f"note: {note}")

    def finish() -> dict[str, Any]:
        found = _distances(cfg, samples, data, features, device) if samples is not None else []
        evaluation = Evaluation(about, likelihoods, found)
        evaluation.write(folder)
        write_arrays(folder / "evaluation.npz", samples, data.transform, likelihoods)
        _picture(folder, samples, data, found)
        _tell(evaluation, folder)
        return evaluation.to_dict()

    return processes.on_main(finish)


def _check_metrics(cfg: "EvaluateConfig") -> None:
    """Refuse now what `metrics.summary` would refuse after the sampling."""
    from sde_gen.config.typed import nearest
    from sde_gen.errors import ConfigError
    from sde_gen.metrics import METRICS

    for name in cfg.metrics:
        if name not in METRICS:
            raise ConfigError(f"metrics={name} is not a metric{nearest(name, METRICS)}; there are {', '.join(METRICS)}")
        least = METRICS[name].smallest
        if cfg.samples is None and cfg.num_samples < least:
            raise ConfigError(f"num_samples={cfg.num_samples} is too few for {name}, which needs {least}; draw more")


def _folder(cfg: "EvaluateConfig", checkpoint: "Checkpoint") -> Path:
    """Where the results go; made before anything is computed that would have no place."""
    from sde_gen.files import make_folder
    from sde_gen.training import RunDirectory

    if cfg.out is not None:
        return make_folder(Path(str(cfg.out)).expanduser(), "the output folder")
    # A checkpoint may lie in a run, in `checkpoints` of a run, or alone.
    home = checkpoint.path.parent
    home = home.parent if home.name == "checkpoints" else home
    return RunDirectory.fresh(home / "evaluated", f"step{checkpoint.step}").path


def _likelihoods(
    cfg: "EvaluateConfig",
    settings: Any,
    processes: "Processes",
    model: "ScoreModel",
    data: "Dataset",
    conditional: bool,
    device: Any,
) -> list["HeldOutLikelihood"]:
    import torch

    from sde_gen.evaluation import held_out_likelihood
    from sde_gen.rng import keyed_generator

    if cfg.likelihood == "none":
        return []
    count = len(data.test) if settings.samples is None else min(settings.samples, len(data.test))
    order = torch.randperm(len(data.test), generator=keyed_generator(cfg.seed, 2))
    indices = order[:count].sort().values
    condition = {}
    if conditional and data.test_labels is not None:
        condition = {"label": data.test_labels[indices].to(device)}
    given = {
        "ode": {
            name: getattr(settings, name)
            for name in ("divergence", "probes", "probe", "steps", "rtol", "atol", "max_nfe")
        },
        "vlb": {"terms": settings.terms},
    }
    results = []
    for kind in ("ode", "vlb") if cfg.likelihood == "both" else (cfg.likelihood,):
        what = "by the probability-flow ODE" if kind == "ode" else "variational bound"
        say(f"likelihood of {count} held-out samples, {what}")
        found = held_out_likelihood(
            kind,
            model,
            data.test[indices].to(device),
            data.transform,
            indices=indices,
            condition=condition,
            law=data.law,
            seed=cfg.seed,
            chunk=cfg.chunk,
            progress=processes.is_main and sys.stderr.isatty(),
            processes=processes,
            **given[kind],
        )
        for index, reason in found.failed.items():
            say(f"note: held-out sample {index} has no likelihood and does not count: {reason}")
        results.append(found)
    return results


def _draw(
    cfg: "EvaluateConfig",
    processes: "Processes",
    sampler: "Sampler",
    model: "ScoreModel",
    data: "Dataset",
    conditional: bool,
    device: Any,
) -> tuple["Tensor", dict[str, Any]]:
    """Samples, and what the report says of them."""
    import torch

    from sde_gen.evaluation import in_parts, part_length

    def draw(rows: slice) -> "tuple[Tensor, int]":
        condition = {}
        if conditional and data.test_labels is not None:  # classes as often as in the held-out data
            labels = data.test_labels[torch.arange(rows.start, rows.stop) % len(data.test_labels)]
            condition = {"label": labels.to(device)}
        samples = sampler(
            model,
            (rows.stop - rows.start, *data.shape),
            seed=cfg.seed,
            first=rows.start,
            condition=condition,
            progress=processes.is_main and sys.stderr.isatty(),
            chunk=cfg.chunk,
            device=device,
        )
        return samples.x.float().cpu(), samples.nfe

    say(f"sampling {cfg.num_samples} with {sampler}")
    began = time.perf_counter()
    parts = in_parts(processes, cfg.num_samples, part_length(cfg.num_samples, data.shape, cfg.chunk), draw)
    about = {"sampler": repr(sampler), "num_samples": cfg.num_samples, "nfe": max(nfe for _, nfe in parts)}
    return torch.cat([x for x, _ in parts]), about | {"seconds": round(time.perf_counter() - began, 3)}


def _distances(
    cfg: "EvaluateConfig", x: "Tensor", data: "Dataset", features: "Features", device: Any
) -> list["MetricResult"]:
    """Each metric of the samples, and of as many training samples, against the held-out data."""
    from torch import nn
    from tqdm import tqdm

    from sde_gen.metrics import NetworkFeatures, summary

    if isinstance(features, NetworkFeatures) and isinstance(features.module, nn.Module):
        features.module.to(device)

    with tqdm(total=len(cfg.metrics), unit="metric", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:
        done = -1

        def tell(title: str) -> None:
            nonlocal done
            done += 1
            bar.n = done
            bar.set_description(title)

        return summary(
            x,
            data.test,
            data.train,
            metrics=cfg.metrics,
            features=features,
            seed=cfg.seed,
            largest=cfg.compared,
            progress=tell,
        )


def _picture(folder: Path, x: "Tensor | None", data: "Dataset", found: "Sequence[MetricResult]") -> None:
    from sde_gen import pictures
    from sde_gen.pictures.evaluation_page import evaluation_picture

    if not pictures.has_matplotlib():
        say("matplotlib is not installed, so there is no picture; run pip install 'sde_gen[plot]'")
        return
    pictures.save_image(evaluation_picture(x, data.test, found), folder / "evaluation.png")


def _tell(evaluation: "Evaluation", folder: Path) -> None:
    for line in evaluation.lines():
        say(line)
    say(f"  written to {folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return launch("evaluate", run, argv)


if __name__ == "__main__":
    sys.exit(main())
