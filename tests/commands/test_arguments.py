"""Arguments as people write them, and what they are kept from: each test stands for a whole kind of mishap."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

import sde_gen as sg
from sde_gen.compare import main as compare
from sde_gen.config import build, load_config
from sde_gen.config.compose import readable
from sde_gen.config.signatures import members
from sde_gen.errors import ConfigError
from sde_gen.train import run
from tests.commands.helpers import TINY, Command

ROOT = Path(sg.__file__).parents[1]
EXPERIMENT = """# @package _global_
formulations: {VP: {perturbation: {_target_: %s}}}
samplers: {d: {_target_: sde_gen.DDIM}}
budgets: [4]
seeds: [0]
num_samples: 64
orders: false
trajectories: false
"""


@pytest.mark.parametrize("name", sorted(members("sampler")))
def test_every_exported_sampler_is_a_choice(name: str) -> None:
    more = [] if name in ("Auto", "LangevinDynamics") else ["sampler.denoise=false"]
    node = load_config("sample", [f"sampler={name}", *more])
    assert node.sampler["_target_"] == f"sde_gen.{name}"


def test_a_setting_that_no_file_names_is_set_everywhere(tmp_path: Path) -> None:
    assert build(load_config("sample", ["sampler=em", "sampler.eta=0.5"]).sampler) == sg.EulerMaruyama(eta=0.5)
    assert build(load_config("sample", ["sampler=StochasticHeun", "sampler.steps=7"]).sampler) == sg.StochasticHeun(
        steps=7
    )
    assert build(load_config("sample", ["sampler=pc"]).sampler) == sg.PredictorCorrector()
    (tmp_path / "sampler").mkdir()
    (tmp_path / "sampler" / "mine.yaml").write_text("_target_: sde_gen.DDIM\nsteps: 9\n")
    mine = load_config("sample", ["sampler=mine", "sampler.eta=0.5"], config_dir=tmp_path)
    assert build(mine.sampler) == sg.DDIM(steps=9, eta=0.5)
    placed = load_config("compare", ["+sampler@samplers.Mine=heun", "samplers.Mine.denoise=false"])
    assert build(placed.samplers.Mine) == sg.Heun(denoise=False)


@pytest.mark.parametrize(
    "path",
    ["~/x.csv", "data/x (1).csv", "daten/grüße.csv", "a=1/x.csv", "a/#2/x.csv", "it's/x.csv", 'say "x".csv', "a\\b"],
)
def test_paths_are_taken_as_they_are(path: str) -> None:
    assert load_config("train", ["data=csv_file", f"data.path={path}"]).data.path == path


@pytest.mark.parametrize(("given", "expected"), [
    ("[rote Kreise,été]", ["rote Kreise", "été"]), ("['a, b', é ,\"ü\"]", ["a, b", "é", "ü"]), ("[é]", ["é"]),
    ("{my size:[klein,groß]}", {"my size": ["klein", "groß"]}),
])  # fmt: skip
def test_lists_hold_words_of_any_language(given: str, expected: object) -> None:
    (override,) = readable([f"label={given}"])
    assert OverridesParser.create().parse_override(override).value() == expected


def test_a_list_that_is_none() -> None:
    with pytest.raises(ConfigError, match="in two kinds of quotes: 'label=\"\\[é\"'"):
        readable(["label=[é"])
    with pytest.raises(ConfigError, match=r"names before a : within { } may have letters from a to z"):
        readable(["data.ordinal={größe:[a,b]}"])


def test_several_values_are_a_sweep_and_said_so() -> None:
    with pytest.raises(sg.ConfigError, match=r"--multirun .* 'data\.path=\"a,b/x\.csv\"'"):
        load_config("train", ["data=csv_file", "data.path=a,b/x.csv"])
    config = load_config("train", ["data=csv_file", 'data.path="a,b/x.csv"'])
    assert config.data.path == "a,b/x.csv"


def test_a_short_name_leads_to_the_long_one() -> None:
    with pytest.raises(sg.ConfigError, match=r"did you mean trainer\.learning_rate\?"):
        load_config("train", ["trainer.lr=1"])


def test_trust_counts_on_the_command_line_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cd/experiment").mkdir(parents=True)
    file = tmp_path / "cd/experiment/e.yaml"
    file.write_text(EXPERIMENT % "os.system, command: 'touch owned'" + "trust: [os]\n")
    assert compare(["--config-dir", "cd", "experiment=e", "workers=1"]) == 2
    with pytest.raises(sg.ConfigError, match="trust counts on the command line only"):
        load_config("compare", ["experiment=e"], config_dir="cd")
    assert not Path("owned").exists()
    assert list(load_config("compare", ["experiment=e", "trust=[mine]"], config_dir="cd").trust) == ["mine"]


def test_hydra_of_the_program_around_us_stays_as_it_was() -> None:
    with hydra.initialize(config_path=None, version_base="1.3"):
        before = GlobalHydra.instance().hydra
        assert load_config("train", ["sde=ve"]).sde.sigma_max == 50.0
        with pytest.raises(sg.ConfigError):
            load_config("train", ["sde=none"])
        assert GlobalHydra.instance().hydra is before


def test_a_notebook_resumes_as_the_command_line_does(command: Command) -> None:
    run(load_config("train", [*TINY, "run=r"]))
    with pytest.raises(sg.ConfigError, match=r"sde\._target_ was"):
        run(load_config("train", ["resume=r", "sde=ve", "device=cpu"]))
    assert run(load_config("train", ["resume=r", "trainer.steps=6", "device=cpu"]))["step"] == 6


def test_no_training_goes_on_inside_a_checkpoint(trained: Command) -> None:
    place = Path("runs/tiny/checkpoints/step_00000004")
    before = sorted(os.listdir(place))
    result = trained("train", f"resume={place}", "trainer.steps=6")
    assert result.code == 2
    assert f"give its run, resume={Path('runs/tiny').resolve()}" in result.err
    assert sorted(os.listdir(place)) == before


def test_a_comparison_writes_where_it_may_and_knows_it_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"_target_": "sde_gen.data.mixture", "n": 64, "n_test": 64}
    what = {"formulations": {"VP": sg.VP()}, "samplers": {"DDIM": sg.DDIM()}, "data": data, "num_samples": 64}
    made = sg.Comparison(**what, budgets=(4,), seeds=(0,), orders=False, trajectories=False)
    spec = json.loads(json.dumps(made.spec))
    for name in (str(tmp_path / "victim"), "../../up", "..", ".", ""):
        Path("spec.json").write_text(json.dumps({**spec, "name": name}))
        assert compare(["spec=spec.json", "workers=1"]) == 2
        assert "of a folder" in capsys.readouterr().err
    Path("spec.json").write_text(json.dumps(spec))
    Path("taken").write_text("x")
    assert compare(["spec=spec.json", "workers=1", "out=taken"]) == 73
    assert sorted(os.listdir()) == ["spec.json", "taken"], "nothing was computed"


@pytest.mark.parametrize(("content", "message"), [(b"", "cannot be read"), (None, "not finite")])
def test_weights_that_are_none_are_not_imported(command: Command, content: bytes | None, message: str) -> None:
    if content is None:
        torch.save({k: v * float("nan") for k, v in sg.MLP(2, hidden=8, layers=1).state_dict().items()}, "w.pt")
    else:
        Path("w.pt").write_bytes(content)
    result = command("import_weights", "weights=w.pt", *TINY[:5], "run=a")
    assert result.code == 65
    assert message in result.err
    assert not Path("runs").exists()


@pytest.mark.parametrize("spelled", ["\\t", "tab", '"\\t"'])
def test_a_table_separated_by_tabs(command: Command, spelled: str) -> None:
    Path("x.tsv").write_text("a\tb\n" + "".join(f"{i}\t{i * i % 7}\n" for i in range(20)))
    rest = [word for word in TINY if not word.startswith("data")]
    result = command("train", "data=csv_file", "data.path=x.tsv", f"data.delimiter={spelled}", *rest, "run=a")
    assert result.code == 0, result.err


def test_the_version(command: Command) -> None:
    assert command("train", "--version").out == f"sde_gen {sg.__version__}\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_worked_without(tmp_path: Path, closed: str) -> None:
    line = f"'{sys.executable}' -m sde_gen.train --version {closed}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
