"""Are the draws of a task as spread as they should be? The work of `python -m sde_gen.evaluate task=...`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_gen import pictures
from sde_gen.conditions import Rows
from sde_gen.config.launch import say
from sde_gen.config.schema import EvaluateConfig
from sde_gen.data import Dataset
from sde_gen.errors import ConfigError
from sde_gen.files import write_json
from sde_gen.jobs.common import Trained, held_out_condition, notes_said, table
from sde_gen.jobs.restoring import noisy, operator_of, posterior_of, sampler_of
from sde_gen.metrics import Calibration, calibration, ranks
from sde_gen.rng import keyed_generator

_KEY = 3


def calibrated(
    cfg: EvaluateConfig, what: Trained, data: Dataset, folder: Path, arguments: Sequence[str]
) -> dict[str, Any]:
    """Observe held-out samples, draw what the observations leave open, and say how the draws lie about the truth.

    Writes `calibration.json` and a picture.

    Raises:
        SDEGenError: one of its subclasses, before any long work where possible.
    """
    if what.processes.world > 1:
        raise ConfigError(f"task={cfg.task} runs in one process; leave torchrun out")
    operator, _, _ = operator_of(cfg, data.shape)
    chosen = torch.randperm(len(data.test), generator=keyed_generator(cfg.seed, _KEY))[: cfg.observations]
    truth = data.test[chosen]
    y = noisy(cfg, operator.apply(truth.double()))
    sampler = sampler_of(cfg, what, arguments)
    rows = len(truth) * cfg.draws
    say(f"task={cfg.task}: {cfg.draws} draws for each of {len(truth)} held-out samples with {sampler}")
    labels = held_out_condition(data, chosen.repeat_interleave(cfg.draws), what.device) if what.conditional else {}
    posterior = posterior_of(cfg, what.model, operator, Rows(y.repeat_interleave(cfg.draws, 0).to(what.device)))
    with notes_said():
        drawn = sampler(posterior, (rows, *data.shape), seed=cfg.seed, chunk=cfg.chunk, device=what.device, **labels)
    x = drawn.x.float().cpu().reshape(len(truth), cfg.draws, *data.shape)
    found = calibration(x.transpose(0, 1), truth, seed=cfg.seed)
    off = (operator.apply(x.flatten(0, 1).double()) - y.repeat_interleave(cfg.draws, 0)) / cfg.noise_std
    report = {
        "task": cfg.task, "operator": repr(operator), "noise_std": cfg.noise_std, "method": cfg.method,
        "sampler": repr(sampler), **what.about(), "weights": cfg.weights, "seed": cfg.seed, "nfe": drawn.nfe,
        "products": drawn.products, "seconds": round(drawn.seconds, 3), "residual": float(off.square().mean()),
        "rmse_of_mean": float((x.mean(1) - truth).square().mean().sqrt()), **asdict(found),
    }  # fmt: skip
    write_json(folder / "calibration.json", report, "the calibration")
    _draw(folder, found, ranks(x.transpose(0, 1), truth), cfg)
    table([*_lines(report, found), ("written to", str(folder))])
    return report


def _lines(report: dict[str, Any], found: Calibration) -> list[tuple[str, str]]:
    lines = [
        ("CRPS", f"{found.crps:.4f}" + (f" +- {found.crps_error:.4f}" if found.crps_error is not None else "")),
        ("residual over noise, squared", f"{report['residual']:.3f} (1 is right)"),
    ]
    for region in found.coverage:
        error = f" +- {region.standard_error:.3f}" if region.standard_error is not None else ""
        lines.append((f"coverage of {region.nominal:.0%} regions", f"{region.found:.3f}{error}"))
    if found.p_values:
        lines.append(("ranks uniform, least p-value", f"{min(found.p_values):.2g} of {len(found.p_values)}"))
    return lines


def _draw(folder: Path, found: Calibration, place: Tensor, cfg: EvaluateConfig) -> None:
    if not pictures.has_matplotlib():
        say("matplotlib is not installed, so there is no picture; run pip install 'sde_gen[plot]'")
        return
    title = f"task={cfg.task} by {cfg.method}, {found.n} observations"
    pictures.save_image(pictures.rank_picture(place, found.draws, title), folder / "calibration.png")
