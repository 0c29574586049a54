"""What the pages say of the code holds: files that they name, choices of the commands, samplers that are others."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest
import torch

import sde_gen as sg
from sde_gen.config.groups import choices
from sde_gen.config.signatures import GROUPS, members
from sde_gen.register import path_of

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text("utf-8") for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}
TWINS = re.findall(r"^\| `(\w+\(.*\))` \| `(\w+\(.*\))` \|$", PAGES["samplers.md"], re.MULTILINE)


def built(text: str) -> sg.GridSampler:
    return eval(text, vars(sg) | {name: getattr(sg, name) for name in sg.samplers.__all__})  # noqa: S307 - our page


@pytest.mark.parametrize(("this", "other"), TWINS, ids=[f"{a} is {b}" for a, b in TWINS])
@pytest.mark.parametrize("p", [sg.VP(), sg.VE()], ids=["VP", "VE"])
def test_who_is_an_instance_of_whom(this: str, other: str, p: sg.Perturbation) -> None:
    mixture = sg.GaussianMixture([0.4, 0.6], [[-1.0], [1.0]], [[[0.2]], [[0.3]]])
    start = p.prior_std * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    for grid in ("lambda", "uniform"):
        a, b = (dataclasses.replace(built(text), steps=9, grid=grid) for text in (this, other))
        if "DEIS" in this and grid == "lambda":  # even noise levels lie too close in t for polynomials in it
            continue
        x, y = (sampler(mixture.model(p), start=start, seed=3).x for sampler in (a, b))
        assert torch.isfinite(x).all()
        assert torch.allclose(x, y, rtol=1e-11, atol=1e-12)


def test_the_page_has_its_table() -> None:
    assert len(TWINS) >= 12


def test_the_tree_has_every_sampler_and_no_other() -> None:
    tree = PAGES["samplers.md"].partition("| this | is |")[0]
    named = set(re.findall(r"\b[A-Z]\w+\b", tree)) & set(sg.samplers.__all__) | {"Auto", "Fitted", "FittedSteps"}
    assert named - {"Langevin"} == set(members("sampler"))


@pytest.mark.parametrize("page", ["maths.md", "samplers.md"])
def test_files_that_a_page_names_are_there(page: str) -> None:
    under = ROOT / "sde_gen" / ("samplers" if page == "samplers.md" else "")
    named = re.findall(r"[\w/]+\.py\b", PAGES[page].replace("sde_gen/samplers/", "").replace("sde_gen/", ""))
    missing = [name for name in named if not (under / name).is_file() and not (ROOT / name).is_file()]
    assert named
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_files_of_the_package_are_where_a_page_says(page: str) -> None:
    if page == "CHANGELOG.md":  # of what was
        return
    named = set(re.findall(r"`(?:sde_gen|conf|tests|benchmarks)/[\w/.]+`", PAGES[page]))
    missing = [name for name in named if "NAME" not in name and not (ROOT / name.strip("`")).exists()]
    assert not missing
    modules = set(re.findall(r"`(sde_gen(?:\.\w+)+)`", PAGES[page]))
    for name in modules:
        module, _, leaf = name.rpartition(".")
        assert path_of(name) or hasattr(importlib.import_module(module), leaf)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_of_a_page_outside_the_site_lead_somewhere(page: str) -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page])]
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert links
    assert not missing


def test_the_commands_page_has_every_choice() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGES["commands.md"], re.MULTILINE))
    assert set(rows) <= set(GROUPS)
    for group, row in rows.items():
        assert set(row.split(", ")) == set(choices(group)) - {"Fitted", "FittedSteps"}
