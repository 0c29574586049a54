"""Digests: equal for equal things in every process, another for what may behave otherwise."""

import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sde_gen as sg
from sde_gen.conditions import Condition, Rows, Whole
from sde_gen.digests import digest, digest_here, parts

GAIN = 2.0


def scaled_by(factor: float) -> Callable[..., Any]:
    return lambda x, c: x * factor


def by_default(factor: float) -> Callable[..., Any]:
    def network(x: Any, c: Any, factor: float = factor) -> Any:
        return x * factor

    return network


class Plain(nn.Module):
    """A network of one's own: a parameter, a buffer that is not saved, an attribute, a method."""

    def __init__(self, scale: float = 1.0, weight: float = 0.5, table: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.tensor(weight))
        self.register_buffer("table", torch.tensor([table]), persistent=False)

    def forward(self, x: Any, c: Any) -> Any:
        return GAIN * self.scale * self.weight * x


class Other(Plain):
    def forward(self, x: Any, c: Any) -> Any:
        return -GAIN * self.scale * self.weight * x


class Callable_:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: Any, c: Any) -> Any:
        return self.factor * x

    def twice(self, x: Any, c: Any) -> Any:
        return 2 * x


def law(weight: float = 0.5) -> sg.GaussianMixture:
    return sg.GaussianMixture([weight, 1 - weight], [[0.0], [1.0]], [[[1.0]], [[1.0]]])


a, b = torch.arange(6.0), torch.arange(6.0) + 1
#: Things that are all different.
DIFFERENT: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "true": lambda: True,
    "one": lambda: 1,
    "one as text": lambda: "1",
    "one as bytes": lambda: b"1",
    "one in a list": lambda: [1],
    "one twice": lambda: [1, 1],
    "one, nested": lambda: [[1]],
    "text that looks like a list": lambda: "[1]",
    "an empty text": lambda: "",
    "an empty list": list,
    "an empty mapping": dict,
    "an empty set": set,
    "two texts": lambda: ["ab", "c"],
    "two texts, cut elsewhere": lambda: ["a", "bc"],
    "a name with a dot": lambda: {"a.b": 1},
    "names within names": lambda: {"a": {"b": 1}},
    "dots deeper": lambda: {"a": {"b.c": 1}},
    "dots deeper, parted": lambda: {"a": {"b": {"c": 1}}},
    "nan": lambda: float("nan"),
    "nan as text": lambda: "nan",
    "infinity": lambda: float("inf"),
    "the next float": lambda: np.nextafter(1.0, 2.0),
    "complex": lambda: 1j,
    "a type": lambda: torch.float32,
    "another type": lambda: torch.float64,
    "path": lambda: Path("1"),
    "tensor": lambda: a,
    "tensor, values": lambda: b,
    "tensor, shape": lambda: a.reshape(2, 3),
    "tensor, other shape": lambda: a.reshape(3, 2),
    "tensor, dtype, same bytes": lambda: a.view(torch.int32),
    "tensor, dtype": lambda: a.double(),
    "tensor, bfloat16": lambda: a.bfloat16(),
    "tensor, transposed": lambda: a.reshape(2, 3).mT,
    "tensor, empty": lambda: torch.zeros(0),
    "tensor, empty otherwise": lambda: torch.zeros(0, 3),
    "tensor of a number": lambda: torch.tensor(1.0),
    "tensor, conjugate": lambda: torch.tensor([1 + 2j]).conj(),
    "tensor, not conjugate": lambda: torch.tensor([1 + 2j]),
    "rows": lambda: Condition.of("", {"label": a}, None),
    "whole": lambda: Condition.of("", {"label": Whole(a)}, None),
    "another name": lambda: Condition.of("", {"table": Whole(a)}, None),
    "text": lambda: Condition.of("", {"label": "a cat"}, None),
    "another text": lambda: Condition.of("", {"label": "a dog"}, None),
    "nested": lambda: Condition.of("", {"label": {"text": "a cat"}}, None),
    "process": lambda: sg.VP(),
    "process, field": lambda: sg.VP(beta_max=19.0),
    "process, class": lambda: sg.SubVP(),
    "law": lambda: law().model(sg.VP()),
    "law, weights": lambda: law(0.3).model(sg.VP()),
    "law, process": lambda: law().model(sg.VE()),
    "data": lambda: sg.EmpiricalData(a[:, None]).model(sg.VP()),
    "data, points": lambda: sg.EmpiricalData(b[:, None]).model(sg.VP()),
    "function": lambda: scaled_by(1.0),
    "function, closure": lambda: scaled_by(2.0),
    "function, default": lambda: by_default(2.0),
    "function, other default": lambda: by_default(3.0),
    "function, code": lambda: lambda x, c: x + 1.0,
    "function, constant": lambda: lambda x, c: x + 2.0,
    "function, name": lambda: lambda x, c: x.sin(),
    "function, inner": lambda: lambda x, c: [x + 3.0 for _ in range(2)],
    "function, inner constant": lambda: lambda x, c: [x + 4.0 for _ in range(2)],
    "partial": lambda: functools.partial(scaled_by, 1.0),
    "partial, argument": lambda: functools.partial(scaled_by, 2.0),
    "cached": lambda: functools.lru_cache(scaled_by),
    "library": lambda: torch.tanh,
    "another of the library": lambda: torch.relu,
    "object": lambda: Callable_(1.0),
    "object, attribute": lambda: Callable_(2.0),
    "method": lambda: Callable_(1.0).__call__,
    "another method": lambda: Callable_(1.0).twice,
    "module": Plain,
    "module, attribute": lambda: Plain(scale=2.0),
    "module, weight": lambda: Plain(weight=1.0),
    "module, buffer": lambda: Plain(table=2.0),
    "module, class": Other,
    "modules": lambda: nn.Sequential(nn.Tanh(), nn.ReLU()),
    "modules, order": lambda: nn.Sequential(nn.ReLU(), nn.Tanh()),
    "modules, number": lambda: nn.Sequential(nn.Tanh(), nn.ReLU(), nn.ReLU()),
    "modules, setting": lambda: nn.Dropout(0.1),
    "modules, other setting": lambda: nn.Dropout(0.2),
    "generator": lambda: np.random.default_rng(0),
    "generator, state": lambda: np.random.default_rng(1),
}


