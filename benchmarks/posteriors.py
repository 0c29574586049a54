"""Published samplers of inverse problems against exact posteriors, beside those of the library.

    python benchmarks/posteriors.py [--problem 2d 8d blur small 64d] [--observations 8] [--samples 512] [--out FILE]

Data from mixtures of Gaussians with the exact score: all error is the method's. The published methods are written here
as in their papers, small, because they were measured and found no place in the library:

- replacement and RePaint (Lugmayr et al. 2022, arXiv:2201.09865), for masks alone;
- DPS (Chung et al. 2022, arXiv:2209.14687), with norms of each sample, step zeta = 0.3;
- DDRM (Kawar et al. 2022, arXiv:2201.11793), eta = 0.85, eta_b = 1;
- DiffPIR (Zhu et al. 2023, arXiv:2305.08995), lambda = 7, zeta = 0.1;
- DAPS (Zhang et al. 2024, arXiv:2407.01521), its inner Langevin steps replaced by the exact Gaussian draw.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import sde_gen as sg
from sde_gen.inverse import Blur, Mask, Matrix, Operator, Posterior, Reshape
from sde_gen.inverse.compared import METHODS

GRID = sg.KarrasRho()


class Chain:
    """The model that a posterior guides, at K levels, its ancestral or deterministic steps, and a generator."""

    def __init__(self, posterior: Posterior, shape: tuple[int, ...], seed: int, steps: int, eta: float = 1.0) -> None:
        p, model = posterior.perturbation, posterior.base
        self.times = GRID.times(p, steps, *posterior.times_within())
        alpha, sigma = p.curves(self.times)
        like = torch.empty(shape, dtype=torch.float64)
        self.levels, self.generator = model.levels(alpha, sigma, like), torch.Generator().manual_seed(seed)
        self.std = p.posterior(self.times[1:], self.times[:-1])[2] * eta
        self.of_x = (sigma[1:].square() - self.std.square()).clamp_min(0).sqrt() / sigma[:-1]
        self.of_data = alpha[1:] - self.of_x * alpha[:-1]
        self.alpha, self.sigma, self.rho = alpha, sigma, sigma / alpha
        self.a = posterior.operator.matrix(shape[1:])
        self.y, self.s = posterior.operator.read(posterior.y[None].double(), shape[1:])[0], float(posterior.noise_std)
        self.like = like

    def noise(self, like: Tensor | None = None) -> Tensor:
        return torch.randn((self.like if like is None else like).shape, dtype=torch.float64, generator=self.generator)

    def start(self) -> Tensor:
        return self.noise() * self.sigma[0]

    def step(self, k: int, x: Tensor, denoised: Tensor) -> Tensor:
        return self.of_x[k] * x + self.of_data[k] * denoised + self.std[k] * self.noise()

    def done(self, x: Tensor, products: int = 0) -> sg.Samples:
        return sg.Samples(x, self.levels.calls, 0.0, products=products)


def repaint(jumps: int) -> Callable[..., sg.Samples]:
    """Replacement of what is seen, and `jumps` rounds at each level."""

    def run(posterior: Posterior, shape: tuple[int, ...], seed: int = 0, dtype: Any = None) -> sg.Samples:
        c = Chain(posterior, shape, seed, 100)
        seen = c.a.argmax(1)
        p, x = posterior.perturbation, c.start()
        for k in range(len(c.times)):
            for j in range(jumps):
                spread = (c.sigma[k] ** 2 - (c.alpha[k] * c.s) ** 2).clamp_min(0).sqrt()  # y is noisy already
                x = x.clone()
                x[:, seen] = c.alpha[k] * c.y + spread * c.noise(x[:, seen])
                denoised = c.levels.denoised(k, x)
                if k == len(c.times) - 1:
                    return c.done(denoised)
                x = c.step(k, x, denoised)
                if j < jumps - 1:
                    forth, b = p.transition(c.times[k + 1], c.times[k])
                    x = forth * x + b * c.noise()
        return c.done(x)

    return run


def dps(
    posterior: Posterior, shape: tuple[int, ...], seed: int = 0, dtype: Any = None, zeta: float = 0.3
) -> sg.Samples:
    """A step of size zeta down the gradient of |y - A D|."""
    c = Chain(posterior, shape, seed, 1000)
    x = c.start()
    for k in range(len(c.times)):
        with torch.enable_grad():
            at = x.requires_grad_()
            denoised = c.levels.denoised(k, at)
            (g,) = torch.autograd.grad((c.y - denoised @ c.a.T).norm(dim=1).sum(), at)
        x, denoised = x.detach(), denoised.detach()
        x = (c.step(k, x, denoised) if k < len(c.times) - 1 else denoised) - zeta * g
    return c.done(x, len(c.times))


def ddrm(posterior: Posterior, shape: tuple[int, ...], seed: int = 0, dtype: Any = None) -> sg.Samples:
    """Each singular direction on its own, by whether it is seen better than the level's noise."""
    c, eta = Chain(posterior, shape, seed, 100), 0.85
    u, values, vh = torch.linalg.svd(c.a, full_matrices=True)
    r = len(values)
    y, ratio = (c.y @ u)[:r] / values, c.s / values
    x = (c.noise() * c.rho[0]) @ vh.T
    x[:, :r] = torch.where(
        c.rho[0] > ratio, y + (c.rho[0] ** 2 - ratio**2).clamp_min(0).sqrt() * c.noise(x[:, :r]), x[:, :r]
    )
    for k in range(len(c.times)):
        denoised = c.levels.denoised(k, c.alpha[k] * (x @ vh))
        if k == len(c.times) - 1:
            return c.done(denoised)
        d, after, z = denoised @ vh.T, c.rho[k + 1], c.noise()
        new = d + (1 - eta**2) ** 0.5 * after * (x - d) / c.rho[k] + eta * after * z
        blind = d[:, :r] + (1 - eta**2) ** 0.5 * after * (y - d[:, :r]) / ratio + eta * after * z[:, :r]
        seen = y + (after**2 - ratio**2).clamp_min(0).sqrt() * z[:, :r]
        new[:, :r] = torch.where(after >= ratio, seen, blind)
        x = new
    return c.done(x)


