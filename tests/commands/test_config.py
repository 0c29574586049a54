"""The configuration folder: every choice composes and builds, and agrees with what it builds."""

import inspect
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import sde_gen as sg
from sde_gen.config import build, load_config
from sde_gen.config.folder import config_dir
from sde_gen.config.objects import TARGETS
from sde_gen.config.typed import checked
from sde_gen.errors import CheckpointError, ConfigError, MissingInputError
from sde_gen.training import TrainerSettings

CONF = Path(config_dir())
BUILT = ("sde", "objective", "parameterization", "sampler", "network", "data", "features")
CHOICES = [(group, path.stem) for group in BUILT for path in sorted((CONF / group).glob("*.yaml"))]
NAMED = [pair for pair in CHOICES if pair != ("network", "auto")]


def _target(name: str):
    module, _, attribute = name.rpartition(".")
    return getattr(__import__(module, fromlist=[attribute]), attribute)


@pytest.mark.parametrize(("group", "choice"), NAMED)
def test_each_file_names_every_parameter_with_its_default(group: str, choice: str) -> None:
    node = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{choice}.yaml"))
    assert isinstance(node, dict)
    assert node["_target_"] in TARGETS
    parameters = inspect.signature(_target(node["_target_"])).parameters
    assert set(node) - {"_target_"} <= set(parameters)
    # What follows from the data is not asked for.
    assert set(parameters) - set(node) <= {"channels", "features", "num_classes"}
    for name, parameter in parameters.items():
        value = node.get(name, parameter.default)
        if parameter.default is inspect.Parameter.empty:
            assert value == "???"
        elif not isinstance(value, dict) and name not in ("weighting", "nfe"):  # one of several, as the file is named
            assert value == parameter.default or json.loads(json.dumps(parameter.default)) == value, name


@pytest.mark.parametrize(("group", "choice"), [p for p in NAMED if p[0] not in ("data", "features")])
def test_each_choice_builds(group: str, choice: str) -> None:
    name = "sample" if group == "sampler" else "train"
    assert build(load_config(name, [f"{group}={choice}"])[group], where=group) is not None


def test_the_trainers_file_is_the_trainers_settings() -> None:
    node = load_config("train").trainer
    assert tuple(node) == TrainerSettings.names()
    assert TrainerSettings(**node) == TrainerSettings()


def test_objects_have_the_values_asked_for() -> None:
    config = load_config("train", ["sde=ddpm", "sde.steps=100", "sde.schedule=cosine", "parameterization=v"])
    assert build(config.sde) == sg.DDPM(steps=100, schedule="cosine")
    assert build(config.parameterization) == sg.VPrediction()
    pc = build(load_config("sample", ["sampler.steps=7", "sampler.corrector.snr=0.1"]).sampler)
    assert pc == sg.PredictorCorrector(predictor=sg.ReverseDiffusion(), corrector=sg.Langevin(snr=0.1), steps=7)
    assert build(load_config("sample", ["sampler=ddim", "sampler.grid=[1.0,0.5,0.1]"]).sampler).grid.length == 3
    assert build(load_config("sample", ["sampler.corrector=null"]).sampler).corrector is None


