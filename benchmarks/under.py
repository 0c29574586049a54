"""One trained network under every formulation: on the same noise levels DDIM gives the same samples.

    python benchmarks/under.py --run runs/demo [--steps 50]

Takes a run trained under any formulation (VP, say), draws one start, and samples it with DDIM through
`model.under(...)` on one list of half log-SNRs. Prints the largest difference of any pixel to the samples of the
trained formulation, and writes a picture with one row for each.
"""

import argparse
import warnings
from pathlib import Path

import torch

import sde_gen as sg
from sde_gen import pictures
from sde_gen.config.restore import load_model

OTHERS = (sg.VP(), sg.SubVP(), sg.VE(), sg.EDM(), sg.Cosine(), sg.FlowMatching(), sg.DDPM(), sg.NCSN())


def main() -> None:
    """Sample, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--shape", type=int, nargs="+", default=[1, 8, 8])
    args = parser.parse_args()
    model = load_model(args.run)
    noise = torch.randn(args.samples, *args.shape, generator=torch.Generator().manual_seed(0))
    # Noise levels that every formulation has: VE's prior is the loudest, its t = 0 the quietest.
    lambdas = torch.linspace(-3.5, 4.5, args.steps, dtype=torch.float64).tolist()
    rows, reference = [], None
    warnings.simplefilter("ignore", sg.BetweenNodesWarning)
    for p in (model.perturbation, *OTHERS):
        t = p.time(lambdas[0])
        start = noise * float((p.alpha(t) ** 2 + p.sigma(t) ** 2).sqrt())
        x = sg.DDIM(grid=sg.GivenLambdas(lambdas))(model.under(p), start=start).x
        reference = x if reference is None else reference
        rows.append(x)
        print(f"{p!r:60s} largest difference {float((x - reference).abs().max()):.2e}")
    if len(args.shape) == 3:
        grid = pictures.image_grid(torch.cat(rows), columns=args.samples)
        pictures.save_image(grid, args.run / "under.png")


if __name__ == "__main__":
    main()
