"""``--code FILE``: a user's method is one file, which is named on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ga_cli.cli.app import main
from lora_ga_cli.registry import METHODS
from tests.config import BASE, lay_out

CODE = '''
from typing import Literal

from lora_ga_cli.config.schema import MethodOptions
from lora_ga_cli.methods.base import Method
from lora_ga_cli.registry import METHODS


@METHODS.register("mine")
class Mine(Method):
    class Options(MethodOptions):
        type: Literal["mine"] = "mine"
        width: int = 4
        """The width of my adapter."""

    uses = frozenset({"rank"})

    @classmethod
    def check(cls, config):
        if config.method.width > 9:
            yield f"method.width={config.method.width} is too wide"
'''
FLAGS = ["--code", "mine.py", "--config-dir", "folder"]


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAGA_CODE", "")
    METHODS.names()
    monkeypatch.setattr(METHODS, "_classes", dict(METHODS._classes))
    lay_out(tmp_path, {"mine.py": CODE, "folder/method/mine.yaml": "type: mine\n"})


@pytest.mark.parametrize("command", ["estimate-grad", "init", "train", "eval", "merge"])
def test_a_method_of_a_users_file_can_be_chosen(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "recipe=quickstart", "method=mine", "method.width=5", *FLAGS, "--cfg", "job"]) == 0
    assert "width: 5" in capsys.readouterr().out


def test_wrong_options_of_a_users_method_are_reported_like_all_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "recipe=quickstart", "method=mine", "method.widht=5", *FLAGS]) == 2
    assert main(["train", "recipe=quickstart", "method=mine", "method.width=10", *FLAGS]) == 2
    errors = capsys.readouterr().err
    assert "did you mean method.width?" in errors
    assert "method.width=10 is too wide" in errors


@pytest.mark.parametrize(
    "arguments", [["options", "method.width", "--code", "mine.py"], ["--code", "mine.py", "options"]]
)
def test_the_options_of_a_users_method_are_listed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", *arguments]) == 0
    words = capsys.readouterr().out.split()  # whatever the terminal's width, over which the meaning is wrapped
    assert {"method.width", "mine.", "adapter."} <= set(words)


def test_a_file_that_is_missing_or_fails_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.py").write_text("1 / 0\n", encoding="utf-8")
    assert main(["train", "recipe=quickstart", "--code", "missing.py"]) == 2
    assert main(["train", "recipe=quickstart", "--code", "broken.py"]) == 2
    errors = capsys.readouterr().err
    assert "missing.py: no such Python file" in errors
    assert "ZeroDivisionError" in errors


def test_a_recipe_cannot_name_code(capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(Path("folder"), {"recipes/evil.yaml": BASE + "code: mine.py\n"})
    assert main(["train", "recipe=evil", "--config-dir", "folder"]) == 2
    assert "no option code" in capsys.readouterr().err
