"""Help, version and completion are instant: nothing heavy is imported for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from lora_ga_cli import __version__
from lora_ga_cli.cli.app import app, main
from lora_ga_cli.config.listing import list_options
from tests.config import lay_out

HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate")
COMMANDS = (
    "estimate-grad",
    "init",
    "train",
    "watch",
    "eval",
    "chat",
    "inspect",
    "merge",
    "export",
    "push",
    "convert",
    "report",
    "reproduce",
    "env",
    "recipes",
    "cache",
)
SCRIPT = """
import json, sys
from lora_ga_cli.cli.app import app, main
code = main(json.loads(sys.argv[1]))
print(json.dumps({"code": code, "modules": sorted({name.split(".")[0] for name in sys.modules})}), file=sys.stderr)
"""
COMPLETION = "from lora_ga_cli.config.completion import candidates; code = candidates([], sys.argv[1])"


def run_apart(*arguments: str) -> tuple[str, int, set[str]]:
    """Runs a command line in a process of its own: what it printed, its exit code, the packages it imported."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    *errors, last = done.stderr.strip().splitlines()
    report = json.loads(last)
    return done.stdout + "\n".join(errors), report["code"], set(report["modules"])


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    _, code, modules = run_apart(*arguments)
    assert code == 0
    assert modules.isdisjoint({*HEAVY, "hydra", "omegaconf", "yaml"})


@pytest.mark.parametrize("arguments", [["recipes", "list"], ["recipes", "options"]], ids=" ".join)
def test_recipes_and_options_are_listed_without_loading_a_library_of_models(arguments: list[str]) -> None:
    list_options()  # writes the cache
    _, code, modules = run_apart(*arguments)
    assert code == 0
    assert modules.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "rcipe=quickstart", "rnk=3", "trainer.learning_rate=fast"],
        ["estimate-grad", "recipe=quickstart", "trainer.gradient_checkpointing_every=2"],
    ],
    ids=" ".join,
)
def test_wrong_input_is_found_before_any_model_library_is_loaded(arguments: list[str]) -> None:
    _, code, modules = run_apart(*arguments)
    assert code == 2
    assert modules.isdisjoint(HEAVY)


def test_help_names_every_command_and_a_first_thing_to_try(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in COMMANDS)
    assert "loraga train recipe=quickstart" in printed


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_says_what_it_does(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert len(capsys.readouterr().out.split()) > 20


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["train", "-h"], ["nope"]])
def test_the_program_is_called_loraga(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments)
    printed = capsys.readouterr()
    assert "Usage: loraga" in printed.out + printed.err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"loraga {__version__}\n"


def test_without_a_command_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    printed = capsys.readouterr()
    assert "train" in printed.out + printed.err


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("loraga train recipe=qu", "recipe=quickstart"),
        ("loraga eval --config-dir mine method=mi", "method=mine"),
        ("loraga recipes show quick", "quickstart"),
    ],
)
def test_the_shell_is_offered_completions(typed: str, offered: str) -> None:
    lay_out(Path("mine"), {"method/mine.yaml": "name: mine\n"})
    program = Path(sys.executable).with_name("loraga")
    environment = os.environ | {"_LORAGA_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": typed}
    done = subprocess.run([program], capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert offered in done.stdout


def test_bash_which_ends_words_at_an_equals_sign_is_offered_values() -> None:
    program = Path(sys.executable).with_name("loraga")
    words = {"COMP_WORDS": "loraga train recipe = qu", "COMP_CWORD": "4", "_LORAGA_COMPLETE": "complete_bash"}
    done = subprocess.run([program], capture_output=True, text=True, env=os.environ | words, check=False, timeout=120)
    assert done.stdout.split() == ["quickstart"]


def test_options_of_a_method_are_completed_without_loading_a_library_of_models() -> None:
    list_options()
    script = SCRIPT.replace("code = main(json.loads(sys.argv[1]))", COMPLETION)
    command = [sys.executable, "-c", script, "method.na"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    report = json.loads(done.stderr.strip().splitlines()[-1])
    assert report["code"] == ["method.name="]
    assert set(report["modules"]).isdisjoint(HEAVY)


def test_help_fills_the_width_of_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Rich keeps the line ends of a docstring, and reads ``[gguf]`` as a style."""
    assert main(["export", "--help"]) == 0
    paragraph = " ".join(capsys.readouterr().out.split())
    assert "pip install 'loraga[gguf]'" in paragraph
    root = get_command(app)
    assert isinstance(root, TyperGroup)
    for name in COMMANDS:
        for part in (root.commands[name].help or "").split("\n\n"):
            assert "\n" not in part, name


@pytest.mark.parametrize("command", ["eval", "merge", "inspect"])
def test_a_command_without_arguments_says_what_to_give_it(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([command]) == 2
    assert f"is named (loraga {command} runs/NAME" in " ".join(capfd.readouterr().err.split())
