"""What is said and chosen before samples are drawn, and that progress is seen without a terminal."""

import json
import re
import sys
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

import sde_gen as sg
from sde_gen import bars
from sde_gen.jobs.beforehand import said, with_data
from tests.commands.helpers import TINY, Command


def test_the_default_is_few_calls_and_the_cost_is_said(trained: Command) -> None:
    result = trained("sample", "num_samples=4", "out=s", "metrics=false")
    assert result.code == 0, result.err
    assert "with Auto(nfe=20, calls=0)" in result.out
    assert re.search(r"^20 network calls for each sample, about \d", result.out, re.MULTILINE)
    assert json.loads(Path("s/report.json").read_text("utf-8"))["nfe"] == 20
    slower = trained("sample", "num_samples=4", "sampler=pc", "sampler.steps=3", "metrics=false")
    assert "6 network calls for each sample" in slower.out
    assert "network calls for each sample" not in trained("sample", "num_samples=4", "sampler=ode", "metrics=false").out


@pytest.mark.parametrize("labels", [False, True])
def test_auto_measures_once_says_what_it_chose_and_keeps_it(command: Command, labels: bool) -> None:
    data = ["data=rings", "data.n=64", "data.n_test=64", "class_conditional=true"] if labels else []
    assert command("train", *TINY, *data, "run=tiny").code == 0
    draw = ["num_samples=4", "sampler=auto", "sampler.nfe=5", "metrics=false"]
    first = command("sample", *draw, "out=one")
    assert first.code == 0, first.err
    assert "Auto(nfe=5) measures what suits this network: up to 300 calls on 64 starts, about" in first.out
    assert re.search(r"^chose \w+\(.*\): 5 calls, error \S+ against a fine solution", first.out, re.MULTILINE)
    kept = sorted(Path("runs/tiny/auto").glob("auto-*.json"))
    assert len(kept) == 1
    before = kept[0].stat().st_mtime_ns
    again = command("sample", *draw, "out=two")
    assert (again.code, kept[0].stat().st_mtime_ns) == (0, before)
    one, two = (np.load(f"{name}/samples.npz")["x"] for name in ("one", "two"))
    assert np.array_equal(one, two)
    judged = command("evaluate", "sampler=auto", "sampler.nfe=5", "likelihood=none", "metrics=[mmd]", "num_samples=16")
    assert judged.code == 0, judged.err
    assert len(list(Path("runs/tiny/auto").glob("auto-*.json"))) == 1 + labels  # classes as often as in the data


def test_auto_with_noise_asks_the_held_out_data_of_the_run(trained: Command) -> None:
    draw = ["num_samples=4", "sampler=auto", "sampler.nfe=3", "sampler.noise=auto", "sampler.calls=366"]
    first = trained("sample", *draw, "metrics=false", "out=one")
    assert first.code == 0, first.err
    assert "Auto(nfe=3, calls=366, noise='auto') measures what suits this network: up to 366 calls" in first.out
    assert re.search(r"in energy distance to 64 held-out samples \(3\d\d calls", first.out)
    kept = list(Path("runs").glob("*/auto/auto-*.json"))
    assert len(kept) == 1
    again = trained("sample", *draw, "metrics=false", "out=two")
    assert f"kept in {kept[0].parent}" in again.out
    one, two = (np.load(f"{name}/samples.npz")["x"] for name in ("one", "two"))
    assert np.array_equal(one, two)


def test_noise_without_enough_held_out_data_is_none_and_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    auto = sg.Auto(nfe=3, noise="auto")
    few = sg.data.mixture(n=64, n_test=63)
    for data in (None, few):
        assert with_data(auto, lambda data=data: data) == auto
        assert "noise=auto needs 64 held-out samples of what is sampled" in capsys.readouterr().out
    assert with_data(sg.Auto(nfe=3), lambda: few) == sg.Auto(nfe=3)


def test_a_sampler_is_said_as_one_writes_it() -> None:
    assert said(sg.DDIM()) == "DDIM()"
    assert said(sg.DDIM(steps=5, eta=0.5)) == "DDIM(steps=5, eta=0.5)"
    pc = sg.PredictorCorrector(steps=3, predictor=sg.EulerMaruyama())
    assert said(pc) == "PredictorCorrector(steps=3, predictor=EulerMaruyama())"
    assert said(sg.UniPC(order=3, grid=sg.GivenLambdas((-1.0, 2.0)))) == "UniPC()"


class _Log(StringIO):
    def isatty(self) -> bool:
        return False


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    log = _Log()
    monkeypatch.setattr(sys, "stderr", log)
    assert list(bars.shown(range(3), "work")) == [0, 1, 2]
    assert log.getvalue() == ""  # what is quick is silent
    monkeypatch.setattr(bars, "QUIET_SECONDS", 0.0)
    mixture = sg.GaussianMixture([1.0], [[0.0]], [[[1.0]]])
    sg.DDIM(steps=4)(mixture.model(sg.VP()), (3, 1), seed=0, first=5, progress=True)
    assert re.search(r"^DDIM, sample 6 to 8: [0-3] of 4, 0 s$", log.getvalue(), re.MULTILINE)


def test_what_ticks_ends_with_the_block() -> None:
    ticks: list[float] = []
    with bars.ticking(lambda: ticks.append(time.monotonic()), 0.01):
        deadline = time.monotonic() + 30
        while len(ticks) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    count = len(ticks)
    assert count >= 3
    time.sleep(0.05)
    assert len(ticks) == count
