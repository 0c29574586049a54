"""The table of runs: what differs, what was found, and no name that becomes markup."""

import csv
import io
import shutil
from pathlib import Path

from PIL import Image

from sde_gen.jobs.reporting import as_csv, as_html, as_latex, as_markdown, flat, table
from tests.commands.helpers import TINY, Command


def test_two_runs_and_what_they_differ_in(command: Command) -> None:
    assert command("train", *TINY, "run=a").code == 0
    assert command("train", *TINY, "run=b", "sde=ve", "seed=3").code == 0
    quick = ("sampler=ddim", "sampler.steps=2", "num_samples=20", "likelihood=none", "metrics=[energy_distance]")
    for out in ("", "again"):
        assert command("evaluate", "run=a", *quick, *([f"seed={len(out)}"] if out else [])).code == 0
    Path("runs/broken/checkpoints/step_00000001").mkdir(parents=True)
    result = command("report", "out=r")
    assert result.code == 0, result.err
    assert "left out: " in result.out
    with Path("r/runs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["run"] for row in rows] == ["a", "b"]
    assert [row["sde"] for row in rows] == ["sde_gen.VP", "sde_gen.VE"]
    assert [row["seed"] for row in rows] == ["0", "3"]
    assert "network.hidden" not in rows[0], "alike in both"
    assert [bool(row["energy_distance"]) for row in rows] == [True, False]
    assert float(rows[0]["held_out_loss"]) > 0
    for ending in ("md", "tex", "html"):
        assert "energy" in Path(f"r/runs.{ending}").read_text()
    with Image.open("r/runs.png") as picture:
        assert picture.width >= 600
    shutil.move("runs/a", "elsewhere")
    assert command("report", "runs=[./elsewhere,b]").code == 0
    assert len(list(Path("runs/reports").iterdir())) == 1


def test_names_are_text_in_every_form() -> None:
    entries = [
        {"name": f"<b>|{i}&_", "settings": flat({"sde": {"_target_": "x"}, "n": i}), "results": {"m": (i / 3, 0.01)}}
        for i in range(2)
    ]
    header, rows = table(entries)
    assert header == ["run", "n", "m"]
    assert rows[1] == ["<b>|1&_", "1", (1 / 3, 0.01)]
    assert list(csv.reader(io.StringIO(as_csv(header, rows))))[2] == ["<b>|1&_", "1", str(1 / 3), "0.01"]
    assert "\\<b\\>\\|1&\\_ | 1 | 0.3333 ± 0.01 |" in as_markdown(header, rows)
    assert "<b>|1\\&\\_ & 1 & 0.3333 $\\pm$ 0.01 \\\\" in as_latex(header, rows)
    assert "<td>&lt;b&gt;|1&amp;_</td>" in as_html(header, rows)