def diffpir(posterior: Posterior, shape: tuple[int, ...], seed: int = 0, dtype: Any = None) -> sg.Samples:
    """A proximal step for the observation at each level, then part of the noise anew."""
    c, weight, zeta = Chain(posterior, shape, seed, 100), 7.0, 0.1
    x, eye = c.start(), torch.eye(c.a.shape[1], dtype=torch.float64)
    for k in range(len(c.times)):
        denoised = c.levels.denoised(k, x)
        if k == len(c.times) - 1:
            return c.done(denoised)
        pull = weight * c.s**2 / c.rho[k] ** 2
        d = torch.linalg.solve(c.a.T @ c.a + pull * eye, (c.y @ c.a + pull * denoised).T).T
        noise = (x - c.alpha[k] * d) / c.sigma[k]
        x = c.alpha[k + 1] * d + c.sigma[k + 1] * ((1 - zeta) ** 0.5 * noise + zeta**0.5 * c.noise())
    return c.done(x)


def daps(posterior: Posterior, shape: tuple[int, ...], seed: int = 0, dtype: Any = None) -> sg.Samples:
    """Data from the flow, a Gaussian draw around them given y, and noise of the next level on top."""
    c, p, inner = Chain(posterior, shape, seed, 100), posterior.perturbation, 5
    x, eye = c.start(), torch.eye(c.a.shape[1], dtype=torch.float64)
    for k in range(len(c.times)):
        last = k == len(c.times) - 1
        times = c.times[-1:] if last else GRID.times(p, inner, float(c.times[-1]), float(c.times[k]))
        alpha, sigma = p.curves(times)
        levels = c.levels.at(alpha, sigma)
        for j in range(len(times)):
            denoised = levels.denoised(j, x)
            if j < len(times) - 1:
                x = alpha[j + 1] * denoised + sigma[j + 1] * (x - alpha[j] * denoised) / sigma[j]
        root = torch.linalg.cholesky(c.a.T @ c.a / c.s**2 + eye / c.rho[k] ** 2)
        mean = torch.cholesky_solve((c.y @ c.a / c.s**2 + denoised / c.rho[k] ** 2).T, root).T
        x0 = mean + torch.linalg.solve_triangular(root.T, c.noise().T, upper=True).T
        if last:
            return c.done(x0)
        x = c.alpha[k + 1] * x0 + c.sigma[k + 1] * c.noise()
    return c.done(x)


