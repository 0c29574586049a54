"""Sample i depends on (model, sampler, seed, i) alone; NFE is what was called."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import sde_gen as sg
from sde_gen.rng import keyed_generator
from tests.properties.discovery import CORRECTORS, OTHER_SAMPLERS, SAMPLERS

ROOT = Path(__file__).parents[2]
WHOLE = 64
SHAPE = (3,)

MANY: dict[str, sg.Sampler] = {
    **{name: case.make(steps=4) for name, case in SAMPLERS.items()},
    **{
        f"PC with {name}": sg.PredictorCorrector(corrector=c, steps=4)
        for name, c in CORRECTORS.items()
        if not (isinstance(c, sg.Langevin) and c.norm == "batch")
    },
    "ProbabilityFlow": sg.ProbabilityFlow(rtol=1e-2, atol=1e-2),
    "AdaptiveSDE": sg.AdaptiveSDE(rtol=0.1, atol=0.1),
    "Auto": sg.Auto(nfe=3, count=4, effort=0),
    "Fitted": sg.Fitted(
        lambdas=(-5.0, -1.0, 2.0), of_state=(0.9, 0.4, 0.0), of_estimates=((0.1,), (0.2, 0.5), (0.0, 0.1, 0.9))
    ),
    "LimitedUniPC": sg.LimitedUniPC(steps=3),
    "FittedSteps": sg.FittedSteps(lambdas=(-5.0, -1.0, 2.0), of_terms=((-0.1, 1.0), (0.1, 1.0, 0.9))),
    "LangevinDynamics": sg.LangevinDynamics(steps=3, step_size=1e-4),
    "LangevinDynamics(unadjusted)": sg.LangevinDynamics(steps=3, step_size=1e-4, metropolis=False),
    "AnnealedLangevin(metropolis)": sg.AnnealedLangevin(steps=3, rule="metropolis"),
    "ProbabilityFlow(rk4)": sg.ProbabilityFlow(method="rk4", steps=3),
    "ProbabilityFlow(RK23)": sg.ProbabilityFlow(method="RK23", rtol=0.3, atol=0.3),
}


class Elementwise(torch.nn.Module):
    """A network whose rounding cannot depend on the batch; it counts its calls, and the calls for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        self.calls += 1
        shift = c_noise if label is None else c_noise + label
        return torch.sin(3 * x + shift.to(x.dtype)[:, None]) * 0.5 + 0.3 * x


