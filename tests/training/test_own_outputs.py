"""What loraga writes beside runs is told from runs and from things of the user."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ga_cli.training.own_outputs import without_own_outputs


@pytest.fixture(autouse=True)
def files() -> None:
    for file in (
        "one/manifest.json",
        "one.old/manifest.json",
        "one.old-2/manifest.json",
        "inspect-one-two/similarity.png",
        "inspect-mine/notes.txt",
        "eval-base/eval/gsm8k-01.json",
        "eval-base/eval.json",
        "eval-mine/manifest.json",
        "report.html",
        "comparison.png",
        "picture.png",
    ):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()


def test_of_a_pattern_runs_and_things_of_others_stay() -> None:
    """Folders that only have such a name, but other contents, are the user's."""
    every = sorted(path.name for path in Path().glob("[!.]*") if path.name != "cache")
    assert without_own_outputs(every) == ["eval-mine", "inspect-mine", "one", "picture.png"]


def test_what_is_named_alone_stays_and_so_does_an_old_run_beside_another() -> None:
    assert without_own_outputs(["one.old"]) == ["one.old"]
    assert without_own_outputs(["report.html"]) == ["report.html"]
    assert without_own_outputs(["one", "one.old"]) == ["one", "one.old"]
    assert without_own_outputs(["one", "report.html"]) == ["one"]
    assert without_own_outputs(["report.html", "comparison.png"]) == ["report.html", "comparison.png"]


def test_an_empty_folder_is_of_the_user() -> None:
    for name in ("inspect-empty", "eval-empty"):
        Path(name).mkdir()
    assert without_own_outputs(["one", "inspect-empty", "eval-empty"]) == ["one", "inspect-empty", "eval-empty"]
