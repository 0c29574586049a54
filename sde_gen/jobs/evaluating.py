"""Likelihood of held-out data and distances of samples from it, for a trained run: the work of `sde_gen.evaluate`."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sde_gen import pictures
from sde_gen.bars import draws_bars, ticking
from sde_gen.config.launch import say
from sde_gen.config.objects import build, settings
from sde_gen.config.restore import stored_data
from sde_gen.config.schema import EvaluateConfig, LikelihoodSettings
from sde_gen.config.typed import did_you_mean, typed
from sde_gen.data import Dataset
from sde_gen.errors import ConfigError
from sde_gen.evaluation import (
    Evaluation,
    HeldOutLikelihood,
    held_out_likelihood,
    in_parts,
    part_length,
    read_samples,
    write_arrays,
)
from sde_gen.evaluation.columns_compared import compared_columns
from sde_gen.evaluation.moments import PROTOCOLS, Reference, check_protocol, training_statistics
from sde_gen.files import make_folder
from sde_gen.jobs.beforehand import said, say_cost, settled
from sde_gen.jobs.calibrating import calibrated
from sde_gen.jobs.common import Trained, diagnosed, fresh_folder, held_out_condition, notes_said, trained
from sde_gen.jobs.viewing import View
from sde_gen.metrics import METRICS, Features, MetricResult, NetworkFeatures, Pixels, Statistics, check_sizes, summary
from sde_gen.rng import keyed_generator
from sde_gen.training import Checkpoint


def run(config: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate as `config` says and return the report.

    Raises:
        SDEGenError: one of its subclasses, before any long work where possible.
    """
    values, arguments = settings(config)
    cfg = _by_protocol(typed(EvaluateConfig, values), arguments)
    likelihood = typed(LikelihoodSettings, cfg.nll, "nll")
    _check_metrics(cfg)
    features = build(cfg.features, trust=cfg.trust, where="features")
    what = trained(cfg)
    model, checkpoint, processes = what.model, what.checkpoint, what.processes
    data = stored_data(checkpoint, cfg.trust, cfg.data)
    if cfg.task is not None:
        return calibrated(cfg, what, data, _folder(cfg, checkpoint), arguments)
    drawing = bool(cfg.metrics or cfg.reference or cfg.protocol)
    view = View.of(what, cfg.trust, cfg.space == "pixels" and (drawing or cfg.reference_out is not None))
    seen, decoding = view.data(data), view.codec is not None
    if data.codec is not None and not decoding and not isinstance(features, Pixels):
        raise ConfigError("features= are of pictures, and latents are none; use features=pixels, or space=pixels")
    if isinstance(features, NetworkFeatures) and isinstance(features.module, nn.Module):
        features.module.to(what.device)
    shown = read_samples(cfg.samples, seen, raw=decoding) if cfg.samples is not None and drawing else None
    if cfg.metrics:
        drawn = cfg.num_samples if shown is None else len(shown)
        check_sizes(cfg.metrics, drawn, len(data.test), len(data.train), cfg.compared)
    told = json.dumps(values, sort_keys=True, default=str)
    processes.agree({"settings": told, "checkpoint": checkpoint.digest, "device": what.device.type})
    folder = Path(processes.on_main(lambda: str(_folder(cfg, checkpoint))))

    say(f"evaluating checkpoint {checkpoint.path} under {model.perturbation} on held-out {data.name}")
    about: dict[str, Any] = {
        **what.about(),
        "weights": cfg.weights,
        "trained_under": repr(model.trained_under),
        "data": data.name,
        "held_out": len(data.test),
        "seed": cfg.seed,
    }
    if data.codec is not None:
        about |= {"likelihood_space": "latent", "space": "pixels" if decoding else "latent"}
        say(f"likelihoods are of latents, distances of {'decoded samples' if decoding else 'latents'}")
    if "imported" in checkpoint.state:
        about |= {"diagnosis": processes.on_main(lambda: diagnosed(what.model, data, what.conditional, cfg.seed))}
    with notes_said():
        likelihoods = _likelihoods(cfg, likelihood, what, data)
        model_x = None if decoding else shown
        if drawing and shown is None:
            model_x, drawn = _draw(cfg, what, data)
            about |= drawn
        elif shown is not None:
            about |= {"samples": str(cfg.samples), "num_samples": len(shown)}

    def finish() -> dict[str, Any]:
        Evaluation(about, likelihoods, []).write(folder)  # the distances may take long, or fail
        samples = view(model_x) if shown is None and model_x is not None else shown
        write_arrays(folder / "evaluation.npz", samples, seen.transform, likelihoods, model_x)
        found = _distances(cfg, samples, seen, features) if samples is not None else []
        if samples is not None and seen.columns:
            raw = (seen.transform.inverse(x).numpy() for x in (samples, seen.test))
            about["columns"] = compared_columns(seen.columns, *raw)
        about.update(_against(cfg, samples, seen, features))
        evaluation = Evaluation(about, likelihoods, found)
        evaluation.write(folder)
        _picture(folder, samples, seen, found)
        for line in evaluation.lines():
            say(line)
        for row in about.get("columns", ()):
            apart = row.get("wasserstein", row.get("total_variation"))
            measure = "W1, standard deviations" if "wasserstein" in row else "total variation"
            say(f"  column {row['name']}: {apart:.4f} ({measure})")
        say(f"  written to {folder}")
        return evaluation.to_dict()

    return processes.on_main(finish)


