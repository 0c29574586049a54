"""Training on a GPU: nothing waits for it, faults are skipped where they happen, what it costs can be measured."""

import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import sde_gen as sg
from sde_gen.data import Affine, Dataset
from sde_gen.training import Trainer, TrainerSettings, newest_checkpoint

SCRIPT = Path(sg.__file__).parents[1] / "benchmarks" / "training.py"
SETTINGS = TrainerSettings(
    steps=20, batch_size=16, warmup=0, schedule="constant", log_every=4, eval_every=0, checkpoint_every=10
)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    if not SCRIPT.is_file():
        pytest.skip("an installed package has no benchmarks")
    spec = importlib.util.spec_from_file_location("benchmark_of_training", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def _no_waiting() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


def _trainer(settings: TrainerSettings, network: nn.Module | None = None, **arguments: object) -> Trainer:
    torch.manual_seed(0)
    images = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    data = Dataset("noise", "image", images[:48], images[48:], Affine())
    network = sg.UNet(3, width=16, blocks=1, dropout=0.1) if network is None else network
    model = sg.ScoreModel(network, sg.VP())
    return Trainer(model, data, sg.DenoisingScoreMatching(), settings, device="cuda", **arguments)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_no_step_waits_for_the_device(precision: str, accumulate: int, clip: float | None) -> None:
    trainer = _trainer(
        dataclasses.replace(SETTINGS, precision=precision, accumulate=accumulate, clip=clip, log_every=9)
    )
    for step in range(9):
        if step == 3:  # libraries are loaded and memory is there
            torch.cuda.set_sync_debug_mode("error")
        trainer.update()
    torch.cuda.set_sync_debug_mode("default")
    trainer._log()
    assert 0 < trainer.last["loss"] < 10
    assert trainer.last["skipped"] == 0


@pytest.mark.gpu
def test_clipping_on_the_device_is_that_of_the_host() -> None:
    ends = []
    for on_device in (True, False):
        trainer = _trainer(dataclasses.replace(SETTINGS, clip=0.05, steps=5), sg.UNet(3, width=16, blocks=1))
        trainer._update._on_device = on_device
        trainer.train()
        ends.append([trainer.optimizer.state[p]["exp_avg"] for p in trainer.network.parameters()])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


class Poisoned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 1, 1))
        self.calls = 0

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.calls += self.training
        return x * self.weight * (float("nan") if self.training and self.calls in (2, 7, 8) else 1.0)


@pytest.mark.gpu
def test_faults_are_skipped_on_the_device(tmp_path: Path) -> None:
    trainer = _trainer(SETTINGS, Poisoned(), checkpoints=tmp_path)
    trainer.train()
    assert trainer.faults.total == 3
    assert int(next(iter(trainer.optimizer.state.values()))["step"]) == 17
    assert newest_checkpoint(tmp_path)[0] is not None


@pytest.mark.gpu
def test_the_fraction_of_the_peak_is_a_fraction(benchmark: ModuleType) -> None:
    device = torch.device("cuda")
    settings = dataclasses.replace(SETTINGS, precision="bf16", log_every=2)
    data = benchmark.images(32, 3)
    row = benchmark.measure("U-Net", lambda: sg.UNet(3, width=32), data, settings, 2, 6, device)
    assert 0 < row["fraction_of_product"] < 1
    assert row["fraction_of_peak"] is None or 0 < row["fraction_of_peak"] < 1
    assert row["product_teraflops"] > row["teraflops"] > 0


def test_the_operations_of_a_step_are_counted(benchmark: ModuleType) -> None:
    layer = nn.Linear(64, 32, bias=False)

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return self.layer(x)

    # Forward, and backward to the weights; nothing is before the layer that wants a gradient.
    assert benchmark.operations(One(), torch.zeros(16, 64)) == 2 * (2 * 16 * 64 * 32)
    assert layer.weight.grad is None


@pytest.mark.parametrize("n", [6, 12, 13, 60])
def test_the_interval_of_a_median_covers_it(benchmark: ModuleType, n: int) -> None:
    from math import comb

    middle, low, high = benchmark.median_with_interval([float(k) for k in reversed(range(n))])
    assert middle == (n - 1) / 2
    assert low == n - 1 - high
    k = int(low) + 1  # the k-th smallest and the k-th largest: the median is outside if fewer than k lie on one side
    outside = 2 * sum(comb(n, j) for j in range(k)) / 2**n
    assert outside <= 0.05 < outside + 2 * comb(n, k) / 2**n, "the narrowest that does"
