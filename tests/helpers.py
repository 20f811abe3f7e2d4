"""What tests of several rooms share: types of fixtures, the run that a command made, and a process that is killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ga_cli.cli.app import main

Loraga = Callable[..., str]
"""The fixture ``loraga``: runs a command line, and returns what it printed."""
Arguments = Callable[..., list[str]]
"""The fixture ``arguments``: the overrides of a short run of a model family."""


def only_run(folder: str = "runs") -> Path:
    """The only run folder inside ``folder``."""
    (run,) = [item for item in Path(folder).iterdir() if item.is_dir() and not item.name.startswith(".")]
    return run


def points(run: Path) -> list[dict[str, float]]:
    """The points of a run's metrics file."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def die() -> None:
    """Ends this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def after(calls: int, function: Callable) -> Callable:  # type: ignore[type-arg]
    """``function``, after whose n-th call the process is killed."""
    count = 0

    def killing(*arguments: object, **options: object) -> object:
        nonlocal count
        result = function(*arguments, **options)
        count += 1
        if count == calls:
            die()
        return result

    return killing


def between_two_checkpoints(patch: pytest.MonkeyPatch) -> None:
    from lora_ga_cli.training.trainer import LoragaTrainer

    patch.setattr(LoragaTrainer, "training_step", after(7, LoragaTrainer.training_step))  # two micro-batches a step


def killed(arguments: list[str], point: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Runs the command in a child process that is killed at a point, and insists that it was."""
    child = os.fork()
    if child == 0:
        try:
            point(pytest.MonkeyPatch())
            main(["train", *arguments])
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the command ended before it came to this point"
    assert os.WTERMSIG(status) == signal.SIGKILL
