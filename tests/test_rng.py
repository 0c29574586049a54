"""Keyed generators: pure functions of all 64 seed bits and the counters."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

import sde_gen as sg
from sde_gen import rng
from sde_gen.rng import check_seed, keyed_generator


def draws(*key, n=8, **kwargs):
    return torch.rand(n, generator=keyed_generator(*key, **kwargs), dtype=torch.float64)


def test_the_same_key_gives_the_same_numbers():
    assert torch.equal(draws(5, 1, 2, 3), draws(5, 1, 2, 3))
    assert torch.equal(draws(5), draws(5, 0, 0, 0, 0))
    assert torch.equal(draws(np.uint64(5)), draws(5))
    torch.manual_seed(0)
    a = torch.rand(1)
    torch.manual_seed(0)
    draws(1)
    assert torch.equal(torch.rand(1), a)  # the global generator is not touched


def test_every_bit_of_the_seed_counts():
    """torch.manual_seed takes the low 32 bits only."""
    for base in (0, 0x0123_4567_89AB_CDEF):
        seen = {tuple(draws(base ^ (1 << bit)).tolist()) for bit in range(64)} | {tuple(draws(base).tolist())}
        assert len(seen) == 65
    assert not torch.equal(draws(7), draws(7 + 2**32))


@pytest.mark.parametrize("position", range(4))
def test_every_bit_of_every_counter_counts(position):
    seen = set()
    for bit in range(64):
        keys = [0, 0, 0, 0]
        keys[position] = 1 << bit
        seen.add(tuple(draws(3, *keys).tolist()))
    assert len(seen) == 64


def test_counters_do_not_stand_for_one_another():
    keys = list(itertools.product((0, 1, 2), repeat=4))
    assert len({tuple(draws(3, *k).tolist()) for k in keys}) == len(keys)
    assert not torch.equal(draws(1, 2), draws(2, 1))


def test_streams_do_not_overlap():
    """2,500 state words of four neighbouring streams share no 64-bit word: streams are not shifts of one another."""
    words = [keyed_generator(1, block).get_state().numpy().view(np.uint64)[3:315] for block in range(4)]
    words += [keyed_generator(1, 0, step).get_state().numpy().view(np.uint64)[3:315] for step in range(1, 5)]
    flat = np.concatenate(words)
    assert len(np.unique(flat)) == len(flat)


def test_numbers_are_uniform_normal_and_uncorrelated():
    """Kolmogorov-Smirnov at 1e-6 on 50,000 numbers, and correlations within 5.5/sqrt(n) (4e-8 each)."""
    n = 50_000
    assert stats.kstest(draws(9, 1, n=n).numpy(), stats.uniform.cdf).pvalue > 1e-6
    normal = [torch.randn(n, generator=keyed_generator(9, k), dtype=torch.float64) for k in range(3)]
    for z in normal:
        assert stats.kstest(z.numpy(), stats.norm.cdf).pvalue > 1e-6
    for a, b in itertools.combinations(normal, 2):
        assert abs(float((a * b).mean())) < 5.5 / n**0.5
    first = torch.stack([torch.randn(1, generator=keyed_generator(9, k), dtype=torch.float64) for k in range(4000)])
    assert stats.kstest(first.flatten().numpy(), stats.norm.cdf).pvalue > 1e-6  # across streams too


def test_the_state_is_filled_from_philox():
    """The documented construction, so that a seed means the same numbers in every version."""
    key = np.array([11, 0x5DE6E4], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=np.array([0, 1, 2, 3], dtype=np.uint64)).random_raw(312)
    state = keyed_generator(11, 1, 2, 3).get_state().numpy().view(np.uint64)
    assert np.array_equal(state[3 : 3 + 624], bits.view(np.uint32))


def test_an_unknown_layout_falls_back_to_a_seed(monkeypatch):
    monkeypatch.setattr(rng, "_template", lambda: None)
    assert torch.equal(draws(5, 1), draws(5, 1))
    assert not torch.equal(draws(5, 1), draws(5 + 2**32, 1))
    assert not torch.equal(draws(5, 1), draws(5, 2))


class FakeGenerator:
    """Stands in for torch.Generator, which cannot be patched."""

    state = torch.zeros(0, dtype=torch.uint8)

    def __init__(self, device="cpu"):
        self.device = device

    def manual_seed(self, seed):
        self.seed = seed
        return self

    def get_state(self):
        return self.state


@pytest.mark.parametrize("size", [101, 104, 8 * 632])
def test_a_layout_is_recognised_only_when_it_is_as_expected(monkeypatch, size):
    rng._template.cache_clear()
    assert rng._template() is not None
    rng._template.cache_clear()
    monkeypatch.setattr(torch, "Generator", FakeGenerator)
    monkeypatch.setattr(FakeGenerator, "state", torch.zeros(size, dtype=torch.uint8))
    try:
        assert rng._template() is None
    finally:
        rng._template.cache_clear()


def test_devices(monkeypatch):
    monkeypatch.setattr(torch, "Generator", FakeGenerator)
    generators = [keyed_generator(seed, 1, device="cuda") for seed in (3, 3, 3 + 2**32)]
    seeds = [g.seed for g in generators]
    assert seeds[0] == seeds[1] != seeds[2]
    assert all(0 <= s < 2**63 and s > 2**32 for s in seeds)
    assert generators[0].device == torch.device("cuda")


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, "1", None])
def test_refused_seeds(seed):
    for call in (check_seed, keyed_generator):
        with pytest.raises(sg.ConfigError, match=r"seed must be a whole number in \[0, 2\^64\), got ") as info:
            call(seed)
        assert repr(seed) in str(info.value)


def test_limits():
    assert check_seed(0) == 0
    assert check_seed(2**64 - 1) == 2**64 - 1
    assert type(check_seed(np.int64(4))) is int
    with pytest.raises(sg.ConfigError, match="at most four keys, got 5"):
        keyed_generator(0, 1, 2, 3, 4, 5)