def test_load_config_works_in_a_notebook_twice_and_with_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "sde").mkdir()
    (tmp_path / "sde" / "mine.yaml").write_text("defaults: [vp]\nbeta_max: 7.0\n")
    config = sg.load_config("train", ["sde=mine"], config_dir=tmp_path)
    assert build(config.sde) == sg.VP(beta_max=7.0)
    with pytest.raises(ConfigError, match="sde=mine is not a choice"):
        sg.load_config("train", ["sde=mine"])
    with pytest.raises(MissingInputError, match="no folder"):
        sg.load_config("train", config_dir=tmp_path / "none")
    with pytest.raises(ConfigError, match="no configuration named 'trian'"):
        sg.load_config("trian")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sde=vpp", r"sde=vpp is not a choice \(did you mean vp\?\); choose one of cosine, ddpm, edm, flow, ncsn"),
        ("sde.beta_mim=1", r"sde\.beta_mim is not a setting \(did you mean sde\.beta_min\?\)"),
        (
            "network.width=16",
            r"network\.width is a setting of network=unet, not of what is chosen here; add network=unet",
        ),
        ("sde.sigma_max=9", r"sde\.sigma_max is a setting of sde=.*, not of what is chosen here"),
        ("sdee=vp", r"sdee is not a setting \(did you mean sde\?\)"),
        ("+x=1", r"'\+x=1' adds a key"),
        ("++sde.x=1", r"'\+\+sde\.x=1' adds a key"),
        ("sde.beta_min=[", "cannot read the argument"),
    ],
)
def test_load_config_says_what_is_wrong(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("train", [override])


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "os.system", "command": "touch owned"}, "not one of sde_gen's own classes"),
        ({"_target_": "sde_gen.perturbations.VP"}, "not one of sde_gen's own classes"),
        ({"_target_": "sde_gen.VPP"}, r"did you mean sde_gen\.VP\?"),
        ({"_target_": ""}, "not one of"),
        ({"beta_min": 1.0}, "must be a group with a _target_"),
        ("sde_gen.VP", "must be a group with a _target_"),
        ({"_target_": "sde_gen.VP", "_partial_": True}, r"_partial_ is not allowed"),
        ({"_target_": "sde_gen.VP", "_args_": [1]}, r"_args_ is not allowed"),
        ({"_target_": "sde_gen.VP", "beta_mix": 1.0}, r"sde\.beta_mix is not a parameter of VP \(did you mean beta_m"),
        ({"_target_": "sde_gen.VP", "beta_min": "abc"}, r"sde\.beta_min='abc' must be a number"),
        ({"_target_": "sde_gen.VP", "beta_min": True}, r"sde\.beta_min=True must be a number"),
        ({"_target_": "sde_gen.VP", "beta_min": None}, r"sde\.beta_min=null must be a number"),
        ({"_target_": "sde_gen.DDPM", "steps": 10.5}, r"sde\.steps=10\.5 must be a whole number"),
        ({"_target_": "sde_gen.VP", "beta_min": float("nan")}, "finite"),
        ({"_target_": "sde_gen.VP", "beta_min": 30.0}, "must not exceed"),
        ({"_target_": "sde_gen.data.csv_file"}, r"sde\.path is missing"),
    ],
)
def test_build_refuses(node: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(node, where="sde")


def test_interpolations_of_stored_configurations_stay_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "vp")
    with pytest.raises(ConfigError, match=r"\$\{oc\.env:SECRET\}"):
        build({"_target_": "sde_gen.DDPM", "schedule": "${oc.env:SECRET}"}, where="sde")


def test_a_trusted_module_may_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks_xyz.py").write_text("def make(width: int = 3):\n    return width\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "my_networks_xyz.make", "width": 5}
    with pytest.raises(ConfigError, match=r"add trust=\[my_networks_xyz\]"):
        build(node)
    with pytest.raises(CheckpointError):
        build(node, stored=True)
    assert build(node, trust=["my_networks_xyz"]) == 5
    with pytest.raises(ConfigError, match="cannot be imported"):
        build({"_target_": "my_networks_xyz.none"}, trust=["my_networks_xyz"])


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (float, 1, 1.0),
        (int | None, None, None),
        (int | float, 1, 1),
        (tuple[int, ...], [1, 2], (1, 2)),
        (list[str], ["a"], ["a"]),
        (str | Path, "x", "x"),
    ],
)
def test_values_are_converted_as_little_as_possible(annotation: object, value: object, expected: object) -> None:
    result = checked("x", annotation, value)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value"), [(int, 1.0), (int, True), (str, 1), (list[int], "12"), (list[int], [1, "a"]), (bool, 1)]
)
def test_values_of_another_type_are_refused(annotation: object, value: object) -> None:
    with pytest.raises(ConfigError, match="x="):
        checked("x", annotation, value)


@pytest.mark.parametrize(("count", "local_rank", "device"), [(4, 0, "cuda"), (4, 3, "cuda:3"), (1, 3, "cuda:0")])
def test_each_process_of_a_machine_has_its_gpu(
    monkeypatch: pytest.MonkeyPatch, count: int, local_rank: int, device: str
) -> None:
    import torch

    from sde_gen.config.restore import pick_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert pick_device("auto", local_rank) == torch.device(device)
    assert pick_device("cpu", local_rank) == torch.device("cpu")
