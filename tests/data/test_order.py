"""The held-out split and the order of batches: pure functions of the seed."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sde_gen.data import batch_indices, split_indices
from sde_gen.errors import ConfigError

SEEDS = st.integers(0, 2**64 - 1)


@given(count=st.integers(2, 200), fraction=st.floats(0.001, 0.999), seed=SEEDS)
def test_split_is_a_partition(count: int, fraction: float, seed: int) -> None:
    train, test = split_indices(count, fraction, seed)
    assert len(train) >= 1
    assert len(test) >= 1
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(count))
    assert torch.equal(train, train.sort().values)
    assert torch.equal(test, test.sort().values)
    assert train.dtype == test.dtype == torch.int64
    again = split_indices(count, fraction, seed)
    assert torch.equal(train, again[0])


def test_split_is_fixed_forever() -> None:
    """These numbers must not change with versions or machines: stored models rely on them."""
    assert split_indices(12, 4, 0)[1].tolist() == [2, 4, 7, 8]
    assert batch_indices(7, 5, 0, 0).tolist() + batch_indices(7, 5, 1, 0).tolist() == [6, 5, 1, 4, 3, 0, 2, 3, 4, 6]


def test_split_ignores_the_global_generators() -> None:
    first = split_indices(100, 0.3, 5)[1]
    torch.rand(3)
    assert torch.equal(first, split_indices(100, 0.3, 5)[1])


def test_split_of_counts_and_fractions() -> None:
    assert len(split_indices(100, 30, 0)[1]) == 30
    assert len(split_indices(100, 0.3, 0)[1]) == 30
    assert len(split_indices(3, 0.01, 0)[1]) == 1
    assert len(split_indices(3, 0.99, 0)[0]) == 1


@pytest.mark.parametrize("held_out", [0, 10, -1, 0.0, 1.0, math.nan, "half", True, None])
def test_split_refuses_what_leaves_a_part_empty(held_out: object) -> None:
    with pytest.raises(ConfigError, match="held_out must be a fraction in"):
        split_indices(10, held_out, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("bit", [0, 1, 31, 32, 33, 53, 63])
def test_every_bit_of_the_seed_counts(bit: int) -> None:
    assert not torch.equal(split_indices(200, 0.5, 0)[0], split_indices(200, 0.5, 1 << bit)[0])
    assert not torch.equal(batch_indices(200, 200, 0, 0), batch_indices(200, 200, 0, 1 << bit))


@given(count=st.integers(1, 40), batch=st.integers(1, 100), seed=SEEDS, epochs=st.integers(1, 4))
def test_batches_walk_through_whole_epochs(count: int, batch: int, seed: int, epochs: int) -> None:
    steps = math.ceil(epochs * count / batch)
    line = torch.cat([batch_indices(count, batch, step, seed) for step in range(steps)])
    assert line.dtype == torch.int64
    for epoch in range(epochs):
        assert torch.equal(line[epoch * count : (epoch + 1) * count].sort().values, torch.arange(count))


@given(count=st.integers(1, 40), batch=st.integers(1, 100), step=st.integers(0, 10**9), seed=SEEDS)
def test_a_batch_depends_on_nothing_but_its_arguments(count: int, batch: int, step: int, seed: int) -> None:
    first = batch_indices(count, batch, step, seed)
    batch_indices(count + 1, batch, 3, seed ^ 1)
    first_copy = first.clone()
    first += 1  # a caller that writes into its batch must not change the next one
    assert torch.equal(batch_indices(count, batch, step, seed), first_copy)


def test_one_line_whatever_the_batch_size() -> None:
    small = torch.cat([batch_indices(50, 10, step, 3) for step in range(12)])
    large = torch.cat([batch_indices(50, 40, step, 3) for step in range(3)])
    assert torch.equal(small, large)


def test_slices_of_processes_make_up_the_batch() -> None:
    batch = batch_indices(100, 32, 7, 1)
    slices = [batch[rank::4] for rank in range(4)]
    assert torch.equal(torch.stack(slices, 1).flatten(), batch)


def test_epochs_differ() -> None:
    epochs = [tuple(batch_indices(100, 100, step, 0).tolist()) for step in range(10)]
    assert len(set(epochs)) == 10


def test_the_first_place_is_uniform() -> None:
    """Chi-square over 10 cells and 4,000 seeds; 60 is exceeded with probability 1.3e-9 (9 degrees of freedom)."""
    counts = torch.bincount(torch.tensor([int(batch_indices(10, 1, 0, seed)) for seed in range(4000)]), minlength=10)
    assert float(((counts - 400.0) ** 2 / 400).sum()) < 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 0, 0), "count must be a whole number, at least 1, got 0"),
        ((1, 0, 0, 0), "batch_size must be a whole number, at least 1, got 0"),
        ((1, 1.0, 0, 0), "batch_size must be a whole number, at least 1, got 1.0"),
        ((1, 1, -1, 0), "step must be a whole number, at least 0, got -1"),
        ((1, 1, 0, -1), r"seed must be a whole number in \[0, 2\^64\), got -1"),
        ((1, 1, 0, 2**64), "seed must be a whole number in"),
        ((1, 1, 0, "0"), "seed must be a whole number in"),
    ],
)
def test_refuses_bad_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        batch_indices(*arguments)