class Dense(torch.nn.Module):
    """A network with matrix products, whose rounding depends on the batch."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.layers = torch.nn.ParameterList(
            torch.randn(n, m, generator=g) / n**0.5 for n, m in ((4, 65), (65, 67), (67, 3))
        )

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        h = torch.cat([x, c_noise[:, None]], 1)
        return torch.tanh(torch.tanh(h @ self.layers[0]) @ self.layers[1]) @ self.layers[2]


def model(network: torch.nn.Module | None = None, p: sg.Perturbation | None = None) -> sg.ScoreModel:
    return sg.ScoreModel(network or Elementwise(), p or sg.VP())


def test_every_other_sampler_is_here() -> None:
    assert set(OTHER_SAMPLERS.values()) <= {type(s) for s in MANY.values()}


@pytest.mark.parametrize("name", MANY)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    sampler, m = MANY[name], model()
    whole = sampler(m, (WHOLE, *SHAPE), seed=11).x
    for batch in (1, 7, 64):
        assert torch.equal(sampler(m, (batch, *SHAPE), seed=11).x, whole[:batch]), f"batch {batch}"
    assert torch.equal(sampler(m, (5, *SHAPE), seed=11, chunk=1).x, whole[:5])
    for chunk in (25, 64, 100):
        assert torch.equal(sampler(m, (WHOLE, *SHAPE), seed=11, chunk=chunk).x, whole), f"chunk {chunk}"
    for first, count in ((0, 3), (1, 1), (13, 20), (63, 1)):
        part = sampler(m, (count, *SHAPE), seed=11, first=first).x
        assert torch.equal(part, whole[first : first + count]), f"first {first}"
    part = sampler(m, (20, *SHAPE), seed=11, first=13, chunk=6).x
    assert torch.equal(part, whole[13:33])
    assert torch.equal(sampler(m, (WHOLE, *SHAPE), seed=11).x, whole)
    assert not torch.equal(sampler(m, (WHOLE, *SHAPE), seed=12).x, whole)
    assert len(torch.unique(whole, dim=0)) == WHOLE  # sin() of a wide state: no two samples end alike


@pytest.mark.parametrize("name", MANY)
def test_a_given_start_is_cut_with_the_chunks(name: str) -> None:
    sampler, m = MANY[name], model()
    start = torch.randn(9, *SHAPE, generator=torch.Generator().manual_seed(2))
    whole = sampler(m, start=start, seed=3).x
    assert torch.equal(sampler(m, start=start, seed=3, chunk=4).x, whole)
    assert torch.equal(sampler(m, start=start[5:], seed=3, first=5).x, whole[5:])
    if not sampler.is_stochastic:  # any order of the samples
        order = torch.tensor([4, 8, 0, 3, 1, 7, 2, 6, 5])
        assert torch.equal(sampler(m, start=start[order], seed=99).x, whole[order])
    else:
        assert not torch.equal(sampler(m, start=start, seed=4).x, whole)


@pytest.mark.parametrize("name", [n for n in MANY if "PC(" not in n])
def test_deterministic_makes_matrix_products_agree_too(name: str) -> None:
    sampler, m = MANY[name], model(Dense())
    whole = sampler(m, (WHOLE + 6, *SHAPE), seed=5, deterministic=True).x
    for batch in (1, 7, 64):
        assert torch.equal(sampler(m, (batch, *SHAPE), seed=5, deterministic=True).x, whole[:batch])
    small = sampler(m, (WHOLE + 6, *SHAPE), seed=5, deterministic=True, chunk=16).x
    assert torch.equal(sampler(m, (7, *SHAPE), seed=5, deterministic=True, chunk=16).x, small[:7])
    # Without it the difference is rounding only (the dynamics expand it by less than 100 in these few steps).
    if "adaptive" not in name and "ProbabilityFlow" not in name:
        plain = sampler(m, (7, *SHAPE), seed=5).x
        torch.testing.assert_close(plain, whole[:7], rtol=0, atol=1e-3 * float(whole.abs().max()))


def test_threads_do_not_disturb_each_other() -> None:
    m = model()
    names = list(MANY)
    alone = {n: MANY[n](m, (8, *SHAPE), seed=21).x for n in names}
    with ThreadPoolExecutor(2) as pool:
        jobs = [(n, pool.submit(MANY[n], m, (8, *SHAPE), seed=21)) for n in names for _ in range(2)]
        for n, job in jobs:
            assert torch.equal(job.result().x, alone[n]), n


def test_threads_share_no_hidden_state() -> None:
    """Every part of a run, many times at once: derivatives of the curves, coefficients, tables of chains, noise."""

    def work(p: sg.Perturbation) -> list[Tensor]:
        samplers = (sg.EulerMaruyama(steps=3), sg.Heun(steps=3), sg.ReverseDiffusion(steps=3))
        return [s(model(p=p), (2, *SHAPE), seed=1).x for _ in range(15) for s in samplers]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(work, [sg.Cosine(), sg.NCSN(levels=9), sg.Cosine(), sg.NCSN(levels=9)] * 2))
    for one, other in ((0, 2), (1, 3), (4, 6), (5, 7), (0, 4)):
        assert all(torch.equal(a, b) for a, b in zip(answers[one], answers[other], strict=True))


def test_processes_agree_and_global_generators_are_left_alone() -> None:
    code = (
        "import torch, sde_gen as sg\n"
        "from tests.properties.test_results import MANY, model\n"
        "torch.set_num_threads(1); torch.manual_seed({seed})\n"
        "names = [n for n in MANY if 'PC(' not in n]\n"
        "print([MANY[n](model(), (3, 3), seed=2**63 + 5, first={first}).x.double().sum().item() for n in names])\n"
        "print(torch.rand(1).item())\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    outputs = []
    for seed in (1, 2):
        done = subprocess.run(
            [sys.executable, "-c", code.format(seed=seed, first=4)], env=env, cwd=ROOT, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.splitlines())
    names = [n for n in MANY if "PC(" not in n]
    here = str([MANY[n](model(), (3, 3), seed=2**63 + 5, first=4).x.double().sum().item() for n in names])
    assert outputs[0][0] == outputs[1][0] == here
    torch.manual_seed(1)
    assert outputs[0][1] == str(torch.rand(1).item()), "a sampler drew from torch's global generator"


# -- noise -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dim", [1, 2, 3, 5, 17, 2000])
def test_noise_of_a_shorter_batch_is_a_prefix(dim: int, dtype: torch.dtype) -> None:
    whole = sg.SeededNoise(7)(torch.empty(150, dim, dtype=dtype), 3, 1)
    assert whole.dtype == dtype
    assert whole.shape == (150, dim)
    for count in (0, 1, 2, 5, 15, 16, 17, 63, 64, 65, 129):
        assert torch.equal(sg.SeededNoise(7)(torch.empty(count, dim, dtype=dtype), 3, 1), whole[:count])
    for first, count in ((1, 1), (3, 64), (63, 2), (64, 64), (127, 23)):
        part = torch.empty(count, dim, dtype=dtype)
        assert torch.equal(sg.SeededNoise(7, first)(part, 3, 1), whole[first : first + count])
        assert torch.equal(sg.SeededNoise(7).starting_at(first)(part, 3, 1), whole[first : first + count])


def test_noise_differs_by_seed_step_draw_and_sample() -> None:
    like = torch.empty(4, 5)
    draws = [sg.SeededNoise(s)(like, k, j) for s in (0, 1) for k in (-1, 0, 1, 2) for j in (0, 1, 2)]
    numbers = torch.cat([d.flatten() for d in draws])
    assert len(torch.unique(numbers)) == len(numbers)  # 480 floats of 24 bits: a chance match has probability 7e-3 ...
    # ... for this fixed seed it has none; equal blocks would give at least 20 matches.


def test_all_64_bits_of_a_seed_count() -> None:
    like, base = torch.empty(2, 4), 0x0123456789ABCDEF
    seen = {tuple(sg.SeededNoise(base)(like, 0, 0).flatten().tolist())}
    for bit in range(64):
        seen.add(tuple(sg.SeededNoise(base ^ (1 << bit))(like, 0, 0).flatten().tolist()))
    assert len(seen) == 65
    sampler, m = sg.DDIM(steps=2), model()
    assert not torch.equal(sampler(m, (2, 3), seed=5).x, sampler(m, (2, 3), seed=5 + 2**32).x)
    assert not torch.equal(sampler(m, (2, 3), seed=5).x, sampler(m, (2, 3), seed=5 + 2**63).x)
    assert sampler(m, (2, 3), seed=2**64 - 1).x.isfinite().all()
    for seed in (-1, 2**64, 1.5, "0", True, None):
        with pytest.raises(sg.ConfigError, match=r"seed must be a whole number in \[0, 2\^64\)"):
            sampler(m, (2, 3), seed=seed)


@pytest.mark.parametrize("position", range(4))
def test_all_bits_of_the_keys_count(position: int) -> None:
    seen = set()
    for bit in range(64):
        keys = [3, 4, 5, 6]
        keys[position] ^= 1 << bit
        seen.add(tuple(torch.randn(4, generator=keyed_generator(1, *keys)).tolist()))
    assert len(seen) == 64
    with pytest.raises(sg.ConfigError, match="at most four keys"):
        keyed_generator(0, 1, 2, 3, 4, 5)


def test_numbers_of_different_keys_are_independent_normals() -> None:
    """Moments within blocks and correlations between them.

    n = 2^12 numbers in each of 256 blocks. Each statistic below is within 6.5 standard errors: two-sided rate 8e-11 for
    a normal one, so 1e-6 covers the 2.6e3 statistics taken, with room. It detects a correlation of 0.1 between any two
    neighbouring blocks and a bias of 0.7 % of the pooled variance.
    """
    n = 2**12
    blocks = []
    for axis in range(4):  # seed, sample block, step, draw: 64 values of each
        for i in range(64):
            keys = [9, 0, 0, 0]
            keys[axis] += i + 1
            blocks.append(torch.randn(n, dtype=torch.float64, generator=keyed_generator(*keys)).numpy())
    z = np.array(blocks)
    assert np.abs(z.mean(1)).max() < 6.5 / n**0.5
    assert np.abs((z**2).mean(1) - 1).max() < 6.5 * (2 / n) ** 0.5
    assert np.abs((z**3).mean(1)).max() < 6.5 * (15 / n) ** 0.5
    assert np.abs((z**4).mean() - 3) < 6.5 * (96 / z.size) ** 0.5
    neighbours = (z[1:] * z[:-1]).mean(1)
    shifted = (z[1:, 1:] * z[:-1, :-1]).mean(1)
    within = (z[:, 1:] * z[:, :-1]).mean(1)
    squares = ((z[1:] ** 2 - 1) * (z[:-1] ** 2 - 1)).mean(1) / 2
    for statistic in (neighbours, shifted, within, squares):
        assert np.abs(statistic).max() < 6.5 / (n - 1) ** 0.5


def test_start_has_the_prior_s_size() -> None:
    """Variance of the first state, over 2^16 numbers: 6 standard errors, rate 2e-9; it detects 3.3 % in variance."""
    states: list[Tensor] = []
    for p in (sg.VP(), sg.VE(), sg.NCSN(), sg.DDPM(), sg.FlowMatching()):
        oracle = sg.GaussianMixture([1.0], [[0.0, 0.0]], [[[1.0, 0.0], [0.0, 1.0]]]).model(p)
        sg.DDIM(steps=1)(oracle, (2**15, 2), seed=3, callback=lambda k, t, x: states.append(x))
        first = states[-2].double() / p.prior_std
        assert abs(float(first.square().mean()) - 1) < 6 * (2 / 2**16) ** 0.5
        assert abs(float(first.mean())) < 6 / 2**8


# -- adaptive solver ---------------------------------------------------------------------------------------------------


class Stiff(torch.nn.Module):
    """Benign, but for samples whose first number is beyond 5, where it oscillates wildly."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        wild = (x[:, :1].abs() > 5).to(x.dtype)
        return (1 - wild) * 0.5 * x.sin() + wild * torch.sin(200 * c_noise[:, None].to(x.dtype) + x)