def _by_protocol(cfg: EvaluateConfig, arguments: Sequence[str]) -> EvaluateConfig:
    """`cfg` with what its protocol asks, and nothing else unless it was asked for."""
    if cfg.reference_out is not None and not cfg.reference_out.endswith(".npz"):
        raise ConfigError(f"reference_out={cfg.reference_out} must be a file that ends in .npz")
    if cfg.reference is not None:
        Statistics.read(
            cfg.reference, str(cfg.features.get("_target_"))
        )  # what cannot be used is known before anything is drawn
    if cfg.protocol is None:
        return cfg

    def asked(name: str) -> bool:
        return any(argument.lstrip("+").startswith((f"{name}=", f"{name}.")) for argument in arguments)

    name = str(cfg.features.get("_target_"))
    check_protocol(cfg.protocol, name, asked, cfg.num_samples)
    features = cfg.features if name.endswith(".inception") else {"_target_": "sde_gen.metrics.inception"}
    return replace(cfg, num_samples=PROTOCOLS[cfg.protocol], features=features,
                   metrics=cfg.metrics if asked("metrics") else [],
                   likelihood=cfg.likelihood if asked("likelihood") else "none")  # fmt: skip


def _against(cfg: EvaluateConfig, samples: Tensor | None, data: Dataset, features: Features) -> dict[str, Any]:
    """The distance from stored statistics, where one is asked for; statistics of the data, where they are."""
    if cfg.reference_out is not None:
        path = training_statistics(data, features).write(cfg.reference_out)
        say(f"statistics of {features.name} of {data.size} training samples written to {path}")
    if samples is None or not (cfg.reference or cfg.protocol):
        return {}
    return {"frechet": Reference(cfg.reference, cfg.protocol).compared(samples, data, features)}


def _check_metrics(cfg: EvaluateConfig) -> None:
    """Refuse now what `metrics.summary` would refuse after the sampling."""
    for name in cfg.metrics:
        if name not in METRICS:
            raise ConfigError(
                f"metrics={name} is not a metric{did_you_mean(name, METRICS)}; there are {', '.join(METRICS)}"
            )
        least = METRICS[name].smallest
        if cfg.samples is None and cfg.num_samples < least:
            raise ConfigError(f"num_samples={cfg.num_samples} is too few for {name}, which needs {least}; draw more")


def _folder(cfg: EvaluateConfig, checkpoint: Checkpoint) -> Path:
    """Where the results go; made before anything is computed that would have no place."""
    if cfg.out is not None:
        return make_folder(Path(str(cfg.out)).expanduser(), "the output folder")
    return fresh_folder(checkpoint, "evaluated", f"step{checkpoint.step}")


