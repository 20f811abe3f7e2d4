"""The command of a run, as a person would type it, whatever began the interpreter."""

from __future__ import annotations

import shlex

import pytest

from lora_ga_cli.report.html.command import command_of, is_sweep


def manifest(*command: str) -> dict[str, object]:
    return {"provenance": {"command": list(command)}}


@pytest.mark.parametrize(
    "before",
    [
        ["/venv/bin/python", "/venv/bin/loraga"],
        ["loraga"],
        ["python", "-m", "lora_ga_cli"],
        ["/venv/bin/python", "-u", "-m", "lora_ga_cli"],
        ["python", "/src/lora_ga_cli/__main__.py"],
    ],
    ids=" ".join,
)
def test_what_runs_loraga_is_left_out(before: list[str]) -> None:
    assert command_of(manifest(*before, "train", "rank=4")) == "loraga train rank=4"


@pytest.mark.parametrize("word", ["dataset.prompt=Q: {q}", "name=it's", "a=$(rm -rf x)", "b=`x`", "", "c=\n"])
def test_words_are_quoted_for_a_shell(word: str) -> None:
    text = command_of(manifest("loraga", "train", word))
    assert shlex.split(text) == ["loraga", "train", word]


def test_another_program_is_shown_as_it_was_called() -> None:
    assert command_of(manifest("python", "mine.py", "a b")) == "python mine.py 'a b'"


@pytest.mark.parametrize("stored", [{}, {"provenance": {}}, {"provenance": {"command": None}}])
def test_without_a_command_there_is_none(stored: dict[str, object]) -> None:
    assert command_of(stored) == ""


def test_a_sweep_is_told_by_its_flag() -> None:
    assert is_sweep(manifest("python", "-m", "lora_ga_cli", "train", "-m", "rank=4,8"))
    assert is_sweep(manifest("loraga", "train", "--multirun", "rank=4,8"))
    assert not is_sweep(manifest("python", "-m", "lora_ga_cli", "train", "rank=4"))
