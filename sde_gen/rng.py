r"""Random numbers as pure functions of a 64-bit seed and a few counters.

Torch's CPU generator is a Mersenne Twister whose `manual_seed` uses the low 32 bits only, so that seeds equal modulo
2^32 give equal numbers. Here its whole state (624 words) is filled from the counter-based generator Philox (Salmon et
al. 2011) keyed by (seed, counters), so all 64 bits count and streams of different counters are independent. CUDA's
generator is itself a Philox with a 64-bit key; it gets a key hashed from the same numbers.

`SeededNoise` draws in fixed blocks of samples, so that sample i gets the same numbers whatever is drawn beside it.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sde_gen.errors import ConfigError

_WORDS = 624
_FIRST_WORD = 3  # position of the state words in torch's generator state, in 8-byte units
_MASK = 2**64 - 1
#: Samples per block for large samples; small ones share a block of about `_BLOCK_NUMBERS` numbers.
_BLOCK_SAMPLES = 64
_BLOCK_NUMBERS = 2**16
#: torch fills normal numbers in groups of 16; whole groups make a shorter draw a prefix of a longer one.
_GROUP = 16

__all__ = ["SeededNoise", "block_size", "check_seed", "fill", "keyed_generator"]


def check_seed(seed: int) -> int:
    """Return the seed if it is a whole number in [0, 2^64), else raise `ConfigError`."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= int(seed) <= _MASK:
        raise ConfigError(f"seed must be a whole number in [0, 2^64), got {seed!r}")
    return int(seed)


def keyed_generator(seed: int, *keys: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator that depends on (seed, keys) alone, and on every bit of them.

    Args:
        seed: whole number in [0, 2^64).
        keys: up to four counters in [0, 2^64).
        device: where the generator draws.

    Raises:
        ConfigError: for a seed out of range, or more than four keys.
    """
    if len(keys) > 4:
        raise ConfigError(f"keyed_generator takes at most four keys, got {len(keys)}")
    counter = np.array([k & _MASK for k in keys] + [0] * (4 - len(keys)), dtype=np.uint64)
    # The second key word separates these streams from other uses of Philox with the same seed; the first counter
    # word is the one that Philox itself advances, so the keys are placed above it and the fourth joins the key.
    seed = seed if type(seed) is int and 0 <= seed <= _MASK else check_seed(seed)
    key = np.array([seed, (0x5DE6E4 + int(counter[3]) * 0x9E3779B97F4A7C15) & _MASK], dtype=np.uint64)
    start = np.array([0, counter[0], counter[1], counter[2]], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=start)
    device = torch.device(device)
    if device.type != "cpu":
        generator = torch.Generator(device)
        generator.manual_seed(int(bits.random_raw()) & (2**63 - 1))
        return generator
    generator = torch.Generator()
    template = _template()
    if template is None:  # an unknown layout of the state: seed with 32 well-mixed bits
        return generator.manual_seed(int(bits.random_raw()) >> 32)
    state = template.copy()
    state[_FIRST_WORD : _FIRST_WORD + _WORDS] = bits.random_raw(_WORDS // 2).view(np.uint32)
    generator.set_state(torch.from_numpy(state.view(np.uint8)))
    return generator


@lru_cache(maxsize=1)
def _template() -> np.ndarray | None:
    """State of a freshly seeded CPU generator, if its words lie where this module expects them, else None."""
    state = torch.Generator().manual_seed(5).get_state().numpy()
    if state.nbytes % 8 or state.nbytes < 8 * (_FIRST_WORD + _WORDS):
        return None
    words = state.view(np.uint64)
    expected = np.random.RandomState(5).get_state(legacy=False)["state"]["key"]  # the same recurrence from seed 5
    return words.copy() if np.array_equal(words[_FIRST_WORD : _FIRST_WORD + _WORDS], expected) else None


class SeededNoise:
    """Noise as a pure function of (seed, sample, step, draw).

    Samples are drawn in fixed blocks keyed by (seed, block, step, draw), so sample i gets the same numbers whatever the
    batch around it. Numbers on a GPU differ from those on a CPU, and those in float64 from those in float32.

    Args:
        seed: whole number in [0, 2^64); all 64 bits count.
        first: index of the first sample of the batch.

    Raises:
        ConfigError: for a seed out of range.
    """

    def __init__(self, seed: int, first: int = 0) -> None:
        # As it is drawn from at every step, a seed is looked at twice only where something is wrong with it.
        self.seed = seed if type(seed) is int and 0 <= seed <= _MASK else check_seed(seed)
        self.first = int(first)

    def starting_at(self, first: int) -> "SeededNoise":
        """The same noise for samples `first`, `first` + 1, ..."""
        return SeededNoise(self.seed, first)

    def __call__(self, like: Tensor, step: int, draw: int, out: Tensor | None = None) -> Tensor:
        """Standard normal numbers shaped like `like`; in `out`, a contiguous tensor like it, if that is given."""
        rows = len(like)
        if rows == 0:
            return torch.empty_like(like)
        size = like.numel() // rows
        block = block_size(size)
        # Half precision is rounded from single; devices whose generator has no fixed order draw on the CPU.
        dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
        device = like.device if like.device.type in ("cpu", "cuda") else torch.device("cpu")
        if out is None or out.dtype != dtype or out.device != device:
            out = torch.empty(like.shape, dtype=dtype, device=device)
        flat = out.view(rows, size)
        done = 0
        while done < rows:
            index, offset = divmod(self.first + done, block)
            count = min(block - offset, rows - done)
            generator = keyed_generator(self.seed, index, step + 1, draw, device=device)
            part = flat if count == rows else flat[done : done + count]
            if offset == 0 and count * size % _GROUP == 0 and device.type == "cpu":
                part.view(-1).normal_(generator=generator)
            else:
                fill(part, offset, block, size, generator)
            done += count
        return out if out.dtype == like.dtype and device == like.device else out.to(like)


@lru_cache(maxsize=64)
def block_size(size: int) -> int:
    """Samples per block, for samples of `size` numbers."""
    block = _BLOCK_SAMPLES
    while block * size < _BLOCK_NUMBERS:
        block *= 2
    return block


def fill(rows: Tensor, offset: int, block: int, size: int, generator: torch.Generator) -> None:
    """Fill rows [offset, offset + len(rows)) of a block."""
    last = (offset + len(rows)) * size
    if rows.device.type != "cpu":  # a GPU's numbers depend on the size of the draw: always the whole block
        whole = torch.empty(block * size, dtype=rows.dtype, device=rows.device).normal_(generator=generator)
        rows.copy_(whole[offset * size : last].view_as(rows))
    elif offset == 0 and last % _GROUP == 0:
        rows.view(-1).normal_(generator=generator)
    else:
        padded = -(-last // _GROUP) * _GROUP
        drawn = torch.empty(padded, dtype=rows.dtype).normal_(generator=generator)
        rows.copy_(drawn[offset * size : last].view_as(rows))
