"""The variational bound against the exact density of a mixture: what is lost, and how well one evaluation knows it.

    python benchmarks/bound.py [--samples 1000] [--out docs/pictures/bound.png]

A mixture of 8 anisotropic Gaussians in 16 dimensions, with its exact score. For chains of several lengths with both
fixed variances, and for SDEs in continuous time: E[log p - bound] in nats per dimension, its standard error over the
samples, the mean standard error of one sample's bound, and network calls. Then the same estimate in continuous time
without the control variate, as the ratio of the variances of repeats. Writes a picture of the terms.
"""

import argparse
from pathlib import Path

import torch

import sde_gen as sg
from sde_gen import pictures
from sde_gen.likelihood import variational

MODES, DIM = 8, 16


def mixture() -> sg.GaussianMixture:
    """Means of size 1, standard deviations from 0.05 to 0.5 in random directions."""
    generator = torch.Generator().manual_seed(0)
    means = 0.5 * torch.randn(MODES, DIM, dtype=torch.float64, generator=generator)
    axes, _ = torch.linalg.qr(torch.randn(MODES, DIM, DIM, dtype=torch.float64, generator=generator))
    spread = torch.linspace(0.05, 0.5, DIM, dtype=torch.float64).square()
    return sg.GaussianMixture(torch.ones(MODES), means, axes @ torch.diag(spread) @ axes.mT)


def main() -> None:
    """Print the table, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    law = mixture()
    x = law.sample(args.samples, seed=1)
    log_p = law.log_prob(x)
    drawn = {}

    def row(title: str, p: sg.Perturbation, **options: object) -> None:
        bound = sg.variational_bound(law.model(p), x, **options)
        gap = (log_p - bound.log_prob) / DIM
        error = float(bound.standard_error.square().mean().sqrt()) / DIM
        spread = float(gap.std()) / args.samples**0.5
        print(f"{title:34s} {float(gap.mean()):10.4f} {spread:10.4f} {error:10.4f} {bound.nfe:6d}")
        drawn[title] = bound

    print(f"{'nats per dimension':34s} {'lost':>10s} {'+-':>10s} {'+- of one':>10s} {'calls':>6s}")
    for variance in ("small", "large"):
        for steps in (10, 30, 100, 300, 1000):
            row(f"DDPM, {steps} steps, {variance}", sg.DDPM(1000), steps=steps, variance=variance)
    row("DDPM, 1000 steps, large, 50 drawn", sg.DDPM(1000), terms=50, variance="large")
    row("NCSN, 232 steps, small", sg.NCSN())
    for p in (sg.VP(), sg.SubVP(), sg.VE(), sg.EDM(), sg.Cosine(), sg.FlowMatching()):
        row(f"{type(p).__name__}, continuous", p)

    repeats = 200
    few = x[:16].repeat_interleave(repeats, 0)

    def spread() -> float:
        bound = sg.variational_bound(law.model(sg.VP()), few, seed=7)
        return float(bound.diffusion.reshape(16, repeats).var(1).mean())

    ours, kept = spread(), variational._predictable
    variational._predictable = lambda error, drawn: torch.zeros_like(error)
    print(f"variance with the control variate over without: {ours / spread():.3f}")
    variational._predictable = kept
    if args.out is not None:
        shown = ("DDPM, 1000 steps, small", "DDPM, 1000 steps, large", "VP, continuous", "VE, continuous")
        pictures.save_image(pictures.bound_terms({name: drawn[name] for name in shown}), args.out)


if __name__ == "__main__":
    main()
