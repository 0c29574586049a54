"""Before samples are drawn: what `sampler=auto` chooses for this network, and what the drawing will cost."""

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sde_gen.bars import elapsing
from sde_gen.comparison.budgets import calls_of
from sde_gen.config.launch import say
from sde_gen.data import Dataset
from sde_gen.errors import SDEGenError
from sde_gen.jobs.common import Trained
from sde_gen.samplers import DDIM, GivenLambdas, GridSampler, ProbabilityFlow, Sampler
from sde_gen.tuning import Auto
from sde_gen.tuning.auto import CALLS
from sde_gen.tuning.noise_amount import LEAST, SURE
from sde_gen.tuning.quick import STARTS

_TIMED = 64  # samples whose cost is measured, at most: that of more grows with their number


def settled(
    what: Trained, shape: tuple[int, ...], told: Mapping[str, Tensor], data: Callable[[], Dataset | None]
) -> Trained:
    """`what` with the sampler that `Auto` chooses for its network; unchanged if that needs no measurement.

    The choice is kept in the run, in `auto/`, and read from there the next time.

    Args:
        what: the trained network and the sampler asked for.
        shape: of one sample.
        told: what the first samples are told, a row for each; the first of them at least.
        data: what is sampled should be like; asked for with noise="auto" alone, which held-out data decide.

    Raises:
        SDEGenError: one of its subclasses, if a tolerance cannot be reached or a network gives no finite numbers.
    """
    auto = what.sampler
    if not isinstance(auto, Auto) or auto.calls == 0:
        return what
    folder = what.checkpoint.home / "auto"
    if auto.folder is None and os.access(folder if folder.is_dir() else folder.parent, os.W_OK):
        auto = replace(auto, folder=str(folder))
    asked = auto
    condition = {name: rows[torch.arange(STARTS) % len(rows)].to(what.device) for name, rows in told.items()}

    def choose() -> GridSampler:
        auto = with_data(asked, data)
        calls = auto.most_calls or CALLS
        seconds = calls * _seconds_of_a_call(what, shape, told, STARTS)
        long = auto.most_calls is None
        if not long and auto.seconds is not None:
            seconds = min(seconds, auto.seconds)
        known = auto.folder is not None and Path(auto.folder).is_dir() and any(Path(auto.folder).glob("auto-*.json"))
        does = "looks up, or measures," if known else "measures"
        cost = "thousands of calls" if long else f"up to {calls} calls on {STARTS} starts, about {_spoken(seconds)}"
        say(f"{said(replace(asked, folder=None))} {does} what suits this network: {cost}")
        with elapsing("calibrating", seconds):
            choice = auto.choose(what.model, shape, condition)
        judged = (f"error {choice.error:.3g} against a fine solution"
                  + "".join(f"; next, {label}: {error:.3g}" for label, error in choice.tried[1:2]))  # fmt: skip
        if choice.gain is not None:
            gain, error = choice.gain
            by = f"{gain:.3g} +- {error:.3g} in energy distance to {auto.data.value.shape[0]} held-out samples"
            judged = f"nearer than without noise by {by}" if gain > SURE * error else f"{judged}; noise gains {by}"
        say(f"chose {said(choice.sampler)}: {choice.nfe} calls, {judged}"
            f" ({choice.calibration_nfe} calls, {choice.calibration_seconds:.1f} s"
            + (f"; kept in {auto.folder})" if auto.folder else ")"))  # fmt: skip
        return choice.sampler

    return replace(what, sampler=what.processes.on_main(choose))


def with_data(auto: Auto, data: Callable[[], Dataset | None]) -> Auto:
    """With the held-out data that its noise is judged by; without any, and a word, where there are too few."""
    if auto.noise is None or auto.data is not None:
        return auto
    found = data()
    if found is None or len(found.test) < 2 * LEAST:
        say(f"noise=auto needs {2 * LEAST} held-out samples of what is sampled, and they are not here: no noise")
        return auto
    return replace(auto, data=found.test)


def say_cost(what: Trained, shape: tuple[int, ...], told: Mapping[str, Tensor], count: int, block: int) -> None:
    """Say how many calls a sample takes, and about how long all of them will; nothing of what cannot be foretold."""
    if isinstance(what.sampler, ProbabilityFlow) or not what.processes.is_main:
        return
    rows = min(count, block, _TIMED)
    try:
        calls = getattr(what.sampler, "nfe", None) or calls_of(what.sampler, what.model.perturbation)
        seconds = _seconds_of_a_call(what, shape, told, rows)
    except SDEGenError:  # the sampling itself will say what is wrong
        return
    whole = calls * seconds * count / rows / what.processes.world
    say(f"{calls} network calls for each sample, about {_spoken(whole)}")


def _seconds_of_a_call(what: Trained, shape: tuple[int, ...], told: Mapping[str, Tensor], rows: int) -> float:
    """Seconds of one network call on so many samples, the first call, which may have to warm up, left out."""
    condition = {name: row[:1].expand(rows, *row.shape[1:]).to(what.device) for name, row in told.items()}
    seconds, states = float("inf"), torch.zeros(rows, *shape, device=what.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            made = DDIM(steps=1)(what.model, start=states, condition=condition, chunk=rows)
            seconds = min(seconds, made.seconds / max(1, made.nfe))
            if seconds > 1:
                break
    return seconds


def said(sampler: Sampler) -> str:
    """A sampler as one writes it: what differs from its defaults, without the numbers that were fitted."""
    if not is_dataclass(sampler):
        return str(sampler)
    given = []
    for field in fields(sampler):
        value = getattr(sampler, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if field.init and repr(value) != repr(default) and not isinstance(value, GivenLambdas | tuple):
            shown = said(value) if isinstance(value, Sampler) else repr(value)
            given.append(f"{field.name}={shown}")
    return f"{type(sampler).__name__}({', '.join(given)})"


def _spoken(seconds: float) -> str:
    """10 s, 3 min, 2.5 h: as precise as an estimate is."""
    if seconds < 1:
        return "1 s"
    if seconds < 100:
        return f"{float(f'{seconds:.2g}'):g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