def test_different_things_have_different_digests() -> None:
    found = {name: digest(make()) for name, make in DIFFERENT.items()}
    same = [pair for pair in combinations(found, 2) if found[pair[0]] == found[pair[1]]]
    assert not same
    assert digest(1, 2) != digest([1, 2], None) != digest(1)


def test_equal_things_have_equal_digests_made_anew_and_in_other_processes() -> None:
    mine = {name: digest(make()) for name, make in DIFFERENT.items()}
    assert mine == {name: digest(make()) for name, make in DIFFERENT.items()}
    code = "import json, test_digests as t; print(json.dumps({n: t.digest(m()) for n, m in t.DIFFERENT.items()}))"
    here = str(Path(__file__).parent)
    for hashing in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hashing, "PYTHONPATH": os.pathsep.join([here, *sys.path])}
        theirs = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        found = json.loads(theirs.stdout)
        assert [name for name in mine if mine[name] != found[name]] == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (0.0, -0.0),
        (float("nan"), np.float64("nan")),
        (2**60, float(2**60)),
        (0.5, np.float32(0.5)),
        (True, np.bool_(True)),
        ((1, 2), [1, 2.0]),
        (torch.Size([2]), (2,)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"x", "y", "z"}, {"z", "y", "x"}),
        (a.numpy(), a),
        (a.reshape(2, 3).mT, a.reshape(2, 3).mT.contiguous()),
        (nn.Parameter(a), a),
        (Condition.of("", {"x": a, "y": 1}, None), Condition.of("", {"y": 1.0, "x": Rows(a.numpy())}, None)),
        (sg.VP(beta_max=20), sg.VP(beta_max=20.0)),
    ],
)
def test_equal_values(one: Any, other: Any) -> None:
    assert digest(one) == digest(other)


