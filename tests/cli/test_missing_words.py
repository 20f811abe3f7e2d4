"""A command without what it needs, or with a run folder in the place of a recipe: what is wrong, and what to type."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import typer

from lora_ga_cli.cli.app import app, main

COMMANDS = typer.main.get_command(app)


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(words) == 2
    return [" ".join(text.split()) for text in capsys.readouterr().err.split("error ")[1:]]


def required() -> list[list[str]]:
    """The words of every command that has an argument without which it does nothing."""
    found = []
    for name, command in COMMANDS.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        for words, item in [([name], command)] if inner is None else [([name, key], inner[key]) for key in inner]:
            if any(parameter.required for parameter in item.params):
                found.append(words)
    return found


def test_commands_with_a_required_argument_are_found() -> None:
    assert ["export"] in required()
    assert ["recipes", "show"] in required()


@pytest.mark.parametrize("words", required(), ids=" ".join)
def test_a_missing_argument_is_one_line_with_an_example(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = error_of(capsys, *words)
    assert line.startswith("command line: ")
    assert " is missing (loraga " + " ".join(words) + " " in line


def test_the_second_argument_may_be_the_missing_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "push", "runs/mine")[0].startswith("command line: ORG/NAME is missing")


@pytest.mark.parametrize("command", ["train", "init", "estimate-grad"])
class TestInThePlaceOfARecipe:
    def test_a_run_answers_with_the_command_that_goes_on(
        self, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        began = ["/usr/bin/loraga", "train", "recipe=quickstart", "name=a b"]
        manifest = {"provenance": {"command": began}, "working_folder": {"path": str(Path.cwd())}}
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        (line,) = error_of(capsys, command, str(tmp_path))
        assert line.startswith(f"command line: {tmp_path} is a run, and {command} takes a recipe and options")
        assert shlex.join(["loraga", *began[1:]]) in line

    def test_a_run_that_began_elsewhere_has_its_folder(
        self, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        manifest = {
            "provenance": {"command": ["loraga", "train", "-m", "rank=1,2"]},
            "working_folder": {"path": "/w x"},
        }
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        (line,) = error_of(capsys, command, str(tmp_path))
        assert "the command that began its sweep" in line
        assert "cd '/w x' && loraga train -m rank=1,2" in line

    def test_a_damaged_run_is_named_all_the_same(
        self, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "manifest.json").write_text("[1]")
        assert "the command that began it, given again" in error_of(capsys, command, str(tmp_path))[0]

    def test_another_folder_and_a_recipe(
        self, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (line,) = error_of(capsys, command, str(tmp_path))
        assert f"{tmp_path} is a folder" in line
        assert f"loraga {command} recipe=NAME" in line
        assert error_of(capsys, command, "quickstart") == [
            f"command line: quickstart is a recipe (loraga {command} recipe=quickstart)"
        ]

    def test_a_path_at_which_there_is_nothing(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        (line,) = error_of(capsys, command, "runs/gone")
        assert line.startswith("command line: runs/gone is a path at which there is nothing, and ")

    def test_other_faults_are_reported_too(
        self, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first, second = error_of(capsys, command, str(tmp_path), "rnk=4")
        assert "is a folder" in first
        assert "no option rnk" in second
