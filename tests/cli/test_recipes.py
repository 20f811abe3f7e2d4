"""``loraga recipes``: recipes are listed, shown and copied; options are listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ga_cli.cli.app import main
from lora_ga_cli.cli.recipes import complete_recipe
from lora_ga_cli.config.compose import compose
from lora_ga_cli.config.locations import Locations
from lora_ga_cli.config.options import all_options
from lora_ga_cli.registry import OPTIMIZERS
from tests.config import BASE, lay_out

SHIPPED = Locations().choices("recipe")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_recipe_is_listed_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in SHIPPED)
    assert "A tiny base learns word problems" in printed


def test_a_users_recipes_are_listed_too(capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(Path("mine"), {"recipes/mine.yaml": "# My [own] recipe. More.\n" + BASE})
    assert main(["recipes", "list", "--config-dir", "mine"]) == 0
    printed = capsys.readouterr().out
    assert "mine" in printed
    assert "My [own] recipe" in printed


@pytest.mark.parametrize("command", [["list"], ["show", "quickstart"]])
def test_a_missing_configuration_folder_is_named(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", *command, "--config-dir", "missing"]) == 2
    assert "missing" in capsys.readouterr().err


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_is_shown_as_it_is_written(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", name]) == 0
    assert capsys.readouterr().out == SHIPPED[name].read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["show", "copy"])
def test_an_unknown_recipe_is_refused_with_the_nearest(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", command, "quickstrt"]) == 2
    assert "did you mean quickstart?" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_a_copy_is_a_new_recipe_that_works_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "copy", "quickstart", "mine", "--config-dir", "mine"]) == 0
    assert "loraga train recipe=mine --config-dir mine" in capsys.readouterr().out
    assert Path("mine/recipes/mine.yaml").read_text(encoding="utf-8").startswith("# loraga train recipe=mine\n")
    assert compose(["recipe=mine", "--config-dir", "mine"]).recipe == "mine"


def test_a_copy_has_the_same_name_unless_another_is_given() -> None:
    assert main(["recipes", "copy", "quickstart"]) == 0
    assert Path("recipes/quickstart.yaml").exists()


def test_a_copy_overwrites_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(Path(), {"recipes/mine.yaml": "precious"})
    assert main(["recipes", "copy", "quickstart", "mine.yaml"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert Path("recipes/mine.yaml").read_text(encoding="utf-8") == "precious"


def test_a_copy_stays_in_its_folder() -> None:
    assert main(["recipes", "copy", "quickstart", "../../mine", "--config-dir", "mine"]) == 2
    assert not list(Path().rglob("mine.yaml"))


def test_every_option_is_listed_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "options"]) == 0
    printed = capsys.readouterr().out
    first = {line.split()[0] for line in printed.splitlines() if line.strip()}
    assert {".".join(path) for path in all_options()} <= first
    (metrics,) = [line for line in printed.splitlines() if line.strip().startswith("eval.metrics")]
    assert "[loss]" in metrics


def test_options_are_selected_by_the_beginning_of_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "options", "gradient."]) == 0
    printed = capsys.readouterr().out
    assert "gradient.samples" in printed
    assert "trainer" not in printed


@pytest.mark.parametrize(("typed", "hint"), [("learning_rate", "trainer.learning_rate"), ("zzz", "lists all")])
def test_a_beginning_that_no_option_has_is_refused(typed: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "options", typed]) == 2
    assert hint in capsys.readouterr().err


def test_every_optimizer_is_listed_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "optimizers"]) == 0
    printed = capsys.readouterr().out
    first = {line.split()[0] for line in printed.splitlines() if line.strip()}
    assert set(OPTIMIZERS.names()) <= first
    assert "2410.20625" in printed
    (clip,) = [line for line in printed.splitlines() if line.split()[:2] == ["lora_rite", "clip"]]
    assert "number" in clip


def test_the_shell_completes_names_of_recipes() -> None:
    assert complete_recipe("quick") == ["quickstart"]
    assert complete_recipe("") == sorted(SHIPPED)
