"""The dataset object: what it refuses, its fingerprint; and the embedded digits."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from sde_gen.data import Affine, Dataset, digits
from sde_gen.data.making import from_raw
from sde_gen.data.transform import standardising
from sde_gen.errors import ConfigError, DataError


def vectors(**changes: object) -> Dataset:
    labels = torch.tensor([0, 1, 0])
    values: dict = {
        "name": "tiny",
        "kind": "vector",
        "train": torch.arange(6.0).reshape(3, 2),
        "test": torch.ones(3, 2),
        "transform": Affine(),
        "train_labels": labels,
        "test_labels": labels,
        "num_classes": 2,
    }
    return Dataset(**(values | changes))


def test_shape_and_stored_description() -> None:
    data = vectors()
    assert data.shape == (2,)
    stored = json.loads(json.dumps(data.to_dict()))
    assert stored["kind"] == "vector"
    assert stored["shape"] == [2]
    assert stored["num_classes"] == 2
    assert Affine.from_dict(stored["transform"]) == data.transform
    assert stored["fingerprint"] == data.fingerprint


def test_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        vectors().name = "other"  # type: ignore[misc]


def test_fingerprint_follows_content_only() -> None:
    first = vectors()
    assert len(first.fingerprint) == 64
    assert vectors().fingerprint == first.fingerprint
    assert vectors(name="other").fingerprint == first.fingerprint
    strided = torch.arange(6.0).reshape(2, 3).T.contiguous().T.T  # the same numbers need the same layout or not
    assert vectors(train=first.train.clone().T.contiguous().T).fingerprint == first.fingerprint
    changes: list[dict] = [
        {"train": strided},
        {"train": first.train + 1e-6},
        {"test": torch.ones(3, 2) * 2},
        {"train": first.test, "test": first.train},
        {"transform": Affine(1.0)},
        {"train_labels": torch.tensor([1, 1, 0])},
        {"num_classes": 3},
        {"train_labels": None, "test_labels": None, "num_classes": 0},
    ]
    prints = {vectors(**change).fingerprint for change in changes}
    assert len(prints | {first.fingerprint}) == len(changes) + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "sound"}, "kind must be one of"),
        ({"kind": "image"}, r"train must be a non-empty float32 tensor of shape \(N, C, H, W\)"),
        ({"train": torch.zeros(3, 2, dtype=torch.float64)}, "non-empty float32 tensor"),
        ({"train": torch.zeros(0, 2)}, "non-empty float32 tensor"),
        ({"test": torch.zeros(3, 3)}, "must have one shape"),
        ({"test": torch.tensor([[1.0, 1], [1, float("nan")], [0, 0]])}, "test sample 1 is NaN or infinite"),
        ({"train": torch.tensor([[1.0, 1], [1, 0], [0, float("inf")]])}, "train sample 2 is NaN or infinite"),
        ({"train_labels": None}, "go together"),
        ({"num_classes": 0}, "go together"),
        ({"train_labels": torch.zeros(2, dtype=torch.int64)}, "train_labels must be int64 of shape"),
        ({"test_labels": torch.zeros(3)}, "test_labels must be int64 of shape"),
        ({"test_labels": torch.tensor([0, 3, 1])}, r"must lie in 0\.\.1.*, got values in 0\.\.3"),
        ({"test_labels": torch.tensor([0, -2, 1])}, r"must lie in 0\.\.1.*, got values in -2\.\.1"),
        ({"classes": ("a", "a")}, "2 classes need as many different names"),
        ({"classes": ("a", "b", "c")}, "2 classes need as many different names"),
    ],
)
def test_refuses_what_does_not_fit(changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        vectors(**changes)


def test_standardising_leaves_constant_features_alone() -> None:
    raw = torch.tensor([[1.0, 5.0, 1e8], [3.0, 5.0, 1e8]], dtype=torch.float64)
    transform = standardising(raw)
    assert transform.scale == (1.0, 1.0, 1.0)
    assert transform.shift == (2.0, 5.0, 1e8)
    raw = torch.randn(1000, 2, dtype=torch.float64) * torch.tensor([1e-3, 1e5]) + 7
    x = standardising(raw).forward(raw)
    torch.testing.assert_close(x.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(2, dtype=torch.float64))


def test_the_held_out_part_does_not_touch_the_scale() -> None:
    raw = torch.randn(50, 2, dtype=torch.float64)
    data = from_raw("x", "vector", raw, None, None, 10, 0)
    torch.testing.assert_close(data.train.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    assert data.test.mean(0).abs().max() > 1e-3


def test_one_sample_is_too_few() -> None:
    with pytest.raises(DataError, match="needs at least 2 samples"):
        from_raw("x", "vector", torch.zeros(1, 2), None, None, 0.5, 0)


def test_digits() -> None:
    data = digits()
    assert data.name == "digits"
    assert data.kind == "image"
    assert data.train.shape == (1437, 1, 8, 8)
    assert data.test.shape == (360, 1, 8, 8)
    assert data.num_classes == 10
    assert data.train_labels is not None
    assert data.test_labels is not None
    assert set(data.train_labels.tolist()) == set(data.test_labels.tolist()) == set(range(10))
    assert data.transform == Affine.to_unit(0, 16, 17)
    everything = torch.cat([data.train, data.test])
    assert float(everything.min()) == -1.0
    assert float(everything.max()) == 1.0
    raw = data.transform.inverse(everything)
    assert torch.equal(raw, raw.round())
    assert data.fingerprint == digits().fingerprint
    assert data.fingerprint != digits(seed=1).fingerprint
    assert digits(held_out=0.5).test.shape[0] == 898


def test_digits_are_all_there_once() -> None:
    from sklearn.datasets import load_digits

    data = digits()
    ours = data.transform.inverse(torch.cat([data.train, data.test])).reshape(-1, 64)
    theirs = torch.tensor(load_digits().data, dtype=torch.float32)
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))


def test_digits_refuses_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="held_out"):
        digits(held_out=1797)
    with pytest.raises(ConfigError, match="seed"):
        digits(seed=-1)
    with pytest.raises(TypeError):
        digits(heldout=3)  # type: ignore[call-arg]


def test_import_is_light() -> None:
    code = (
        "import sys, sde_gen.data, sde_gen.networks; "
        "print([m for m in ('sklearn', 'PIL', 'datasets', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
