"""`python -m sde_gen.compare`: one command, one report, any cell again, bad input."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import sde_gen
from sde_gen.compare import main
from sde_gen.comparison import Comparison
from sde_gen.config import load_config
from sde_gen.config.folder import config_dir
from tests.commands.helpers import Result

ROOT = str(Path(sde_gen.__file__).parents[1])
FILES = (Path(config_dir()) / "experiment").glob("*.yaml")
EXPERIMENTS = sorted(path.stem for path in FILES if "\nformulations:" in path.read_text("utf-8"))
TINY = (
    "data.n=64", "data.n_test=64", "num_samples=64", "budgets=[3,6]", "seeds=[0,1]", "workers=1", "orders=false",
    "trajectories=false", "likelihood=0", "measures=[energy_distance]",
    "~formulations.DDPM", "~formulations.subVP", "~samplers.ODE", "~samplers.PC",
    "~samplers.Heun", "~samplers.Ancestral", "~samplers.SDE_DPMpp2M", "~samplers.Reverse", "~samplers.DPMpp3M",
    "~samplers.Auto", "findings=[]",
)  # fmt: skip
Compare = Callable[..., Result]


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Compare:
    """`compare("experiment=...", ...)` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        return Result(main(list(arguments)), *capsys.readouterr())

    return run


def test_one_command_one_report_and_any_cell_again(compare: Compare, tmp_path: Path) -> None:
    done = compare("experiment=oracle_2d", *TINY, "name=first")
    assert done.code == 0, done.err
    home = tmp_path / "runs/comparisons/first"
    assert sorted(p.name for p in home.iterdir() if p.is_file()) == [
        "comparison.json", "report.html", "report.md", "rows.csv", "rows.json",
    ]  # fmt: skip
    with (home / "rows.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 3 * 2 * 2
    command = shlex.split(rows[7]["command"])
    assert command[:3] == ["python", "-m", "sde_gen.compare"]
    assert not any(word.startswith("workers") for word in command)
    again = compare(*command[3:])
    assert again.code == 0, again.err
    assert "equal to what the cache held" in again.out
    assert json.loads(again.out[: again.out.index("}") + 1])["energy_distance"] == float(rows[7]["energy_distance"])


def test_a_report_made_in_python_names_its_own_description(compare: Compare, tmp_path: Path) -> None:
    config = load_config("compare", ["experiment=oracle_2d", *TINY])
    from sde_gen.config.objects import plain

    settings = {k: v for k, v in plain(config).items() if k in Comparison.__dataclass_fields__}
    results = Comparison(**settings).run("cache")
    results.report("my report")
    with (tmp_path / "my report" / "rows.csv").open(newline="") as stream:
        row = next(csv.DictReader(stream))
    command = shlex.split(row["command"])
    assert command[3:5] == ["spec=my report/comparison.json", "cache=cache"]
    again = compare(*command[3:])
    assert again.code == 0, again.err
    assert "equal to what the cache held" in again.out
    # The report that this command makes names the same.
    whole = compare(*command[3:5], "out=again")
    assert whole.code == 0, whole.err
    with (tmp_path / "again" / "rows.csv").open(newline="") as stream:
        assert shlex.split(next(csv.DictReader(stream))["command"]) == command


def test_one_more_sampler_from_the_command_line(compare: Compare, tmp_path: Path) -> None:
    done = compare("experiment=oracle_2d", *TINY, "+sampler@samplers.Mine=dpmpp3m", "seeds=[0]", "budgets=[3]")
    assert done.code == 0, done.err
    with (tmp_path / "runs/comparisons/oracle_2d/rows.csv").open(newline="") as stream:
        row = next(r for r in csv.DictReader(stream) if r["sampler"] == "Mine")
    assert row["status"] == "ok"
    again = compare(*shlex.split(row["command"])[3:])
    assert "equal to what the cache held" in again.out


def test_an_experiment_of_ones_own_is_named_in_the_commands(compare: Compare, tmp_path: Path) -> None:
    home = tmp_path / "my experiments" / "experiment"
    home.mkdir(parents=True)
    (home / "mine.yaml").write_text("# @package _global_\ndefaults: [oracle_2d]\nname: mine\nseeds: [0]\n")
    done = compare("--config-dir", "my experiments", "experiment=mine", *(t for t in TINY if "seeds" not in t))
    assert done.code == 0, done.err
    with (tmp_path / "runs/comparisons/mine/rows.csv").open(newline="") as stream:
        command = shlex.split(next(csv.DictReader(stream))["command"])
    again = compare(*command[3:])
    assert again.code == 0, again.err
    assert "equal to what the cache held" in again.out


def test_parts_in_a_sweep_then_the_report(compare: Compare, tmp_path: Path) -> None:
    swept = compare("--multirun", "experiment=oracle_2d", *TINY, "part=1,2,3", "parts=3")
    assert swept.code == 0, swept.err
    assert swept.out.count("part done") == 3
    assert not (tmp_path / "runs/comparisons/oracle_2d").exists()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs/comparisons/.cache/cells").glob("*.json")}
    assert len(before) == 24 + 2
    done = compare("experiment=oracle_2d", *TINY)
    assert done.code == 0, done.err
    assert "26 of 26 cells (26 from the cache)" in done.out
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert (tmp_path / "runs/comparisons/oracle_2d/report.html").is_file()


LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", ("hydra.launcher.n_jobs=2",)),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", ("hydra.launcher.timeout_min=5",)),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", ("hydra.launcher.cpus_per_task=8",
                       "hydra.launcher.timeout_min=240", "hydra.launcher.partition=main")),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_parts_in_processes_of_a_launcher(launcher: str, tmp_path: Path) -> None:
    plugin, settings = LAUNCHERS[launcher]
    pytest.importorskip(plugin)
    stand_in = _stand_in_for_slurm(tmp_path / "bin")
    parts = ("--multirun", "part=1,2", "parts=2", f"hydra/launcher={launcher}", *settings)
    with _python(tmp_path, *parts, "experiment=oracle_2d", *TINY, "workers=2", path=stand_in) as process:
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    cells = list((tmp_path / "runs/comparisons/.cache/cells").glob("*.json"))
    assert len(cells) == 26
    assert {json.loads(path.read_text())["result"]["status"] for path in cells} == {"ok"}
    if launcher == "submitit_slurm":
        job = (stand_in / "submitted").read_text()
        for line in ("--array=0-1%", "--cpus-per-task=8", "--time=240", "--partition=main", "--ntasks-per-node=1"):
            assert f"\n#SBATCH {line}" in job
        assert f"{sys.executable} -u -m submitit.core._submit {tmp_path}/runs/.sweeps/" in job


