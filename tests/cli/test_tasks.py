"""Slurm starts one command as several tasks: no two of them write the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from lora_ga_cli.cli.app import app, main
from lora_ga_cli.stages import train as train_stage
from lora_ga_cli.training.run_folder import RunFolder

QUICKSTART = "recipe=quickstart"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The ranks of the runs that the training stage, which does nothing here, was called for."""
    ranks: list[int] = []

    def train(config: Any) -> Any:
        ranks.append(config.rank)
        return Nothing(tmp_path)

    monkeypatch.setattr(train_stage, "train", train)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.delenv("RANK", raising=False)
    return ranks


class Nothing(RunFolder):
    def summary(self) -> dict[str, Any]:
        return {}


def test_copies_of_a_training_are_refused(trained: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", QUICKSTART]) == 2
    assert trained == []
    assert "2 tasks of this command" in capsys.readouterr().err


READING = {"watch", "chat", "env", "recipes", "cache"}
"""Commands that several tasks may give: what is removed from a cache is removed once."""
WRITING = sorted(set(get_command(app).commands) - READING)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("command", WRITING)
def test_copies_of_every_command_that_writes_are_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"convert": ["--output", "new"], "push": ["ORG/NAME"]}.get(command, [])
    assert main([command, ".", *more]) == 2
    assert "2 tasks of this command" in capsys.readouterr().err


def test_copies_that_write_nothing_are_not_refused(trained: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", QUICKSTART, "rank=-1", "--dry-run"]) == 2
    assert "tasks of this command" not in capsys.readouterr().err


@pytest.mark.parametrize(("variable", "value"), [("RANK", "0"), ("SLURM_STEP_NUM_TASKS", "1")])
def test_one_task_or_processes_that_know_each_other_train(
    trained: list[int], monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert main(["train", QUICKSTART, "rank=4"]) == 0
    assert trained == [4]


def test_tasks_do_parts_of_a_sweep(trained: list[int]) -> None:
    assert main(["train", "-m", QUICKSTART, "rank=1,2,3", "--shard", "1/2"]) == 0
    assert trained == [1, 3]


def test_a_part_of_something_else_than_a_sweep_is_refused(
    trained: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", QUICKSTART, "--shard", "1/2"]) == 2
    assert main(["train", "-m", QUICKSTART, "rank=1,2", "--shard", "3/2"]) == 2
    errors = capsys.readouterr().err
    assert "add -m" in errors
    assert "names no part" in errors
    assert trained == []