def test_one_stiff_sample_neither_slows_nor_changes_its_batch_mates() -> None:
    m = sg.ScoreModel(Stiff(), sg.VP(), sg.DataPrediction())
    start = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(-2, 2)
    stiff = start.clone()
    stiff[2, 0] = 1e4
    for sampler in (sg.ProbabilityFlow(), sg.ProbabilityFlow(method="bosh3", rtol=1e-3, atol=1e-3)):
        calm, mixed = sampler(m, start=start), sampler(m, start=stiff)
        keep = torch.tensor([0, 1, 3, 4, 5])
        assert torch.equal(calm.x[keep], mixed.x[keep])
        assert torch.equal(calm.nfe_per_sample[keep], mixed.nfe_per_sample[keep])
        assert mixed.nfe_per_sample[2] > 1.5 * calm.nfe_per_sample.max()
        assert mixed.nfe == int(mixed.nfe_per_sample.max())
        alone = sampler(m, start=stiff[2:3])
        assert torch.equal(alone.x, mixed.x[2:3])
        assert alone.nfe == mixed.nfe


# -- NFE ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("name", SAMPLERS)
def test_nfe_is_what_was_called_and_what_was_promised(name: str, denoise: bool) -> None:
    case, network = SAMPLERS[name], Elementwise()
    for n in (1, 2, 5):
        network.calls = 0
        result = case.make(steps=n, denoise=denoise)(model(network), (3, *SHAPE))
        assert result.nfe == network.calls
        assert result.nfe_per_sample is None
        assert result.seconds > 0
        if case.nfe is not None:
            expected = case.nfe(n, denoise)
        elif case.rule in ("annealed", "consistent"):
            expected = n * case.calls + denoise
        else:  # N times: corrector and predictor at all but the last, corrector and denoiser there; or N whole steps
            expected = (n - 1) * case.calls + case.corrector_steps + 1 if denoise else n * case.calls
            expected += case.repeats and n - denoise >= 2
        assert result.nfe == expected
    network.calls = 0
    result = case.make(steps=3)(model(network), (6, *SHAPE), chunk=2)
    assert network.calls == 3 * result.nfe  # calls for each sample, not for all chunks


@pytest.mark.parametrize("method", ["dopri5", "RK23", "bosh3", "midpoint", "rk4"])
@pytest.mark.parametrize("denoise", [True, False])
def test_nfe_of_ode_solvers(method: str, denoise: bool) -> None:
    network = Elementwise()
    steps = {"steps": 4} if method in ("midpoint", "rk4") else {"rtol": 1e-3, "atol": 1e-3}
    result = sg.ProbabilityFlow(method=method, denoise=denoise, **steps)(model(network), (1, *SHAPE))
    assert result.nfe == network.calls
    assert result.nfe_per_sample.tolist() == [network.calls]
    if steps == {"steps": 4}:
        assert result.nfe == 4 * {"midpoint": 2, "rk4": 4}[method] + denoise