def _stand_in_for_slurm(folder: Path) -> Path:
    """The commands of SLURM that submitit uses: an array's tasks run here, one after the other."""
    folder.mkdir()
    scripts = {
        "sbatch": """
cp "${@: -1}" HERE/submitted
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' HERE/submitted)
(for i in $(seq 0 $last); do
  export SLURM_JOB_ID=$((7 + i)) SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$i SLURM_JOB_NODELIST=here \\
    SLURM_NTASKS=1 SLURM_LOCALID=0 SLURM_PROCID=0 SLURM_NODEID=0 SLURM_JOB_NUM_NODES=1
  bash HERE/submitted; echo "7_$i|COMPLETED|here" >> HERE/done
done) > HERE/log 2>&1 < /dev/null &
echo "Submitted batch job 7" """,
        "srun": """
while [[ "$1" == -* ]]; do case "$1" in --output | --error) shift 2 ;; *) shift ;; esac; done
exec "$@" """,
        "sacct": 'echo "JobID|State|NodeList"; cat HERE/done 2> /dev/null; exit 0',
        "scancel": "",
    }
    for name, script in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{script}\n".replace("HERE", str(folder)))
        path.chmod(0o755)
    return folder


def test_a_script_that_cannot_start_workers_is_told_why(tmp_path: Path) -> None:
    # Without the guard a child runs the script again, and ends.
    script = tmp_path / "script.py"
    script.write_text("from tests.comparison.helpers import small\nsmall().run('cache', workers=2)\n")
    environment = {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip
    assert done.returncode == 1
    assert "the worker processes end before they begin; in a script, call run() under" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "cache" / "cells").glob("*.json"))


