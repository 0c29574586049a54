"""`--help`: every setting has its value and words; `python -m sde_gen` names the commands."""

import re
from dataclasses import fields

import pytest

from sde_gen import TrainerSettings
from sde_gen.__main__ import main
from sde_gen.config.commands import COMMANDS, GROUP_WORDS
from sde_gen.config.compose import chosen_groups
from sde_gen.config.help import command_help, overview, sections
from sde_gen.config.signatures import GROUPS, MISSING, defaults, members
from sde_gen.config.words import first_sentence, meanings, summary
from tests.commands.helpers import Command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_has_words(command: str) -> None:
    rows = [row for section in sections(command) for row in section.rows]
    assert rows
    # What an experiment calls its formulations and samplers has no words but those of what it names.
    assert not [row.key for row in rows if not row.words]
    groups = {key.partition("@")[0] for key in chosen_groups(command)} - {"command"}
    assert groups <= set(GROUP_WORDS)


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_has_words_for_itself_and_its_settings(group: str) -> None:
    for target in members(group).values():
        assert summary(target), target
        without = [name for name in defaults(target) if not meanings(target)[name].words]
        assert not without, (target, without)


def test_words_are_those_of_the_code() -> None:
    known = meanings("sde_gen.training.TrainerSettings") or meanings("sde_gen.TrainerSettings")
    assert set(known) == {field.name for field in fields(TrainerSettings)}
    assert known["steps"] == ("whole number", "optimiser steps in all, at least 1.")
    assert known["strategy"].kind == "ddp, fsdp"
    assert known["max_seconds"].kind == "number or null"
    assert meanings("sde_gen.config.schema.SampleConfig")["runs_dir"].words == "folder where runs lie"
    assert meanings("sde_gen.DDIM")["steps"].words.startswith("number of steps >= 1")  # of a base
    assert first_sentence("One :math:`x` of `y`,\n    e.g. 0.5. Two.") == "One x of y, e.g"


def test_help_follows_what_is_chosen_and_shows_types_and_marks(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = command_help("sample", ["sampler=heun", "sampler.steps=7"])
    assert "[heun]" in text
    assert "[uncalibrated]" not in text
    assert re.search(r"^sampler=heun: Heun's method", text, re.MULTILINE)
    assert re.search(r"^  sampler.steps=7 +number of steps >= 1", text, re.MULTILINE)
    assert re.search(r"^  out=null +folder of the results; null: a fresh one in the run", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 110
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    result = command("sample", "--help", "sampler=heunn")
    assert (result.code, "did you mean heun?" in result.err) == (2, True)
    assert MISSING in command_help("train", ["data=image_folder"])  # what has to be given


def test_the_package_lists_its_commands_and_runs_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert shown.strip() == overview()
    for name, about in COMMANDS.items():
        assert f"python -m sde_gen.{name}" in shown
        assert about.does in shown
    assert main(["trian"]) == 2
    capsys.readouterr()
    assert main(["train", "--version"]) == 0
    assert capsys.readouterr().out.startswith("sde_gen ")