PUBLISHED: dict[str, Callable[..., sg.Samples]] = {
    "replacement": repaint(1), "RePaint, 10": repaint(10), "DPS, 1000": dps, "DDRM": ddrm, "DiffPIR": diffpir,
    "DAPS, 100 x 5": daps,
}  # fmt: skip


def mixture(dim: int, modes: int, spread: float, low: float, high: float, seed: int = 3) -> sg.GaussianMixture:
    """A random mixture with full covariances whose standard deviations lie between low and high."""
    g = torch.Generator().manual_seed(seed)
    means = spread * torch.randn(modes, dim, generator=g, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(modes, dim, dim, generator=g, dtype=torch.float64))[0]
    std = low * (high / low) ** torch.rand(modes, dim, generator=g, dtype=torch.float64)
    cov = turn @ torch.diag_embed(std**2) @ turn.mT
    return sg.GaussianMixture(torch.rand(modes, generator=g) + 0.3, means, (cov + cov.mT) / 2)


def digits() -> sg.GaussianMixture:
    """One Gaussian for each class of the 8 x 8 digits, on [-1, 1]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.from_numpy(data.data / 8 - 1)
    parts = [x[torch.from_numpy(data.target == c)] for c in range(10)]
    covs = [0.9 * part.T.cov() + 0.1 * part.T.cov().diagonal().diag() + 0.02 * torch.eye(64) for part in parts]
    return sg.GaussianMixture([len(p) for p in parts], torch.stack([p.mean(0) for p in parts]), torch.stack(covs))


def problems() -> dict[str, Callable[[], tuple[sg.GaussianMixture, Operator, float]]]:
    """Name to law, operator and noise."""
    plane, eight = mixture(2, 8, 1.0, 0.08, 0.25), mixture(8, 10, 0.8, 0.15, 0.6)
    seen = Mask([i in (0, 3, 5) for i in range(8)])
    upper = Mask([i < 24 for i in range(64)])
    return {
        "2d": lambda: (plane, Matrix([[1.0, 0.0]]), 0.3),
        "8d": lambda: (eight, seen, 0.1),
        "blur": lambda: (eight, Blur([[0.2, 0.6, 0.2]]) @ Reshape((1, 1, 8)), 0.5),
        "small": lambda: (plane, Matrix([[1.0, 0.0]]), 0.001),
        "64d": lambda: (digits(), upper, 0.3),
    }  # fmt: skip


def main() -> None:
    """Print a table for each problem, and write all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", nargs="+", choices=list(problems()), default=["2d", "8d", "blur", "small"])
    parser.add_argument("--observations", type=int, default=8)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--library", action="store_true", help="the library's own methods alone")
    parser.add_argument("--out", help="a JSON file for all rows")
    given = parser.parse_args()
    rows = []
    for name in given.problem:
        law, operator, noise = problems()[name]()
        # What replaces numbers that are seen needs numbers, and not mixtures of them.
        skipped = () if isinstance(operator, Mask | Matrix) else ("replacement", "RePaint, 10")
        published = {} if given.library else {k: v for k, v in PUBLISHED.items() if k not in skipped}
        methods = published | METHODS | {"particles, PiGDM, 200": sg.TwistedSMC(twist="pigdm", steps=200)}
        table = sg.compare_posteriors(
            law, operator, noise, methods, observations=given.observations, samples=given.samples
        )
        print(f"\n{name}: {law.dim} numbers, {operator!r}, noise {noise:g}\n{table}", flush=True)
        rows += [{"problem": name, **row} for row in table.rows]
    if given.out:
        with open(given.out, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
