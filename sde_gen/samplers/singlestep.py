r"""Singlestep exponential integrators: two or three network calls within a step, nothing remembered between steps.

With r the share of the step in lambda, and polynomials integrated exactly (see `exponential.py`):

- order 2: N at 0 and, after a first-order step, at r = 1/2; the step takes the line through both;
- order 3: N at 0, at r = 1/3 after a first-order step, at r = 2/3 after the line through the first two; the step takes
  the line through N at 0 and at 2/3, which is of order 3 as in Heun's third-order rule.

Lu et al. 2022, arXiv:2206.00927 (noise) and arXiv:2211.01095 (data: DPM-Solver++ 2S and 3S).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen.checks import checked
from sde_gen.model import combine
from sde_gen.samplers.exponential import NATURAL, PREDICTIONS, Points, from_state_and_data, integrals
from sde_gen.samplers.grid_sampler import GridSampler, Run, Step, estimate, require_finite
from sde_gen.samplers.grids import ChainNodes, UniformLambda


@dataclass(frozen=True)
class SingleStep(GridSampler):
    """DPM-Solver 2S and 3S (noise) and their ++ forms (data): `order` network calls a step.

    With `denoise=True`, `steps=N` calls the network order (N - 1) + 1 times. A step onto sigma = 0 is one call.

    Args:
        order: 2 or 3.
        prediction: what is interpolated, "data", "noise" or "velocity".

    Raises:
        ConfigError: for values outside these.
    """

    order: int = checked(2, low=2, high=3)  # pyright: ignore[reportIncompatibleVariableOverride]
    prediction: str = checked("data", choices=PREDICTIONS)

    default_steps = 10
    default_grid = UniformLambda()
    chain_grid = ChainNodes("lambda")

    def stepper(self, run: Run) -> Step:
        p, e, prediction = run.perturbation, run.levels, self.prediction
        whole = run.times[:-1][e.sigma[1:] > 0]  # only the last step may land on sigma = 0
        begin, end = Points.of(p, whole), Points.of(p, run.times[1 : len(whole) + 1])
        shares = (0.5,) if self.order == 2 else (1 / 3, 2 / 3)
        stages = [p.time(begin.lam + r * (end.lam - begin.lam)) for r in shares]
        ends = [*(Points.of(p, stage) for stage in stages), end]
        known = [[begin], [begin, ends[0]], [begin, ends[-2]]]
        rows = []
        for to, nodes in zip(ends, known, strict=False):
            places = torch.stack([node.lam for node in nodes], -1)
            carry, weight = integrals(p, prediction, NATURAL[prediction], begin, to, places)
            require_finite(self, p, whole, carry, *weight.unbind(-1))
            rows.append((carry, weight))
        at = [e, *(e.at(*p.curves(stage)) for stage in stages)]
        estimates = []
        landing = 0.0, 0.0
        for where, levels in enumerate(at):
            a, b = from_state_and_data(prediction, levels.alpha, levels.sigma)
            scale, keep = estimate(a + b * levels.skip, b * levels.out)
            estimates.append((scale.tolist(), keep, levels.raw))
            if where == 0 and len(whole) < len(run.times) - 1:
                onto = float(e.alpha[-1] / b[-2])
                landing = float(-a[-2]) * onto, onto * float(scale[-2])
        carries = [carry.tolist() for carry, _ in rows]
        weights = [weight.tolist() for _, weight in rows]
        scratch = run.buffers()

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            (scale, keep, raw), *others = estimates
            d = keep(k, x, raw(k, x))
            if k == len(whole):
                return combine(x, landing[0], d, landing[1], scratch[x is scratch[0]]), None
            moved = combine(x, carries[0][k], d, weights[0][k][0] * scale[k])
            for stage, (scale_r, keep_r, raw_r) in enumerate(others, 1):
                inner = keep_r(k, moved, raw_r(k, moved))
                out = scratch[x is scratch[0]] if stage == len(others) else None
                moved = combine(x, carries[stage][k], d, weights[stage][k][0] * scale[k], out)
                moved.add_(inner, alpha=weights[stage][k][1] * scale_r[k])
            return moved, None

        return step
