r"""Does parallel-in-time sampling pay? Picard iteration over the steps of a solver, against solvers of fewer steps.

    python benchmarks/picard.py [--out docs/verification]

A multistep rule on N times is a system of N equations, one for each state in terms of those before it. Picard
iteration (Shih et al. 2023, arXiv:2305.16317, "ParaDiGMS") evaluates the network at all N states at once and puts the
answers into all equations; after at most N rounds it is the rule itself. A round costs N calls of work but the time of
one, if the device has N times the room. Here the window is all of the trajectory, which favours it: no round is spent
on sliding a window. It begins from the denoised estimate of the first state.

Shown: the error (against the exact flow) after each number of rounds, the work it took, and the error of sequential
rules with as many calls as Picard made rounds: the same rule, on even half log-SNRs, and the default of "Which
sampler?", on times fitted to the model. It pays where there is
room for N times the work and the first is below the last. That is a property of the equations and not of the device, so
that it can be measured on any.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from budgets import distance
from problems import PROBLEMS, exact_flow
from torch import Tensor

import sde_gen as sg
from sde_gen.samplers.flow import unit_curves
from sde_gen.samplers.grids import GivenLambdas
from sde_gen.tuning.fitted import expand
from sde_gen.tuning.search import usual

ROUNDS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50)


def picard(model: sg.ScoreModel, rule: sg.AdamsBashforth, lambdas: Tensor, start: Tensor, rounds: int) -> list[Tensor]:
    """The sample after each round: u_k = c_k u_0 + sum_j w_kj D(u_j) for all k at once, the D of the round before."""
    p = model.perturbation
    of_start, of_estimates = expand(p, rule, lambdas)
    alpha, sigma = unit_curves(lambdas)
    t = p.time(lambdas[0])
    first = start / float((p.alpha(t) ** 2 + p.sigma(t) ** 2) ** 0.5)
    count, batch = len(lambdas), len(start)
    a, s = (c[:, None].expand(count, batch).reshape(-1) for c in (alpha, sigma))

    def estimates(u: Tensor) -> Tensor:
        return model.predict(u.reshape(count * batch, -1), a, s, {}).denoised.reshape(count, batch, -1)

    guess = model.predict(first, alpha[:1].expand(batch), sigma[:1].expand(batch), {}).denoised
    d = guess.expand(count, batch, -1)
    out = []
    for _ in range(rounds):
        inner = of_start[:-1, None, None] * first + torch.einsum("kj,jbn->kbn", of_estimates[:-1], d)
        d = estimates(torch.cat([first[None], inner]))
        out.append(of_start[-1] * first + torch.einsum("j,jbn->bn", of_estimates[-1], d))
    return out


def main() -> None:
    """Compute, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/verification"))
    parser.add_argument("--times", type=int, nargs="+", default=[20, 50, 200])
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for name, make in PROBLEMS.items():
        law = make()
        p = sg.VP()
        model = law.model(p)
        start = torch.randn(64, law.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        truth = exact_flow(law, p, start, p.t_max)
        ends = p.half_log_snr(torch.tensor([p.t_max, p.t_min], dtype=torch.float64)).tolist()

        def grid(n: int, ends: list[float] = ends) -> GivenLambdas:
            return GivenLambdas(tuple(torch.linspace(*ends, n, dtype=torch.float64).tolist()))

        rule = sg.AdamsBashforth(order=3, prediction="velocity")
        for n in ROUNDS:
            result = sg.AdamsBashforth(order=3, prediction="velocity", grid=grid(n))(model, start=start)
            rows.append({"problem": name, "method": "in turn", "rounds": n, "work": n, **distance(result.x, truth)})
            if n >= 5:
                default, times = usual(n)
                fitted = sg.fit_grid(model, times, default, shape=(law.dim,))
                result = replace(default, grid=fitted)(model, start=start)
                method = "in turn, the default"
                rows.append({"problem": name, "method": method, "rounds": n, "work": n, **distance(result.x, truth)})
        for count in args.times:
            lambdas = torch.tensor(grid(count).values, dtype=torch.float64)
            states = picard(model, rule, lambdas, start, min(count, max(ROUNDS)))
            rows += [{"problem": name, "method": f"Picard, {count} times", "rounds": n, "work": n * count + 1,
                      **distance(states[n - 1], truth)} for n in ROUNDS if n <= len(states)]  # fmt: skip
    text = markdown(rows)
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "picard.json").write_text(json.dumps(rows, indent=1))
    (args.out / "picard.md").write_text(text)


def markdown(rows: list[dict]) -> str:
    """The tables."""
    lines = [
        "# Parallel in time?",
        "",
        "`python benchmarks/picard.py` prints and writes this page; its head says what is measured.",
        "",
    ]
    for problem in dict.fromkeys(r["problem"] for r in rows):
        mine = [r for r in rows if r["problem"] == problem]
        lines += [f"## {problem}: RMSE per dimension (network calls of work)", "",
                  "| rounds | " + " | ".join(map(str, ROUNDS)) + " |", "|---|" + "---|" * len(ROUNDS)]  # fmt: skip
        for method in dict.fromkeys(r["method"] for r in mine):
            by = {r["rounds"]: r for r in mine if r["method"] == method}
            cells = " | ".join(f"{by[n]['rmse']:.2g} ({by[n]['work']})" if n in by else "" for n in ROUNDS)
            lines.append(f"| {method} | {cells} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
