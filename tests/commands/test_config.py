"""The configuration folder: every choice composes and builds, and agrees with what it builds."""

import inspect
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import sde_gen as sg
from sde_gen.config import build, load_config
from sde_gen.config.folder import config_dir
from sde_gen.config.groups import choices
from sde_gen.config.objects import describe, plain
from sde_gen.config.schema import CompareSettings, EvaluateConfig, ImportConfig, SampleConfig, TrainConfig
from sde_gen.config.signatures import GROUPS, defaults, members, targets
from sde_gen.config.typed import checked, typed
from sde_gen.errors import CheckpointError, ConfigError, MissingInputError
from sde_gen.guidance.clipped import Bounded
from sde_gen.guidance.extrapolation import Extrapolated
from sde_gen.training import TrainerSettings

CONF = Path(config_dir())
SETTINGS = (TrainConfig, ImportConfig, SampleConfig, EvaluateConfig, CompareSettings, TrainerSettings, sg.Comparison)
CHOSEN = ("sde", "objective", "parameterization", "sampler", "network", "data", "features")
#: Those of the interop are built from what is stored, and need its libraries.
CHOICES = [
    (group, choice)
    for group in CHOSEN
    for choice in sorted({*choices(group), *(n for n, t in members(group).items() if ".interop." not in t)})
]
FROM_DATA = {"channels", "features", "num_classes", "dimensions", "model", "trust"}


def _target(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def _told(target: Any) -> dict[str, Any]:
    """Parameters and defaults as Python tells them, as plain data."""
    if is_dataclass(target):
        given = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(target)
                 if f.init}  # fmt: skip
    else:
        given = {name: p.default for name, p in inspect.signature(target).parameters.items()}
    missing = (MISSING, inspect.Parameter.empty)
    return {name: "???" if any(v is m for m in missing) else describe(v, name) for name, v in given.items()}


@pytest.mark.parametrize("name", [*sorted(targets()), *(f"{cls.__module__}.{cls.__qualname__}" for cls in SETTINGS)])
def test_what_is_read_from_the_source_is_what_python_says(name: str) -> None:
    read, told = defaults(name), _told(_target(name))
    left_out = told.keys() - read.keys()
    assert left_out <= FROM_DATA, "only what the program knows is not asked for"
    assert read == {key: value for key, value in told.items() if key not in left_out}


@pytest.mark.parametrize("group", GROUPS)
def test_the_classes_of_a_group_are_what_python_says(group: str) -> None:
    """Every exported class that can be made and belongs to the group is a choice of it, by being exported."""
    rooms, (kind, *_) = GROUPS[group]
    modules = [import_module(f"sde_gen.{room}") for room in rooms]
    exported = {name: getattr(module, name) for module in modules for name in module.__all__}
    if kind.startswith("-> "):
        made = {name: value for name, value in exported.items() if inspect.isfunction(value)}
        expected = {name for name, value in made.items() if value.__annotations__["return"] is sg.data.Dataset}
    else:
        bases = {"Module": torch.nn.Module, "Objective": sg.DenoisingScoreMatching, "Features": sg.metrics.Features,
                 "Extrapolated": (Extrapolated, Bounded)}  # fmt: skip
        base: Any = bases.get(kind) or getattr(sg, kind)
        made = {name: value for name, value in exported.items() if inspect.isclass(value)}
        expected = {name for name, value in made.items() if issubclass(value, base) and not inspect.isabstract(value)}
    assert {name for name in members(group) if name in made} == expected - {"Chain"}  # whose nodes others give


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_a_file_states_only_what_differs_from_the_signature(path: Path) -> None:
    node: Any = OmegaConf.to_container(OmegaConf.load(path))
    if "_target_" in node and node["_target_"] != "auto":
        assert node["_target_"] in targets()
        usual = defaults(node["_target_"])
        assert [key for key in node if key != "_target_" and usual[key] == node[key]] == []


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_each_choice_composes_and_is_complete(group: str, choice: str) -> None:
    name = {"sampler": "sample", "features": "evaluate"}.get(group, "train")
    node = plain_or_missing(load_config(name, [f"{group}={choice}"])[group])
    if node["_target_"] != "auto":
        assert node.keys() - {"_target_"} == defaults(node["_target_"]).keys()
    needy = ("auto", "sde_gen.Auto", "sde_gen.Fitted", "sde_gen.FittedSteps", "sde_gen.metrics.efficientnet_lite0",
             "sde_gen.metrics.inception", "sde_gen.metrics.dinov2")  # fmt: skip
    if "???" not in node.values() and group != "data" and node["_target_"] not in needy:
        assert build(node, where=group) is not None


def plain_or_missing(node: Any) -> dict[str, Any]:
    return dict(OmegaConf.to_container(node))


@pytest.mark.parametrize(
    ("name", "cls"), [("train", TrainConfig), ("sample", SampleConfig), ("evaluate", EvaluateConfig)]
)
def test_a_command_has_the_settings_of_its_dataclass(name: str, cls: type) -> None:
    config = plain(load_config(name))
    assert config.pop("_arguments_") == []
    made = typed(cls, config)
    assert all(getattr(made, f.name) == f.default for f in fields(cls) if f.default is not MISSING)


def test_the_trainers_file_is_the_trainers_settings() -> None:
    node = load_config("train").trainer
    assert tuple(node) == tuple(f.name for f in fields(TrainerSettings))
    assert TrainerSettings(**node) == TrainerSettings()


def test_objects_have_the_values_asked_for() -> None:
    config = load_config("train", ["sde=ddpm", "sde.steps=100", "sde.schedule=cosine", "parameterization=v"])
    assert build(config.sde) == sg.DDPM(steps=100, schedule="cosine")
    assert build(config.parameterization) == sg.VPrediction()
    pc = build(load_config("sample", ["sampler=pc", "sampler.steps=7", "sampler.corrector.snr=0.1"]).sampler)
    assert pc == sg.PredictorCorrector(predictor=sg.ReverseDiffusion(), corrector=sg.Langevin(snr=0.1), steps=7)
    assert build(load_config("sample", ["sampler=ddim", "sampler.grid=[1.0,0.5,0.1]"]).sampler).grid.length == 3
    assert build(load_config("sample", ["sampler=pc", "sampler.corrector=null"]).sampler).corrector is None


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
        (
            "sde=vpp",
            r"sde=vpp is not a choice \(did you mean vp\?\); choose one of cosine, ddpm, edm, flow",
        ),
        ("sde.beta_mim=1", r"sde\.beta_mim is not a setting \(did you mean sde\.beta_min\?\)"),
        (
            "network.width=16",
            r"network\.width is a setting of network=ddpmpp, dit, edm2, ncsnpp, unet, not of what .* add network=unet",
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
    from sde_gen.config.restore import pick_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert pick_device("auto", local_rank) == torch.device(device)
    assert pick_device("cpu", local_rank) == torch.device("cpu")