def _likelihoods(
    cfg: EvaluateConfig, given: LikelihoodSettings, what: Trained, data: Dataset
) -> list[HeldOutLikelihood]:
    if cfg.likelihood == "none":
        return []
    count = len(data.test) if given.samples is None else min(given.samples, len(data.test))
    order = torch.randperm(len(data.test), generator=keyed_generator(cfg.seed, 2))
    indices = order[:count].sort().values
    condition = held_out_condition(data, indices, what.device) if what.conditional else {}
    ode = asdict(given)
    del ode["samples"]
    options = {"vlb": {"terms": ode.pop("terms")}, "ode": ode}
    results = []
    for kind in ("ode", "vlb") if cfg.likelihood == "both" else (cfg.likelihood,):
        by = "by the probability-flow ODE" if kind == "ode" else "variational bound"
        say(f"likelihood of {count} held-out samples, {by}")
        found = held_out_likelihood(
            kind,
            what.model,
            data.test[indices].to(what.device),
            data.transform,
            indices=indices,
            condition=condition,
            law=data.law,
            seed=cfg.seed,
            chunk=cfg.chunk,
            progress=what.processes.is_main,
            processes=what.processes,
            **options[kind],
        )
        for index, reason in found.failed.items():
            say(f"note: held-out sample {index} has no likelihood and does not count: {reason}")
        results.append(found)
    return results


def _draw(cfg: EvaluateConfig, what: Trained, data: Dataset) -> tuple[Tensor, dict[str, Any]]:
    """Samples, and what the report says of them."""

    def draw(rows: slice) -> tuple[Tensor, int]:
        turn = torch.arange(rows.start, rows.stop) % len(data.test)  # classes as often as in the held-out data
        condition = held_out_condition(data, turn, what.device) if what.conditional else {}
        samples = what.sampler(
            what.model,
            (rows.stop - rows.start, *data.shape),
            seed=cfg.seed,
            first=rows.start,
            condition=condition,
            progress=what.processes.is_main,
            chunk=cfg.chunk,
            device=what.device,
        )
        return samples.x.float().cpu(), samples.nfe

    turns = held_out_condition(data, torch.arange(len(data.test))[:64], what.device) if what.conditional else {}
    what = settled(what, data.shape, turns, lambda: data)
    length = part_length(cfg.num_samples, data.shape, cfg.chunk)
    say(f"sampling {cfg.num_samples} with {said(what.sampler)}")
    say_cost(what, data.shape, turns, cfg.num_samples, length)
    began = time.perf_counter()
    parts = in_parts(what.processes, cfg.num_samples, length, draw)
    about = {"sampler": repr(what.sampler), "num_samples": cfg.num_samples, "nfe": max(nfe for _, nfe in parts)}
    return torch.cat([x for x, _ in parts]), about | {"seconds": round(time.perf_counter() - began, 3)}


def _distances(cfg: EvaluateConfig, x: Tensor, data: Dataset, features: Features) -> list[MetricResult]:
    """Each metric of the samples, and of as many training samples, against the held-out data."""
    titles: list[str] = []
    bar = tqdm(total=len(cfg.metrics), unit="metric", disable=not draws_bars(), dynamic_ncols=True)

    def tell(title: str) -> None:
        titles.append(title)
        bar.n = len(titles) - 1
        bar.set_description(title)

    def tick() -> None:
        if draws_bars():
            bar.refresh()
        elif titles:
            say(f"  metric {len(titles)} of {len(cfg.metrics)}: {titles[-1]}")

    with bar, ticking(tick):
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


def _picture(folder: Path, x: Tensor | None, data: Dataset, found: Sequence[MetricResult]) -> None:
    if not pictures.has_matplotlib():
        say("matplotlib is not installed, so there is no picture; run pip install 'sde_gen[plot]'")
        return
    pictures.save_image(pictures.evaluation_picture(x, data.test, found), folder / "evaluation.png")
