"""docs/extending.md is run as it stands: its examples, from a module outside the package, in Python and on the command
line; and each is held to what the house holds its own classes to."""

import importlib
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import sde_gen as sg
from sde_gen import metrics
from sde_gen.sample import main as sample
from sde_gen.train import main as train

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
MINE = "\n\n".join(text for kind, text in BLOCKS if kind == "python" and text.startswith("# mine.py"))
SHOWN = [text for kind, text in BLOCKS if kind == "python" and not text.startswith("# mine.py")]
FILES = {text.splitlines()[0].removeprefix("# "): text for kind, text in BLOCKS if kind == "yaml"}
COMMANDS = [line for kind, text in BLOCKS if not kind for line in text.splitlines()]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of the page, in a folder of its own, from which everything is run."""
    (tmp_path / "mine.py").write_text(MINE, "utf-8")
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = dict(metrics.METRICS)
    importlib.invalidate_caches()
    yield importlib.import_module("mine")
    sys.modules.pop("mine", None)
    metrics.METRICS.clear()
    metrics.METRICS.update(known)


def test_the_page_has_an_example_of_each(mine: ModuleType) -> None:
    own = {value for value in vars(mine).values() if getattr(value, "__module__", None) == "mine"}
    classes = [value for value in own if isinstance(value, type)]
    for base in (sg.Perturbation, sg.OneStepSampler, sg.GridSampler, sg.Corrector, torch.nn.Module, mine.Weighting):
        assert any(issubclass(c, base) for c in classes), base
    assert mine.eight in own
    assert mine.shift in own
    assert len(SHOWN) == 1
    assert len(COMMANDS) == 2
    groups = {"sde/polynomial", "data/eight", "network/tiny", "objective/rounded", "sampler/between"}
    assert set(FILES) == {f"conf/{name}.yaml" for name in groups}


def test_what_the_page_does_in_python(mine: ModuleType) -> None:
    space: dict[str, object] = {}
    exec(SHOWN[0], space)  # noqa: S102 - the page's own words
    model, again, results = space["model"], space["again"], space["results"]
    assert isinstance(model, sg.ScoreModel)
    assert isinstance(again, sg.ScoreModel)
    assert again.perturbation == mine.Polynomial()
    x, t = torch.randn(5, 2), torch.linspace(0.1, 0.9, 5)
    assert torch.equal(again(x, t).noise, model.eval()(x, t).noise)
    for name in ("x", "same"):
        assert torch.isfinite(space[name]).all()
        assert space[name].shape == (256, 2)
    assert [result.name for result in results] == ["shift", "energy_distance"]
    assert results[0].standard_error > 0


@pytest.mark.parametrize("own", [True, False], ids=["as on the page", "two curves alone"])
def test_the_perturbation_is_what_its_curves_say(mine: ModuleType, own: bool) -> None:
    cls = mine.Polynomial
    if not own:  # what may be stated besides is derived as well
        cls = type("Bare", (sg.Perturbation,), {"log_alpha": cls.log_alpha, "variance": cls.variance,
                                                "strength": 5.0, "power": 2.0, "__annotations__": {}})  # fmt: skip
    p = cls()
    t = torch.linspace(0.01, 1, 37, dtype=torch.float64)
    alpha2 = torch.exp(-10 * t**2)
    lam = 0.5 * (alpha2 / -torch.expm1(-10 * t**2)).log()
    assert torch.allclose(p.half_log_snr(t), lam, rtol=0, atol=1e-11)
    assert torch.allclose(p.time(lam), t, rtol=0, atol=1e-11)
    assert torch.allclose(p.alpha(t) ** 2 + p.sigma(t) ** 2, torch.ones_like(t), rtol=0, atol=1e-14)
    assert torch.allclose(p.diffusion(t) ** 2, 20 * t, rtol=1e-11)  # beta, as of any variance-preserving process
    assert torch.allclose(p.drift(t), -10 * t, rtol=1e-11)
    a, b = p.transition(t[:-1], t[1:])
    assert torch.allclose(p.alpha(t[:-1]) * a, p.alpha(t[1:]), rtol=1e-13)
    assert torch.allclose((a * p.sigma(t[:-1])) ** 2 + b**2, p.sigma(t[1:]) ** 2, rtol=1e-12)


def law_of(sampler: sg.Sampler, model: sg.ScoreModel) -> tuple[float, float]:
    """Mean and variance of what comes of a Gaussian start: an affine map is read off one unit of noise at a time."""
    used: list[tuple[int, int]] = []

    def run(unit: int | None) -> float:
        def source(like: torch.Tensor, step: int, draw: int) -> torch.Tensor:
            if unit is None:
                used.append((step, draw))
            return torch.full_like(like, float(unit is not None and used[unit] == (step, draw)))

        return sampler(model, (1, 1), noise=source, dtype=torch.float64).x.item()

    mean = run(None)
    return mean, sum((run(k) - mean) ** 2 for k in range(len(used)))


MEAN, SD = 0.7, 0.6


def problem(p: sg.Perturbation) -> sg.ScoreModel:
    return sg.GaussianMixture([1.0], [[MEAN]], [[[SD**2]]]).model(p)


def curves(times: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """alpha and sigma of `Polynomial()` in plain numpy."""
    log_alpha = -5 * times.numpy() ** 2
    return np.exp(log_alpha), np.sqrt(-np.expm1(2 * log_alpha))


def test_the_sampler_has_the_law_of_its_recursion(mine: ModuleType) -> None:
    p, share = mine.Polynomial(), 0.3
    sampler = mine.Between(share=share, steps=7)
    alpha, sigma = curves(sampler.times(problem(p)))
    mean, variance = 0.0, sigma[0] ** 2
    for k in range(7):
        gain = alpha[k] * SD**2 / (alpha[k] ** 2 * SD**2 + sigma[k] ** 2)
        of_x, constant, noise = gain, MEAN - gain * alpha[k] * MEAN, 0.0  # x0hat = constant + of_x x
        if k < 6:  # the posterior p(x_s | x_t, x0hat) of the forward process, by Bayes
            a = alpha[k] / alpha[k + 1]
            b2 = sigma[k] ** 2 - a**2 * sigma[k + 1] ** 2
            left, right = a * sigma[k + 1] ** 2 / sigma[k] ** 2, alpha[k + 1] * b2 / sigma[k] ** 2
            small = b2 * sigma[k + 1] ** 2 / sigma[k] ** 2
            of_x, constant, noise = left + right * gain, right * constant, small ** (1 - share) * b2**share
        mean, variance = of_x * mean + constant, of_x**2 * variance + noise
    assert law_of(sampler, problem(p)) == pytest.approx((mean, variance), rel=1e-9)
    assert (sampler.order, sampler.is_stochastic) == (1.0, True)


@pytest.mark.parametrize("p", [sg.VP(), sg.VE(sigma_max=20.0)], ids=repr)
def test_the_second_sampler_has_the_order_it_claims(mine: ModuleType, p: sg.Perturbation) -> None:
    model = problem(p)
    start = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None] * p.prior_std
    steps = (80, 160, 320, 640)
    errors = []
    for n in steps:
        sampler = mine.TwoStep(steps=n, denoise=False)
        first, last = (float(t) for t in sampler.times(model)[[0, -1]])
        (a, s), (b, r) = (map(float, p.curves(t)) for t in (first, last))
        # The exact flow of a Gaussian keeps (x - alpha mu)/sd.
        exact = b * MEAN + (start - a * MEAN) * math.hypot(b * SD, r) / math.hypot(a * SD, s)
        errors.append(float((sampler(model, start=start).x - exact).abs().max()))
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert -slope == pytest.approx(mine.TwoStep().order, abs=0.1)


def test_the_corrector_is_a_langevin_step(mine: ModuleType) -> None:
    p = mine.Polynomial()
    sampler = sg.PredictorCorrector(predictor=None, corrector=mine.Gentle(share=0.2), steps=2, denoise=False)
    alpha, sigma = curves(sampler.times(problem(p)))
    mean, variance = 0.0, sigma[0] ** 2
    for k in range(2):
        size, total = 0.2 * sigma[k] ** 2, alpha[k] ** 2 * SD**2 + sigma[k] ** 2
        mean, variance = (
            mean - size * (mean - alpha[k] * MEAN) / total,
            (1 - size / total) ** 2 * variance + 2 * size,
        )
    assert law_of(sampler, problem(p)) == pytest.approx((mean, variance), rel=1e-9)


def test_the_parameterization_halves_what_noise_prediction_says(mine: ModuleType) -> None:
    network, p = mine.Tiny(), sg.VP()
    x, t = torch.randn(4, 2), torch.full((4,), 0.5)
    once, twice = (sg.ScoreModel(network, p, kind())(x, t).noise for kind in (sg.NoisePrediction, mine.HalfNoise))
    assert torch.allclose(twice, 2 * once, rtol=1e-4, atol=1e-5)


def test_the_weight_is_a_rounded_min_snr(mine: ModuleType) -> None:
    p, t = sg.VP(), torch.linspace(0.01, 1, 50, dtype=torch.float64)
    snr = (p.alpha(t) / p.sigma(t)) ** 2
    assert torch.allclose(mine.Rounded(3.0).weight(p, t), 3.0 / (3.0 + snr), rtol=1e-12)
    model, x0 = problem(p), torch.randn(64, 1)
    noise = torch.randn(64, 1)
    plain = sg.DenoisingScoreMatching()(model, x0, t=t[:1].expand(64), noise=noise)
    weighted = sg.DenoisingScoreMatching(mine.Rounded(3.0))(model, x0, t=t[:1].expand(64), noise=noise)
    assert torch.allclose(weighted, plain * float(3.0 / (3.0 + snr[0])))


def test_the_measure_and_its_error(mine: ModuleType) -> None:
    x, y = torch.randn(400, 3), torch.randn(500, 3) + 2.0
    expected = float((x.double().mean(0) - y.double().mean(0)).norm())
    assert mine.shift(x, y) == pytest.approx(expected, rel=1e-12)
    estimate = mine.shift.estimate(x, y)
    assert estimate.value == pytest.approx(expected, rel=1e-12)
    # Along the line of the means the error is that of a difference of two means of variance 1.
    assert estimate.standard_error == pytest.approx(math.sqrt(1 / 400 + 1 / 500), rel=0.6)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda mine: mine.Between(share=1.5), "share"),
        (lambda mine: mine.TwoStep(steps=0), "steps"),
        (lambda mine: mine.Gentle(share=float("nan")), "share"),
        (lambda mine: mine.Rounded(gamma=0.0), "gamma"),
        (lambda mine: mine.Polynomial(power="two"), "power"),
        (lambda mine: mine.Tiny(hidden=0), "hidden"),
        (lambda mine: mine.eight(noise=-1.0), "noise"),
    ],
    ids=["sampler", "steps", "corrector", "weight", "perturbation", "network", "data"],
)
def test_what_is_out_of_range_is_refused_by_name(mine: ModuleType, make: Callable, wrong: str) -> None:
    with pytest.raises(sg.ConfigError, match=wrong):
        make(mine)


def test_what_the_page_does_on_the_command_line(mine: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["data.n=256", "trainer.steps=8", "trainer.batch_size=16", "trainer.preview_samples=0", "device=cpu"]
    for line in COMMANDS:
        _, _, module, *arguments = shlex.split(line)
        main, more = (train, small) if module == "sde_gen.train" else (sample, ["device=cpu"])
        assert main([*arguments, *more]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "Polynomial(strength=5.0, power=3.0) on eight" in said
    (drawn,) = Path("runs/mine/sampled").glob("*/samples.npz")
    with np.load(drawn) as found:
        assert any(found[name].shape == (64, 2) for name in found)


def test_what_is_not_trusted_is_not_built(mine: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(["--config-dir", "conf", "sde=polynomial", "run=no"]) == 2
    assert "trust=[mine]" in capsys.readouterr().err
