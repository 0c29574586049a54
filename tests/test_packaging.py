"""The package as installed: configuration found, light to import, metadata that agrees with itself."""

import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sde_gen
from sde_gen.config import folder as _conf
from sde_gen.errors import MissingInputError

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
HATCH = PYPROJECT["tool"]["hatch"]["build"]["targets"]
COMMANDS = ("train", "sample", "evaluate", "compare", "report", "import_weights")


def _python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A new interpreter that finds this very package, whatever folder it runs in."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
    )


# ---- where the configuration is


def test_config_dir_is_absolute_and_holds_both_commands() -> None:
    folder = Path(_conf.config_dir())
    assert folder.is_absolute()
    for command in COMMANDS:
        assert (folder / f"{command}.yaml").is_file()


def _fake_package(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = root / "site-packages" / "sde_gen"
    package.mkdir(parents=True)
    monkeypatch.setattr(_conf, "__file__", str(package / "config" / "folder.py"))
    return package


def _put_conf(folder: Path) -> None:
    folder.mkdir()
    (folder / "train.yaml").touch()


def test_config_dir_beside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = _fake_package(tmp_path, monkeypatch)
    _put_conf(package.parent / "conf")
    assert _conf.config_dir() == str(package.parent.resolve() / "conf")


def test_config_dir_inside_the_package_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = _fake_package(tmp_path, monkeypatch)
    _put_conf(package.parent / "conf")
    _put_conf(package / "conf")
    assert _conf.config_dir() == str(package.resolve() / "conf")


def test_config_dir_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = _fake_package(tmp_path, monkeypatch)
    (package.parent / "conf").mkdir()  # somebody else's: it has no train.yaml
    with pytest.raises(MissingInputError) as caught:
        _conf.config_dir()
    assert str(package.resolve() / "conf") in str(caught.value)
    assert str(package.parent.resolve() / "conf") in str(caught.value)


# ---- what the distributions carry


def test_package_is_marked_as_typed() -> None:
    assert sde_gen.__file__ is not None
    assert (Path(sde_gen.__file__).parent / "py.typed").is_file()


def test_wheel_and_sdist_carry_the_configuration() -> None:
    assert HATCH["wheel"]["force-include"] == {"conf": "sde_gen/conf"}
    assert {"/sde_gen", "/conf", "/tests"} <= set(HATCH["sdist"]["include"])
    stray = list((ROOT / "sde_gen").rglob("*.yaml"))
    assert not stray, f"configuration belongs in conf/, not in the package: {stray}"


def test_files_named_by_the_metadata_exist() -> None:
    names = [PROJECT["readme"], *PROJECT["license-files"]]
    names += [name.lstrip("/") for name in HATCH["sdist"]["include"]]
    assert [name for name in names if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("script", sorted(PROJECT["scripts"]))
def test_console_script_has_a_main(script: str) -> None:
    module, _, function = PROJECT["scripts"][script].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def _direct_requirements() -> Iterator[Requirement]:
    optional = PROJECT["optional-dependencies"]
    for lines in (PROJECT["dependencies"], *optional.values()):
        for line in lines:
            requirement = Requirement(line)
            if canonicalize_name(requirement.name) != "sde-gen":
                yield requirement


def test_every_direct_dependency_has_an_exact_version_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    versions = {}
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "==", f"{pin} is not exact"
        versions[canonicalize_name(pin.name)] = specifier.version
    direct = {canonicalize_name(requirement.name): requirement for requirement in _direct_requirements()}
    assert set(versions) == set(direct)
    outside = [str(r) for name, r in direct.items() if not r.specifier.contains(versions[name])]
    assert outside == []


def test_self_referring_extras_exist() -> None:
    extras = PROJECT["optional-dependencies"]
    for lines in extras.values():
        for requirement in map(Requirement, lines):
            if canonicalize_name(requirement.name) == "sde-gen":
                assert requirement.extras <= set(extras)


# ---- what is imported when


def test_import_does_not_load_what_it_may_not_need(tmp_path: Path) -> None:
    heavy = ("torchdiffeq", "scipy", "sklearn", "matplotlib", "hydra", "omegaconf", "PIL", "safetensors")
    code = f"import sys, sde_gen; print([name for name in {heavy!r} if name in sys.modules])"
    done = _python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_the_groups_and_does_not_import_torch(command: str, tmp_path: Path) -> None:
    done = _python("-X", "importtime", "-m", f"sde_gen.{command}", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    imported = set(re.findall(r"\|\s+([\w.]+)$", done.stderr, flags=re.MULTILINE))
    assert "sde_gen.errors" in imported  # the pattern reads what importtime writes
    assert not imported & {"torch", "scipy", "sklearn", "matplotlib"}
    groups = {"train": ("sde", "network", "objective", "data"), "sample": ("sde", "sampler")}
    groups["compare"] = ("experiment", "sde", "sampler", "network", "data")
    groups |= {"evaluate": ("sde", "sampler", "features"), "import_weights": ("sde", "data", "network"), "report": ()}
    for group in groups[command]:
        assert re.search(rf"^\W*{group}\b", done.stdout, flags=re.MULTILINE), f"--help does not list {group}"
    assert list(tmp_path.iterdir()) == []  # and writes nothing
