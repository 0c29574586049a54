"""Several processes: the same numbers as one, one mind about faults, and no waiting for the dead."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sde_gen.distributed import Processes
from sde_gen.errors import ConfigError
from sde_gen.training import newest_checkpoint
from sde_gen.training.checkpoint import checkpoint_folders
from tests.faults import jobs
from tests.faults.ranks import join, run_ranks, start_ranks


def test_messages(tmp_path: Path) -> None:
    seen = run_ranks(jobs.messages, 3, tmp_path)
    for rank, words in enumerate(seen):
        assert words["sum"] == 6.0
        assert words["gather"] == [[1, 1], [2, 2], [2, 2]]
        assert words["told"] == {"rank": 0, "text": "é"}
        assert words["refused"] == ("here" if rank == 0 else ("FailedElsewhere", "no", 73))
        # The first is heard at once, the others one exchange later.
        assert words["pulse"] == [(False, 0.0), (False, 0.0), (False, 10.0), (True, 20.0), (False, 30.0)]
    assert [words["rows"] for words in seen] == [[0, 3], [3, 6], [6, 10]]
    assert [words["blocks"] for words in seen] == [[0, 3, 6], [1, 4], [2, 5]]


def test_tasks_are_shared_and_a_failure_is_everybodys(tmp_path: Path) -> None:
    for rank, seen in enumerate(run_ranks(jobs.shares, 2, tmp_path)):
        assert [done[:2] for done in seen["done"]] == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]
        assert [len(done[2]) for done in seen["done"]] == [0, 1, 2, 3, 4]
        assert seen["none"] == []
        assert seen["failed"] == ("OutputError" if rank == 1 else "FailedElsewhere", "no room", 73)


def test_likelihoods_and_failures_are_those_of_one_process(tmp_path: Path) -> None:
    seen = run_ranks(jobs.likelihoods, 2, tmp_path)
    alone = jobs.likelihoods(Processes())
    for kind in ("ode", "vlb"):
        assert list(alone[kind]["failed"]) == ["21", "22", "23"]
        assert all("at step" in reason for reason in alone[kind]["failed"].values())
        assert alone[kind]["n"] == len(alone[kind]["each"]) == 6
        assert seen[0][kind] == seen[1][kind] == alone[kind]
    message = "none of the 3 held-out samples has a likelihood: t"
    assert alone["failed"] == seen[0]["failed"] == ("SolverError", message, 70)
    assert seen[1]["failed"] == ("FailedElsewhere", message, 70)


def test_alone_everything_is_a_plain_value() -> None:
    alone = Processes()
    assert alone.rows(5) == slice(0, 5)
    assert list(alone.blocks(3)) == [0, 1, 2]
    assert alone.on_main(lambda: 7) == 7
    assert alone.gather(torch.arange(3)).tolist() == [0, 1, 2]
    assert alone.share(3, lambda index: 2 * index) == [0, 2, 4]
    alone.agree({"a": "b"})
    alone.wait()


def _largest(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Largest relative difference between the weights."""
    return max(
        float(((a[part][name] - b[part][name]).abs() / (1e-3 + b[part][name].abs())).max())
        for part in ("model", "ema")
        for name in b[part]
    )


SLOW = pytest.mark.slow
CASES = [
    (2, {}),
    (1, {"accumulate": 3}),
    (2, {"spare": True, "steps": 20}),
    (2, {"learned_weighting": True, "steps": 20, "accumulate": 2}),
    pytest.param(2, {"learned_weighting": True}, marks=SLOW, id="learned-weighting"),
    pytest.param(2, {"spare": True, "steps": 20, "strategy": "fsdp"}, marks=SLOW, id="spare-fsdp"),
    pytest.param(3, {}, marks=SLOW, id="16 samples on 3"),
    pytest.param(2, {"accumulate": 2}, marks=SLOW, id="accumulate"),
    pytest.param(2, {"strategy": "fsdp"}, marks=SLOW, id="fsdp"),
    pytest.param(2, {"strategy": "fsdp", "ema": (0.9, 0.5), "posthoc_every": 15}, marks=SLOW, id="fsdp-averages"),
    pytest.param(2, {"optimizer": "adamw", "weight_decay": 0.1, "strategy": "fsdp"}, marks=SLOW, id="fsdp-adamw"),
    pytest.param(2, {"optimizer": "muon"}, marks=SLOW, id="muon"),
    pytest.param(2, {"strategy": "fsdp", "accumulate": 2}, marks=SLOW, id="fsdp-accumulate"),
    pytest.param(2, {"strategy": "fsdp", "clip": 0.3, "on_device": True}, marks=SLOW, id="fsdp-as-on-a-gpu"),
    pytest.param(2, {"kind": "images", "steps": 20}, marks=SLOW, id="images"),
    pytest.param(2, {"kind": "images", "steps": 20, "strategy": "fsdp"}, marks=SLOW, id="images-fsdp"),
]


