"""Posteriors by each method against the exact one: the work of `python -m sde_gen.compare experiment=posteriors`."""

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from sde_gen import pictures
from sde_gen.checks import integer, number
from sde_gen.config.launch import say
from sde_gen.config.schema import PosteriorSettings
from sde_gen.errors import ConfigError
from sde_gen.files import write_json, write_text
from sde_gen.inverse import Mask, TwistedSMC, compare_posteriors
from sde_gen.inverse.compared import METHODS
from sde_gen.oracles import GaussianMixture
from sde_gen.rng import keyed_generator

_PROBLEM = {"dim", "modes", "spread", "least", "most", "seen", "noise_std", "seed"}
_HEAD = """# Posteriors against exact ones

x is drawn from a mixture of Gaussians, y = A x + noise is observed, and each method draws x given y with the exact
score: all that is wrong is the method's. *over floor*: sliced Wasserstein-2 distance to exact draws over that of
two exact sets, 1 where none is to be seen, ± what exact draws scatter by; *modes off*: total variation of the weights
of the modes; *residual*: |y - A x|^2 in units of the noise, over that of exact draws; *log p(y) off* in nats; *calls*
of the network and *products* with its Jacobian, for a sample.
"""


def compared(cfg: PosteriorSettings, folder: Path, command: str) -> dict[str, Any]:
    """Compare as `cfg` says, write `posteriors.md`, `.csv`, `.json` and `.png`, and return the means.

    Raises:
        ConfigError: a problem with a setting that there is not, or a value outside its range.
    """
    problems = {str(name): _problem(str(name), given) for name, given in cfg.problems.items()}
    methods = METHODS | {"particles, PiGDM, 200 steps": TwistedSMC(twist="pigdm", steps=200)}
    rows: list[dict[str, Any]] = []
    parts, means = [_HEAD, f"    {command}\n"], {}
    for name, (law, operator, noise_std) in problems.items():
        say(f"{name}: {law.dim} numbers, {len(law.weights)} modes, {operator!r}, noise {noise_std:g}")
        table = compare_posteriors(
            law, operator, noise_std, methods, observations=cfg.observations, samples=cfg.samples,
            repeats=cfg.repeats, seed=cfg.seed,
        )  # fmt: skip
        for line in str(table).splitlines():
            say(f"  {line}")
        parts.append(f"## {name}\n\n{_markdown(table.means())}")
        means[name] = table.means()
        rows += [{"problem": name, **row} for row in table.rows]
    about = {"command": command, "observations": cfg.observations, "samples": cfg.samples, "repeats": cfg.repeats,
             "rows": rows}  # fmt: skip
    write_json(folder / "posteriors.json", about)
    write_text(folder / "posteriors.csv", _csv(rows), "the rows")
    if pictures.has_matplotlib():
        pictures.save_image(pictures.posteriors_picture(rows), folder / "posteriors.png")
        parts.append("![distances, a dot for each observation](posteriors.png)\n")
    write_text(folder / "posteriors.md", "\n".join(parts), "the report")
    say(f"report {folder / 'posteriors.md'}")
    return means


def mixture(dim: int, modes: int, spread: float, least: float, most: float, seed: int) -> GaussianMixture:
    """A random mixture: means of standard deviation `spread`, full covariances of standard deviations least to most."""
    g = keyed_generator(seed, 7)
    means = spread * torch.randn(modes, dim, generator=g, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(modes, dim, dim, generator=g, dtype=torch.float64))[0]
    std = least * (most / least) ** torch.rand(modes, dim, generator=g, dtype=torch.float64)
    cov = turn @ torch.diag_embed(std**2) @ turn.mT
    return GaussianMixture(torch.rand(modes, generator=g) + 0.3, means, (cov + cov.mT) / 2)


def _problem(name: str, given: Any) -> tuple[GaussianMixture, Mask, float]:
    where = f"posteriors.problems.{name}"
    if not isinstance(given, Mapping) or set(given) != _PROBLEM:
        raise ConfigError(f"{where} must have exactly {', '.join(sorted(_PROBLEM))}, got {given!r}")
    whole = {key: integer(where, key, given[key]) for key in ("dim", "modes")}
    real = {key: number(where, key, given[key], low=0, open_low=True) for key in ("spread", "least", "most")}
    seen = given["seen"]
    if not isinstance(seen, list) or not seen or not set(seen) <= set(range(whole["dim"])):
        raise ConfigError(f"{where}.seen must list numbers in 0..{whole['dim'] - 1}, those that are seen; got {seen!r}")
    law = mixture(whole["dim"], whole["modes"], real["spread"], real["least"], real["most"],
                  integer(where, "seed", given["seed"], low=0))  # fmt: skip
    noise_std = number(where, "noise_std", given["noise_std"], low=0, open_low=True)
    return law, Mask([i in seen for i in range(law.dim)]), noise_std


_COLUMNS = {
    "method": "method", "distance": "over floor", "distance_error": "±", "worst": "worst", "modes": "modes off",
    "worst_modes": "worst", "residual": "residual", "evidence": "log p(y) off", "nfe": "calls", "products": "products",
    "seconds": "seconds",
}  # fmt: skip


def _markdown(means: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"| {' | '.join(_COLUMNS.values())} |", "|---" * len(_COLUMNS) + "|"]
    for row in means:
        shown = [row[key] for key in _COLUMNS]
        cells = ["" if v != v else f"{v:.3g}" if isinstance(v, float) else str(v) for v in shown]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
