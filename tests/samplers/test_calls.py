"""How samplers are called: callbacks, progress, conditions, dtypes, and networks with habits."""

import time
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import sde_gen as sg
from sde_gen import bars
from tests.properties.discovery import SAMPLERS

VARIETY = ["EulerMaruyama", "DDIM", "Heun", "DPMSolverPP2M", "AnnealedLangevin(1)", "PC(ReverseDiffusion, 1)"]
FLOW = sg.ProbabilityFlow(rtol=1e-3, atol=1e-3)


def make(name: str, **kwargs: object) -> sg.Sampler:
    if name == "ProbabilityFlow":
        return sg.ProbabilityFlow(rtol=1e-3, atol=1e-3, **{k: v for k, v in kwargs.items() if k != "steps"})
    return SAMPLERS[name].make(**kwargs)


class Net(torch.nn.Module):
    """Small, with dropout so that its mode shows, and an optional condition."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.4))
        self.seen: list[tuple[Tensor, Tensor, dict[str, Tensor], bool]] = []

    def forward(self, x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
        self.seen.append((x, c_noise, condition, self.training))
        assert c_noise.shape == (len(x),)
        assert c_noise.dtype == x.dtype == self.weight.dtype
        assert not torch.is_grad_enabled()
        shift = 0.0
        if "label" in condition:
            shift = condition["label"].to(x.dtype).reshape(-1, *([1] * (x.ndim - 1)))
        return self.weight * x + 0.1 * shift


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("name", VARIETY)
def test_callback_sees_every_state(name: str, denoise: bool) -> None:
    calls: list[tuple[int, float, Tensor]] = []
    model = sg.ScoreModel(Net(), sg.VP())
    sampler = make(name, steps=4, denoise=denoise)
    start = torch.randn(3, 2)

    def record(step: int, t: float, x: Tensor) -> None:
        calls.append((step, t, x.clone()))

    x = sampler(model, start=start, callback=record).x
    times = sampler.times(model).tolist()
    annealed = name.startswith("Annealed")
    expected = times + ([0.0] if denoise or annealed else [])
    assert [c[0] for c in calls] == list(range(len(expected)))
    assert [c[1] for c in calls] == expected
    assert torch.equal(calls[0][2], start)
    assert torch.equal(calls[-1][2], x)
    assert torch.equal(sampler(model, start=start).x, x)  # watching changes nothing
    assert all(not torch.equal(a[2], b[2]) for a, b in pairwise(calls))


def test_callback_of_chunks_and_padding() -> None:
    shapes: list[tuple[int, int]] = []
    sampler, model = sg.DDIM(steps=2), sg.ScoreModel(Net(), sg.VP())
    sampler(model, (5, 2), chunk=3, callback=lambda step, t, x: shapes.append((step, len(x))))
    assert shapes == [(0, 3), (1, 3), (2, 3), (0, 2), (1, 2), (2, 2)]
    shapes.clear()
    sampler(model, (2, 2), deterministic=True, callback=lambda step, t, x: shapes.append((step, len(x))))
    assert shapes == [(0, 2), (1, 2), (2, 2)]  # the padding is not shown
    shapes.clear()
    FLOW(model, (2, 2), callback=lambda step, t, x: shapes.append((step, len(x))))
    assert shapes == [(0, 2), (1, 2)]


def test_nothing_is_printed_unless_asked(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = sg.ScoreModel(Net(), sg.VP())
    for name in VARIETY:
        make(name, steps=3)(model, (2, 2))
    FLOW(model, (2, 2))
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(bars, "draws_bars", lambda: True)  # as on a terminal
    sg.DDIM(steps=3)(model, (2, 2), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "DDIM" in err
    assert "0/3" in err  # of so short a run only the first picture of the bar is drawn


@pytest.mark.parametrize("name", [*VARIETY, "ProbabilityFlow"])
def test_conditions_are_cut_with_the_chunks(name: str) -> None:
    sampler, labels = make(name, steps=3), torch.tensor([0, 3, 1, 4, 2, 5, 9])
    whole = sampler(sg.ScoreModel(Net(), sg.VP()), (7, 2), condition={"label": labels}).x
    for kwargs in ({"chunk": 3}, {"chunk": 1}, {"deterministic": True}, {"deterministic": True, "chunk": 4}):
        net = Net()
        got = sampler(sg.ScoreModel(net, sg.VP()), (7, 2), condition={"label": labels}, **kwargs).x
        torch.testing.assert_close(got, whole, rtol=1e-6, atol=1e-6)
        assert all(len(c["label"]) == len(x) for x, _, c, _ in net.seen)
    one = sampler(sg.ScoreModel(Net(), sg.VP()), (1, 2), first=4, condition={"label": labels[4:5]}).x
    torch.testing.assert_close(one, whole[4:5], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(sampler(sg.ScoreModel(Net(), sg.VP()), (7, 2), condition={"label": labels * 0}).x, whole)


def test_conditions_without_rows_are_passed_on() -> None:
    net, scale = Net(), torch.tensor(2.0)
    sg.DDIM(steps=2)(sg.ScoreModel(net, sg.VP()), (4, 2), chunk=2, condition={"scale": scale, "note": "text"})
    assert all(torch.equal(c["scale"], scale) and c["note"] == "text" for _, _, c, _ in net.seen)


@pytest.mark.parametrize("name", [*VARIETY, "ProbabilityFlow"])
def test_dtypes(name: str) -> None:
    sampler, model = make(name, steps=3), sg.ScoreModel(Net(), sg.VP())
    assert sampler(model, (2, 2)).x.dtype == torch.float32
    for dtype in (torch.float64, torch.bfloat16):
        assert sampler(model, (2, 2), dtype=dtype).x.dtype == dtype
        assert sampler(model, start=torch.ones(2, 2, dtype=dtype)).x.dtype == dtype
    assert sampler(model, start=torch.ones(2, 2), dtype=torch.float64).x.dtype == torch.float64
    assert sampler(model, (2, 2), device="cpu").x.device == torch.device("cpu")
    assert not sampler(model, (2, 2)).x.requires_grad


@pytest.mark.parametrize("name", [*VARIETY, "ProbabilityFlow"])
def test_a_bfloat16_network_under_float32_states(name: str) -> None:
    net = Net().to(torch.bfloat16)
    model = sg.ScoreModel(net, sg.VP())
    sampler = make(name, steps=3)
    x = sampler(model, (2, 2), seed=1).x
    assert x.dtype == torch.float32
    assert all(seen[0].dtype == torch.bfloat16 and seen[1].dtype == torch.bfloat16 for seen in net.seen)
    full = sampler(sg.ScoreModel(Net(), sg.VP()), (2, 2), seed=1).x
    # bf16 keeps 8 bits: each answer is off by 2^-8 of itself, and the division by alpha_T = 0.0066 shows it.
    assert not torch.equal(x, full)
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("name", [*VARIETY, "ProbabilityFlow"])
def test_a_network_that_returns_its_own_input(name: str) -> None:
    """Not changed under its hands: the same as one that returns a copy."""

    class Same(torch.nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return x

    class Copy(torch.nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return x.clone()

    for parameterization in (sg.DataPrediction(), sg.NoisePrediction()):
        for p in (sg.VP(), sg.VE()):
            start = torch.randn(3, 2) * p.prior_std
            kept = start.clone()
            one = make(name, steps=4)(sg.ScoreModel(Same(), p, parameterization), start=start).x
            two = make(name, steps=4)(sg.ScoreModel(Copy(), p, parameterization), start=start).x
            assert torch.equal(one, two)
            assert torch.equal(start, kept)


VIEWS = {
    "whole": lambda x: x[:],
    "transposed": lambda x: x.transpose(-1, -2),
    "first row": lambda x: x[:, :1].expand_as(x),
    "diagonal": lambda x: x.diagonal(dim1=-2, dim2=-1)[..., None].expand_as(x),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_network_that_returns_a_view_of_its_input(name: str, view: str) -> None:
    """Under VP with data prediction the input is the state itself: nothing may be written there while it is read."""
    start = torch.randn(3, 2, 2)
    networks = (lambda x, c: VIEWS[view](x), lambda x, c: VIEWS[view](x.clone()))
    one, two = (make(name, steps=5)(sg.ScoreModel(f, sg.VP(), sg.DataPrediction()), start=start).x for f in networks)
    assert torch.equal(one, two)


def test_a_network_that_returns_a_buffer_it_reuses() -> None:
    class Reuses(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.buffer: Tensor | None = None

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            if self.buffer is None:
                self.buffer = torch.empty_like(x)
            return torch.mul(x, 0.4, out=self.buffer)

    for name in VARIETY:
        start = torch.randn(3, 2)
        one = make(name, steps=4)(sg.ScoreModel(Reuses(), sg.VP()), start=start).x
        two = make(name, steps=4)(sg.ScoreModel(lambda x, c: x * 0.4, sg.VP()), start=start).x
        assert torch.equal(one, two), name


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_restored(training: bool) -> None:
    net = Net()
    model = sg.ScoreModel(net, sg.VP()).train(training)
    sg.DDIM(steps=2)(model, (2, 2))
    assert model.training is training
    assert net.training is training
    assert not any(mode for _, _, _, mode in net.seen)
    with pytest.raises(sg.NonFiniteError):
        sg.DDIM(steps=2)(model, start=torch.full((2, 2), torch.nan))
    assert net.training is training
    assert torch.is_grad_enabled()


def test_plain_functions_and_images() -> None:
    model = sg.ScoreModel(lambda x, c: 0.2 * x, sg.VP())
    result = sg.PredictorCorrector(steps=3)(model, (2, 3, 4, 4), seed=1)
    assert result.x.shape == (2, 3, 4, 4)
    for name in [*VARIETY, "ProbabilityFlow"]:
        assert make(name, steps=2)(model, (2, 1, 3, 3)).x.shape == (2, 1, 3, 3)


def test_network_sees_scaled_states_and_lambda() -> None:
    net, p = Net(), sg.VE()
    start = torch.randn(2, 3) * p.prior_std
    sampler = sg.DDIM(grid=[0.9, 0.2], denoise=True)
    states: list[Tensor] = []
    sampler(sg.ScoreModel(net, p, sg.VPrediction()), start=start, callback=lambda k, t, x: states.append(x.clone()))
    for k, t in enumerate((0.9, 0.2)):
        x, c_noise, _, _ = net.seen[k]
        torch.testing.assert_close(c_noise, p.half_log_snr(torch.tensor(t)).expand(2), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(x, states[k] / (1 + float(p.sigma(t)) ** 2) ** 0.5)


def test_a_custom_source_with_chunks() -> None:
    """A source with `starting_at` serves chunks; the start is drawn with step -1."""

    class Source:
        def __init__(self, first: int = 0) -> None:
            self.first = first
            self.inner = sg.SeededNoise(4, first)

        def starting_at(self, first: int) -> "Source":
            return Source(first)

        def __call__(self, like: Tensor, step: int, draw: int) -> Tensor:
            asked.append((step, draw, self.first, len(like)))
            return self.inner(like, step, draw)

    asked: list[tuple[int, int, int, int]] = []
    model = sg.ScoreModel(lambda x, c: 0.2 * x, sg.VP())
    sampler = sg.PredictorCorrector(corrector=sg.Langevin(steps=2), steps=2)
    whole = sampler(model, (5, 2), noise=Source()).x
    assert asked == [(-1, 0, 0, 5), (0, 1, 0, 5), (0, 2, 0, 5), (0, 0, 0, 5), (1, 1, 0, 5), (1, 2, 0, 5)]
    asked.clear()
    assert torch.equal(sampler(model, (5, 2), noise=Source(), chunk=2).x, whole)
    assert [a[2:] for a in asked if a[0] == -1] == [(0, 2), (2, 2), (4, 1)]
    assert torch.equal(sampler(model, (5, 2), seed=4).x, whole)
    assert isinstance(Source(), sg.ShiftedNoiseSource)
    assert not isinstance(lambda like, step, draw: like, sg.ShiftedNoiseSource)


def test_the_chunk_size_chosen_for_large_samples() -> None:
    sizes: list[int] = []

    class Watch(torch.nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            sizes.append(len(x))
            return x

    model = sg.ScoreModel(Watch(), sg.VP())
    sg.DDIM(steps=1)(model, (5, 2**23))  # 2^24 numbers at once are two samples
    assert sizes == [2, 2, 1]


def test_deterministic_pads_to_one_size() -> None:
    net = Net()
    sg.DDIM(steps=1)(sg.ScoreModel(net, sg.VP()), (70, 2), deterministic=True)
    sg.DDIM(steps=1)(sg.ScoreModel(net, sg.VP()), (3, 2), deterministic=True)
    sg.DDIM(steps=1)(sg.ScoreModel(net, sg.VP()), (3, 2), deterministic=True, chunk=5)
    assert [len(x) for x, *_ in net.seen] == [64, 64, 64, 5]


def test_seconds_are_those_of_the_call() -> None:
    began = time.perf_counter()
    result = sg.DDIM(steps=2)(sg.ScoreModel(Net(), sg.VP()), (3, 2))
    assert 0 < result.seconds <= time.perf_counter() - began