@pytest.mark.parametrize(("world", "changes"), CASES, ids=str)
def test_any_number_of_processes_gives_the_weights_of_one(tmp_path: Path, world: int, changes: dict[str, Any]) -> None:
    alone = {k: v for k, v in changes.items() if k not in ("strategy", "accumulate", "on_device")}
    one = jobs.train(Processes(), tmp_path / "one", alone)
    assert one["levels"]
    several = run_ranks(jobs.train, world, tmp_path / "ranks", tmp_path / "several", changes)
    for result in several:
        assert result["step"] == one["step"]
        torch.testing.assert_close(result["model"], one["model"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result["ema"], one["ema"], rtol=1e-5, atol=1e-6)
        for a, b in zip(result["rows"], one["rows"], strict=True):
            assert a == pytest.approx(b, rel=1e-4)
        for a, b in zip(result["levels"], one["levels"], strict=True):
            assert a == pytest.approx(b, rel=1e-3)
    published = [newest_checkpoint(tmp_path / name)[0] for name in ("one", "several")]
    more = ("averages",) if "posthoc_every" in changes else ("weighting",) if "learned_weighting" in changes else ()
    for part in ("model", "ema", "optimizer", *more):
        a, b = (found.tensors(part) for found in published if found is not None)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    if more == ("averages",):
        names = [{path.name for path in (tmp_path / name / "averages").iterdir()} for name in ("one", "several")]
        assert names[0] == names[1] != set()
    if changes.get("strategy") == "fsdp":
        parameters = sum(tensor.numel() for tensor in one["model"].values())
        assert max(r["parameters_here"] for r in several) < 0.7 * parameters, "each holds a shard only"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_resumed_with_another_number_of_processes(tmp_path: Path, strategy: str) -> None:
    one = jobs.train(Processes(), tmp_path / "one", {"steps": 40})
    half = {"steps": 20, "strategy": strategy}
    run_ranks(jobs.train, 2, tmp_path / "first", tmp_path / "parts", half)
    three = run_ranks(jobs.train, 3, tmp_path / "second", tmp_path / "parts", {**half, "steps": 30})
    assert three[0]["step"] == 30
    last = jobs.train(Processes(), tmp_path / "parts", {"steps": 40})
    torch.testing.assert_close(last["model"], one["model"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last["ema"], one["ema"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("what", ["weights", pytest.param("settings", marks=SLOW), pytest.param("data", marks=SLOW)])
def test_processes_that_disagree_stop_at_the_start(tmp_path: Path, what: str) -> None:
    for name, message, code in run_ranks(jobs.disagree, 2, tmp_path, what):
        assert (name, code) == ("ConfigError", 2)
        assert f"process 1 does not agree with process 0 on the {what};" in message


@pytest.mark.parametrize("silent", [False, pytest.param(True, marks=SLOW)])
def test_a_dead_process_ends_the_job_and_nothing_partial_is_published(tmp_path: Path, silent: bool) -> None:
    checkpoints = tmp_path / "checkpoints"
    ranks = start_ranks(jobs.die, 2, tmp_path, checkpoints, silent, timeout=5.0)
    began = time.monotonic()
    ranks[0].join(60)
    assert ranks[0].exitcode == 0, "it has not ended"
    assert time.monotonic() - began < 60
    ranks[1].kill()
    join(ranks, 10)
    name, message, code = torch.load(tmp_path / "rank0.pt", weights_only=False)
    assert (name, code) == ("ProcessLostError", 69), message
    assert [path.name for path in checkpoint_folders(checkpoints)] == ["step_00000020", "step_00000010"]
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_00000010", "step_00000020"]
    found, skipped = newest_checkpoint(checkpoints)
    assert found is not None
    assert (found.step, skipped) == (20, [])


def test_a_signal_to_one_process_stops_all_at_one_step(tmp_path: Path) -> None:
    ends = run_ranks(jobs.stop_one, 2, tmp_path / "ranks", tmp_path / "checkpoints")
    assert ends[0] == ends[1] == (8, True)
    found, _ = newest_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    assert found.step == 8


@pytest.mark.parametrize(
    ("strategy", "on_device"),
    [("ddp", False), pytest.param("fsdp", False, marks=SLOW), pytest.param("fsdp", True, marks=SLOW)],
)
def test_a_fault_in_one_process_is_the_same_error_in_all(tmp_path: Path, strategy: str, on_device: bool) -> None:
    how = (tmp_path / "checkpoints", strategy, on_device)
    (name, message, code), other = run_ranks(jobs.poisoned, 2, tmp_path / "ranks", *how)
    assert (name, code) == ("TrainingFault", 70)
    assert "step 12" in message
    assert other == (name, message, code)
    found, _ = newest_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    assert found.step == 10


@pytest.mark.slow
def test_a_full_disk_of_process_0_ends_all_with_74(tmp_path: Path) -> None:
    ends = run_ranks(jobs.full_disk, 2, tmp_path / "ranks", tmp_path / "checkpoints")
    assert [end[2] for end in ends] == [74, 74], ends
    assert checkpoint_folders(tmp_path / "checkpoints") == []


def test_a_learned_weighting_of_shards_is_refused() -> None:
    with pytest.raises(ConfigError, match="use ddp"):
        jobs.build(Processes(0, 2), None, learned_weighting=True, strategy="fsdp")


def test_too_small_a_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 20"):
        jobs.build(Processes(0, 10), None, batch_size=16, accumulate=2)