def test_use_changes_no_digest() -> None:
    """Caches, modes and compiled code are not content."""
    exact, network = law().model(sg.VP()), sg.ScoreModel(Plain(), sg.VP())
    before = digest(exact), digest(network), digest(scaled_by)
    for _ in range(50):
        exact(torch.zeros(2, 1), 0.5)
        network(torch.zeros(2, 1), 0.5)
        scaled_by(1.0)(1, 2)
    network.train(not network.training)
    assert before == (digest(exact), digest(network), digest(scaled_by))


def test_what_a_function_names_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(Plain()), digest(Callable_), digest(lambda: Plain)
    monkeypatch.setattr(sys.modules[__name__], "GAIN", 3.0)
    after = digest(Plain()), digest(Callable_), digest(lambda: Plain)
    assert [x == y for x, y in zip(before, after, strict=True)] == [False, True, False]
    monkeypatch.setattr(Callable_, "twice", lambda self, x, c: 3 * x)
    assert digest(Callable_) != after[1]


def test_versions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(sg.VP()), digest(nn.Tanh())
    monkeypatch.setattr(torch, "__version__", "0")
    monkeypatch.setattr(sg, "__version__", "0")
    assert all(x != y for x, y in zip(before, (digest(sg.VP()), digest(nn.Tanh())), strict=True))


def circle() -> Any:
    found = Callable_(1.0)
    found.factor = [found]
    return found


@pytest.mark.parametrize(
    "make",
    [
        threading.Lock,
        lambda: [threading.Lock()],
        lambda: (i for i in range(3)),
        lambda: Callable_(threading.Lock()),
        lambda: scaled_by(threading.Lock()),
        lambda: torch.eye(2).to_sparse(),
        lambda: torch.empty(2, device="meta"),
        lambda: np.array([None]),
        circle,
    ],
)
def test_what_has_no_content_is_refused(make: Callable[[], Any]) -> None:
    value = make()
    with pytest.raises(sg.ConfigError, match="has no content that can be read"):
        digest(value)
    assert digest_here(value) == digest_here(value) != digest_here([value])
    model = Plain(scale=value)
    with pytest.raises(sg.ConfigError, match="has no content that can be read"):
        digest(model)
    assert parts(model, digest_here) == parts(model, digest_here)


def test_parts_name_what_changed() -> None:
    def changed(change: Callable[[], Any]) -> set[str]:
        before, stamps = parts(model), parts(model, digest_here)
        change()
        after, others = parts(model), parts(model, digest_here)
        found = {name for name in before if before[name] != after.get(name)}
        assert found <= {name for name in stamps if stamps[name] != others.get(name)}
        return found

    model = sg.ScoreModel(nn.Sequential(Plain(), nn.BatchNorm1d(3), nn.Dropout(0.5)), sg.VP(), sg.VPrediction())
    network: Any = model.network
    with torch.no_grad():
        assert changed(lambda: network[0].weight.add_(1)) == {"network.0.weight"}
        assert changed(lambda: network[0].table.add_(1)) == {"network.0.table"}
        assert changed(lambda: network[1].running_mean.add_(1)) == {"network.1.running_mean"}
    state = {**network[1].state_dict(), "running_var": torch.full((3,), 2.0)}
    assert changed(lambda: network[1].load_state_dict(state)) == {"network.1.running_var"}
    assert changed(lambda: setattr(network[0], "scale", 3.0)) == {"network.0.scale"}
    assert changed(lambda: setattr(network[2], "p", 0.1)) == {"network.2.p"}
    assert changed(lambda: setattr(model, "trained_under", sg.VE())) == {".trained_under"}
    assert changed(lambda: setattr(model, "perturbation", sg.VE())) == {".perturbation"}
    assert changed(lambda: setattr(model, "parameterization", sg.NoisePrediction())) == {".parameterization"}
    assert changed(lambda: network[0].register_forward_hook(lambda *given: None)) == {"network.0._forward_hooks"}
    assert changed(lambda: network.__setitem__(2, nn.Tanh())) == {"network.2", "network.2.p", "network.2.inplace"}
    assert changed(lambda: network.train(not network.training)) == set()
