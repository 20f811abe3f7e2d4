"""The command that is printed when a signal stopped one."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ga_cli.cli.app import valued_flags
from lora_ga_cli.cli.arguments import split_folders
from lora_ga_cli.cli.stopping import Given, command, stopped
from lora_ga_cli.config.launchers import when_stopped
from lora_ga_cli.interruption import Interruption

LONG = "a" * 300
"""Longer than the name of a file may be."""


@pytest.fixture(autouse=True)
def _flags_of_loraga(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Given, "valued_flags", valued_flags)


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        (["train", "rank=4", "seed=1", "rank=8"], "loraga train seed=1 rank=8"),
        (["train", "+dataset.name=a", "dataset.name=b"], "loraga train dataset.name=b"),
        (["train", "method=lora", "method=pissa", "overwrite=true"], "loraga train method=pissa"),
        (["train", "-m", "--config-dir", "a", "rank=4", "rank=4,8"], "loraga train -m --config-dir a rank=4,8"),
        (["eval", "runs/a", "runs/a", "eval=loss"], "loraga eval runs/a runs/a eval=loss"),
        (["merge", "--output", "o=1", "x", "o=2"], "loraga merge --output o=1 x o=2"),
        (["merge", "--output=o=1", "o=1", "x", "o=2"], "loraga merge --output=o=1 x o=2"),
        (["train", "--config-dir", "a=1", "--debug", "a=2", "a=3"], "loraga train --config-dir a=1 --debug a=3"),
        (["export", "x", "--output", "lr=1", "lr=2", "lr=3"], "loraga export x --output lr=1 lr=2 lr=3"),
        (["train", "rank=4", f"dataset.prompt={LONG}", "rank=8"], f"loraga train dataset.prompt={LONG} rank=8"),
    ],
)
def test_of_several_values_of_an_option_the_last_one_is_printed(
    given: list[str], printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Given, "arguments", given)
    assert command(goes_on=True) == printed


def test_folders_are_no_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    folders = ["runs/rank=4", "runs/rank=8"]
    for folder in folders:
        Path(folder).mkdir(parents=True)
    monkeypatch.setattr(Given, "arguments", ["eval", *folders])
    assert command(goes_on=True) == "loraga eval runs/rank=4 runs/rank=8"


def test_a_word_longer_than_the_name_of_a_file_is_an_option() -> None:
    assert split_folders(["runs/a", f"dataset.prompt={LONG}"]) == (["runs/a"], [f"dataset.prompt={LONG}"])


@pytest.mark.parametrize(("launcher", "ends"), [("submitit_slurm", True), ("submitit_local", False)])
def test_submitted_jobs_go_on_and_the_command_is_for_later(
    launcher: str, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "-m", "seed=1,2", f"hydra/launcher={launcher}"]
    monkeypatch.setattr(Given, "arguments", words)
    with pytest.raises(Interruption) as stop, when_stopped(launcher):
        raise Interruption(15)
    said = str(stopped(stop.value))
    assert said.startswith(
        "SIGTERM: the jobs that were submitted go on; loraga watch OUTPUT_DIR/* shows how far they are"
    )
    assert said.endswith(f". When they have ended, this does what is left: loraga {' '.join(words)}")
    assert ("scancel" in said) == ends
