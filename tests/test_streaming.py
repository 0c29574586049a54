"""Samples drawn in blocks: the same whoever draws them, resumed, checked, in bounded memory."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import sde_gen as sg
from sde_gen.distributed import Processes
from sde_gen.errors import CheckpointError, ConfigError, OutputError
from sde_gen.samplers import Samples
from sde_gen.streaming import BlockStore, block_length, draw_blocks, write_npz

PLAN = {"seed": 5, "sampler": {"steps": 3}}


def _model() -> sg.ScoreModel:
    torch.manual_seed(0)
    return sg.ScoreModel(sg.MLP(2, hidden=8, layers=1), sg.VP())


def _store(folder: Path, count: int = 100, block: int = 16) -> BlockStore:
    return BlockStore(folder, PLAN, count, (2,), block)


class Drawer:
    def __init__(self, fail_after: int | None = None) -> None:
        self.model, self.drawn, self.fail_after = _model(), [], fail_after

    def __call__(self, first: int, size: int) -> Samples:
        if self.fail_after is not None and len(self.drawn) == self.fail_after:
            raise KeyboardInterrupt
        self.drawn.append(first)
        return sg.EulerMaruyama(steps=3)(self.model, (size, 2), seed=5, first=first)


def _whole(store: BlockStore) -> torch.Tensor:
    return torch.cat([block.x for block in store.read_all()])


@pytest.mark.parametrize(
    ("shape", "on_cpu", "on_gpu"),
    [
        ((2,), 2**15, 2**16),
        ((64,), 1024, 16384),
        ((1, 28, 28), 128, 1280),
        ((3, 32, 32), 64, 320),
        ((3, 512, 512), 64, 64),
    ],
)
def test_block_length(shape: tuple[int, ...], on_cpu: int, on_gpu: int) -> None:
    assert (block_length(shape), block_length(shape, "cuda")) == (on_cpu, on_gpu)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_number_of_processes_draws_the_same_bits(tmp_path: Path, world: int) -> None:
    store = _store(tmp_path / "blocks")
    drawers = [Drawer() for _ in range(world)]
    with store.open():
        for rank, drawer in enumerate(drawers):  # one after the other: nothing of a block depends on who draws it

            class Rank(Processes):
                def sum(self, value: torch.Tensor) -> torch.Tensor:
                    return value

            assert draw_blocks(store, Rank(rank, world), drawer)
        x = _whole(store)
    assert sorted(first for drawer in drawers for first in drawer.drawn) == list(range(0, 100, 16))
    expected = sg.EulerMaruyama(steps=3)(_model(), (100, 2), seed=5).x
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-6)
    alone = _store(tmp_path / "alone")
    with alone.open():
        draw_blocks(alone, Processes(), Drawer())
        assert torch.equal(_whole(alone), x)


def test_an_interrupted_job_goes_on_where_it_was(tmp_path: Path) -> None:
    store, drawer = _store(tmp_path / "blocks"), Drawer(fail_after=3)
    with pytest.raises(KeyboardInterrupt), store.open():
        draw_blocks(store, Processes(), drawer)
    assert drawer.drawn == [0, 16, 32]
    with pytest.raises(CheckpointError, match="block 3 of the samples is not in"):
        list(store.read_all())
    asked = iter([False, True])
    stopped = Drawer()
    with store.open():
        assert not draw_blocks(store, Processes(), stopped, stop=lambda: next(asked))
    assert stopped.drawn == [48]
    again = Drawer()
    with store.open():
        assert draw_blocks(store, Processes(), again, again=(1,))
        assert again.drawn == [16, 64, 80, 96]
        assert [block.nfe for block in store.read_all()] == [3] * 7
    store.remove()
    assert not store.folder.exists()


def test_damaged_blocks_and_those_of_another_job_are_drawn_again(tmp_path: Path) -> None:
    store = _store(tmp_path / "blocks")
    with store.open():
        draw_blocks(store, Processes(), Drawer())
    path = store.folder / "block_000002.safetensors"
    good = path.read_bytes()
    generator = torch.Generator().manual_seed(1)
    for place in torch.randint(8 * len(good), (100,), generator=generator).tolist():
        damaged = bytearray(good)
        damaged[place // 8] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        assert store.read(2) is None, place
    path.write_bytes(good[:-1])
    assert store.read(2) is None
    path.unlink()
    path.symlink_to(store.folder / "block_000001.safetensors")
    assert store.read(2) is None
    other = BlockStore(store.folder, {**PLAN, "seed": 6}, 100, (2,), 16)
    assert all(other.read(k) is None for k in range(len(other)))
    assert other.digest != store.digest


def test_two_jobs_never_share_a_folder_and_an_empty_one_is_removed(tmp_path: Path) -> None:
    store = _store(tmp_path / "blocks")
    with store.open(), pytest.raises(OutputError, match="in use"), _store(tmp_path / "blocks").open():
        pass
    assert not store.folder.exists()
    for count, block in ((0, 1), (1, 0)):
        with pytest.raises(ConfigError):
            _store(tmp_path, count, block)


def test_npz_written_in_pieces_is_what_numpy_reads(tmp_path: Path) -> None:
    x = np.arange(60, dtype=np.float32).reshape(10, 2, 3)
    labels = np.arange(10)
    pieces = {
        "x": ((10, 2, 3), "float32", (x[i : i + 3] for i in range(0, 10, 3))),
        "label": ((10,), "int64", (labels[i : i + 5] for i in range(0, 10, 5))),
        "turned": ((3, 10), "float32", [x[:, 0].T]),
    }
    path = write_npz(tmp_path / "a.npz", pieces)
    with np.load(path, allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["label", "turned", "x"]
        np.testing.assert_array_equal(arrays["x"], x)
        np.testing.assert_array_equal(arrays["label"], labels)
        np.testing.assert_array_equal(arrays["turned"], x[:, 0].T)
    assert os.listdir(tmp_path) == ["a.npz"]
