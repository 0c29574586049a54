"""`python -m sde_gen.compare experiment=posteriors`: methods against exact posteriors."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
import yaml

from sde_gen.config import load_config
from sde_gen.config.schema import PosteriorSettings
from sde_gen.errors import ConfigError
from sde_gen.jobs.comparing import run
from sde_gen.jobs.posteriors import compared, mixture

PLANE = "{dim: 2, modes: 3, spread: 1.0, least: 0.1, most: 0.3, seen: [0], noise_std: 0.3, seed: 1}"


def compare(*arguments: str) -> dict:
    return run(load_config("compare", ["experiment=posteriors", *arguments]))


def test_the_report(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    cfg = PosteriorSettings(problems={"one": yaml.safe_load(PLANE)}, observations=2, samples=64)
    means = compared(cfg, folder, "python -m sde_gen.compare experiment=posteriors")
    assert sorted(os.listdir(folder)) == [f"posteriors.{end}" for end in ("csv", "json", "md", "png")]
    rows = json.loads((folder / "posteriors.json").read_text("utf-8"))["rows"]
    assert len(rows) == 2 * len(means["one"])
    with (folder / "posteriors.csv").open(newline="") as file:
        assert [float(row["distance"]) for row in csv.DictReader(file)] == [row["distance"] for row in rows]
    best = {row["method"]: row for row in means["one"]}["particles, PiGDM"]
    mine = [row["distance"] for row in rows if row["method"] == "particles, PiGDM"]
    assert best["distance"] == pytest.approx(sum(mine) / 2)
    assert best["distance"] < 3  # of the floor; that particles are right is proven elsewhere
    text = (folder / "posteriors.md").read_text("utf-8")
    assert "experiment=posteriors" in text
    assert f"| particles, PiGDM | {best['distance']:.3g} |" in text


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("posteriors.samples=1", "samples"),
        ("posteriors.observation=3", "observation"),
        ("posteriors.problems.plane.seen=[2]", "seen must list numbers in 0..1"),
        ("posteriors.problems.plane.noise_std=0", "noise_std"),
        ("posteriors.problems.plane=3", "must have exactly dim, least"),
    ],
)
def test_bad_input(argument: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        compare(argument)


def test_a_mixture_is_that_of_its_seed() -> None:
    law, again = mixture(3, 4, 1.0, 0.1, 0.5, 2), mixture(3, 4, 1.0, 0.1, 0.5, 2)
    assert torch.equal(law.means, again.means)
    std = torch.linalg.eigvalsh(law.covariances).sqrt()
    assert 0.1 - 1e-9 <= float(std.min()) <= float(std.max()) <= 0.5 + 1e-9
    assert not torch.equal(law.means, mixture(3, 4, 1.0, 0.1, 0.5, 3).means)
