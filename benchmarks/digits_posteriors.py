"""Half of the pixels of a digit, the other half drawn: the library's guidance beside DPS, RePaint and DDRM.

    python benchmarks/digits_posteriors.py [--model FOLDER] [--digits 12] [--batches 2] [--steps 100] [--out FILE]

The network is the small one of the tutorials, without labels. Held-out digits have their upper half observed with noise
of standard deviation 0.2; each method draws 19 completions of each, so that the central region of 18 holds the truth 90
% of the time where the draws have the right law. CRPS, coverage and the squared misfit over that of the noise, over all
pixels. Numbers are written after every batch of digits.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import posterior_published
import torch
from torch import Tensor, nn

import sde_gen as sg
from sde_gen.inverse import Mask, Posterior

DRAWS, NOISE = 19, 0.2
SEEN = torch.arange(64) < 32


class Flat(nn.Module):
    """A network of images as one of vectors, which is what the published methods are written for."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.image = network, shape

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.network(x.unflatten(1, self.image), c_noise).flatten(1)


def methods(steps: int) -> dict[str, Callable[..., sg.Samples]]:
    """Name to a method, called as `method(posterior, shape, seed)`."""
    chain = sg.Ancestral(steps=steps, grid="lambda")
    return {
        "Posterior, MMPS": lambda posterior, shape, seed: chain(posterior.using("mmps"), shape, seed=seed),
        "Posterior, PiGDM": lambda posterior, shape, seed: chain(posterior.using("pigdm"), shape, seed=seed),
        "DDRM": posterior_published.ddrm,
        "DPS": lambda posterior, shape, seed: posterior_published.dps(posterior, shape, seed, steps=200),
        "RePaint": lambda posterior, shape, seed: posterior_published.repaint(4, 40)(posterior, shape, seed),
    }


def drawn(model: sg.ScoreModel, truth: Tensor, seed: int, steps: int) -> tuple[Tensor, dict[str, Any]]:
    """What was observed, (N, 32), and for each method its draws, (S, N, 64), with what they cost."""
    noise = torch.randn(len(truth), 32, generator=torch.Generator().manual_seed(seed))
    y = truth[:, SEEN] + NOISE * noise
    posterior = Posterior(model, Mask(SEEN), sg.Rows(y.repeat(DRAWS, 1)), NOISE)
    found = {}
    for name, method in methods(steps).items():
        result = method(posterior, (DRAWS * len(truth), 64), seed)
        found[name] = (result.x.detach().float().unflatten(0, (DRAWS, len(truth))), result)
    return y, found


def rows(truth: Tensor, y: Tensor, draws: dict[str, Tensor], cost: dict[str, tuple[int, int]]) -> list[dict[str, Any]]:
    """The calibration of each method's draws, (S, N, 64)."""
    table = []
    for name, x in draws.items():
        c = sg.metrics.calibration(x, truth)
        region = c.coverage[-1]
        table.append({
            "method": name, "digits": c.n, "draws": c.draws, "crps": c.crps, "crps_error": c.crps_error,
            "nominal": region.nominal, "coverage": region.found, "coverage_error": region.standard_error,
            "residual": float(((x[..., SEEN] - y) / NOISE).square().mean()), "calls": cost[name][0],
            "products": cost[name][1],
        })  # fmt: skip
    return table


def markdown(table: list[dict[str, Any]]) -> str:
    """The table of the page."""
    head = "| method | CRPS | 90 % regions cover | misfit over noise | calls | products |\n|---|---|---|---|---|---|\n"
    return head + "".join(
        f"| {row['method']} | {row['crps']:.3f} ± {row['crps_error']:.3f} | {row['coverage']:.3f} ± "
        f"{row['coverage_error']:.3f} | {row['residual']:.2f} | {row['calls']} | {row['products']} |\n"
        for row in table
    )


def picture(truth: Tensor, y: Tensor, draws: dict[str, Tensor], out: Path) -> None:
    """For two digits: what was seen, seven draws of each method, the truth."""
    blocks = []
    for i in (0, 1):
        seen = torch.full((64,), -0.5)
        seen[SEEN] = y[i]
        blocks += [torch.cat([seen[None], x[:7, i], truth[i : i + 1]]) for x in draws.values()]
    sg.pictures.save_image(sg.pictures.image_grid(torch.cat(blocks).reshape(-1, 1, 8, 8), columns=9), out)


def main() -> None:
    """Draw batch after batch, write the numbers and a picture of the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="docs/examples/digits-labels")
    parser.add_argument("--digits", type=int, default=12, help="of a batch")
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100, help="of the library's chain")
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers, with a picture beside")
    given = parser.parse_args()
    trained = sg.load(given.model)
    model = sg.ScoreModel(Flat(trained.network, (1, 8, 8)), trained.perturbation, trained.parameterization).eval()
    held_out = sg.data.digits().test.flatten(1)
    chosen = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))
    truths, ys, draws, table = [], [], {}, []
    for batch in range(given.batches):
        truth = held_out[chosen[batch * given.digits : (batch + 1) * given.digits]]
        y, found = drawn(model, truth, batch, given.steps)
        truths.append(truth)
        ys.append(y)
        for name, (x, _) in found.items():
            draws.setdefault(name, []).append(x)
        whole = {name: torch.cat(parts, 1) for name, parts in draws.items()}
        cost = {name: (result.nfe, result.products) for name, (_, result) in found.items()}
        table = rows(torch.cat(truths), torch.cat(ys), whole, cost)
        print(markdown(table), flush=True)
        if given.out:
            given.out.write_text(json.dumps(table, indent=1) + "\n", "utf-8")
            picture(torch.cat(truths), torch.cat(ys), whole, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