def _python(folder: Path, *arguments: str, path: Path | None = None) -> "subprocess.Popen[str]":
    """The command in a process group of its own, with the programs in `path` before all others."""
    packages = os.pathsep.join([ROOT, *(p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p)])
    programs = os.environ["PATH"] if path is None else f"{path}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": packages, "PATH": programs, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "sde_gen.compare", *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def test_killed_at_any_point_it_loses_at_most_the_cell_in_hand(tmp_path: Path, compare: Compare) -> None:
    cells = tmp_path / "runs/comparisons/.cache/cells"
    arguments = ("experiment=oracle_2d", *TINY, "seeds=[0,1,2,3]", "budgets=[30,60]")
    with _python(tmp_path, *arguments) as process:
        until = time.monotonic() + 120
        while time.monotonic() < until and process.poll() is None and len(list(cells.glob("[!.]*.json"))) < 4:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, (out, err)
    before = {p.name: p.stat().st_mtime_ns for p in cells.glob("[!.]*.json")}
    assert 4 <= len(before) < 52
    assert all(json.loads((cells / name).read_text())["result"]["status"] == "ok" for name in before)
    done = compare(*arguments)
    assert done.code == 0, done.err
    assert f"52 of 52 cells ({len(before)} from the cache)" in done.out
    after = {p.name: p.stat().st_mtime_ns for p in cells.glob("[!.]*.json")}
    assert {name: after[name] for name in before} == before
    assert len(after) == 52


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_can_be_planned(experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    from sde_gen.config.objects import plain

    data = [] if "fashion" not in experiment else ["data=digits"]  # 70,000 images that may not be here
    quick = ["seeds=[0]"]
    for name, node in load_config("compare", [f"experiment={experiment}"]).samplers.items():
        if node.get("steps"):
            quick.append(f"samplers.{name}.steps=4")
    config = plain(load_config("compare", [f"experiment={experiment}", *data, *quick]))
    comparison = Comparison(**{k: v for k, v in config.items() if k in Comparison.__dataclass_fields__})
    kinds = {cell.kind for cell in comparison.cells()}
    assert {"samples", "real"} < kinds
    assert comparison.question.endswith("?")
    assert len(comparison.findings) >= 5, "what should come out is stated beforehand"
    for finding in comparison.findings:  # and names what there is
        for selection in (finding.better, finding.than, finding.equal, finding.to, finding.below, finding.order_of):
            for key, value in (selection or {}).items():
                there = {"formulation": comparison.formulations, "sampler": comparison.samplers}
                assert value in there.get(key, comparison.budgets), (finding.claim, key, value)


BAD = [
    (["experiment=oracel_2d"], 2, "did you mean oracle_2d?"),
    (["experiment=fashion_mnist"], 2, "is for python -m sde_gen.train experiment=fashion_mnist"),
    (["~experiment"], 2, "formulations must map names to objects"),
    (["experiment=null"], 2, "or leave it out for oracle_2d (~experiment for none)"),
    (["data=null"], 2, "or leave it out for mixture"),
    (["network=null"], 2, "or leave it out for auto"),
    (["trainer=null"], 2, "choose one of default"),
    (["sde=null"], 2, "sde is not a setting of its own here; write sde@formulations.VP.perturbation=CHOICE"),
    (["sde=vp"], 2, "sde is not a setting of its own here; write sde@formulations.VP.perturbation=CHOICE"),
    (["sampler=ddim"], 2, "sampler is not a setting of its own here; write sampler@samplers."),
    (
        ["sampler@samplers.DDIM=null"],
        2,
        "samplers.DDIM=null is not a choice; choose one of Fitted, FittedSteps",
    ),
    (["samplers.DDIM=null"], 2, "samplers.DDIM must be a sampler, got None"),
    (["formulations.VP=null"], 2, "formulations.VP must be a Formulation"),
    (["~formulations.VP.perturbation"], 2, "formulations.VP must be a Formulation"),
    (["findings=null"], 2, "findings=null must be a list"),
    (["mode=orcale"], 2, "did you mean 'oracle'"),
    (["budgets=[x]"], 2, "budgets=['x'] must be a list, each entry a whole number"),
    (["seeds=[]"], 2, "at least one seed"),
    (["measures=[fid]"], 2, "measures must be one of"),
    (["samplers.DDIM.eat=1"], 2, "did you mean samplers.DDIM.eta"),
    (["formulations.VP.perturbation.beta_min=-1"], 2, "beta_min"),
    (["formulations.VP.perturbation._target_=os.system"], 2, "not one of sde_gen's own classes"),
    (["workers=0"], 2, "workers must be a whole number, at least 1, got 0"),
    (["workers=many"], 2, "workers='many' must be"),
    (["part=1"], 2, "part=K and parts=N go together"),
    (["part=3", "parts=2", "workers=1"], 2, "part=3 must be between 1 and parts=2"),
    (["cell=abc"], 2, "cell=abc names no cell of this comparison"),
    (["cell=12e4567890123456"], 2, "cell=12e4567890123456 names no cell of this comparison"),
    (["mode=network", "network=unet"], 2, "use network=mlp"),
    (["mode=shared", "checkpoint=nowhere"], 66, "no checkpoint at nowhere"),
    (["spec=nowhere.json"], 66, "cannot read spec=nowhere.json"),
    (["spec=pipe"], 66, "cannot read spec=pipe"),
    (["experiment=oracle_2d", "data=csv_file", "data.path=none.csv"], 66, "none.csv"),
    (["cache=file/cache", "workers=1"], 73, "cannot create"),
    (["device=tpu"], 2, "use auto, cpu, cuda"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), BAD, ids=lambda v: str(v)[:50])
def test_bad_input(arguments: list[str], code: int, words: str, compare: Compare, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")  # which nobody ever writes to
    tiny = [] if "experiment" in arguments[0] else TINY
    done = compare(*tiny, *arguments)
    assert done.code == code, (done.out, done.err)
    assert words in done.err
    assert done.err.count("\n") == 1, "one sentence"
    assert "Traceback" not in done.err
