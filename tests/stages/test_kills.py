"""A command that is killed at any moment: the same command goes on, and comes to the same result.

The small version of ``python scripts/soak.py kill``, and what that has to notice.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"
COUNTS = ["the same command failed afterwards", "another result", "temporary or damaged files left"]
RESULT = Path("result.txt")
SECONDS = 0.2
"""How long a command works, so that a kill comes between its first file and its last one."""


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.chdir(tmp_path)
    return importlib.import_module("soaks.kill")


@pytest.mark.parametrize("command", ["train", pytest.param("merge", marks=pytest.mark.slow)])
def test_a_few_kills(command: str, kill: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    figures = list(kill.run(argparse.Namespace(kills=2, seed=3, only=command, verbose=True)))
    assert [figure.name for figure in figures if not figure.reached] == [], capsys.readouterr().out
    assert [figure.name.strip() for figure in figures] == [f"kills: {command}", *COUNTS]


# Commands in the place of those of loraga


def sound(words: Sequence[str]) -> int:
    """It begins again, and leaves nothing but its result."""
    time.sleep(SECONDS)
    RESULT.write_text("12", encoding="utf-8")
    return 0


def refusing(words: Sequence[str]) -> int:
    """It refuses what its own beginning has left."""
    if RESULT.exists():
        return 2
    RESULT.write_text("12", encoding="utf-8")
    time.sleep(SECONDS)
    return 0


def taking_half_for_all(words: Sequence[str]) -> int:
    """It takes the half of a result for the result."""
    if not RESULT.exists():
        RESULT.write_text("1", encoding="utf-8")
        time.sleep(SECONDS)
        RESULT.write_text("12", encoding="utf-8")
    return 0


def littering(words: Sequence[str]) -> int:
    """It forgets its temporary file."""
    temporary = Path(f".result.txt.loraga-{os.getpid():08}.tmp")
    temporary.write_text("1", encoding="utf-8")
    time.sleep(SECONDS)
    RESULT.write_text("12", encoding="utf-8")
    temporary.unlink()
    return 0


@pytest.mark.parametrize(
    ("command", "missed"),
    [(sound, []), (refusing, COUNTS[:1]), (taking_half_for_all, COUNTS[1:2]), (littering, COUNTS[2:])],
)
def test_a_command_that_does_not_survive_is_counted(
    command: Callable[[Sequence[str]], int],
    missed: list[str],
    kill: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kill, "main", command)
    scene = kill.Scene("mine", [], ["mine"], [RESULT.name])
    figures = list(kill._killed(scene, tmp_path, 3, random.Random(0), verbose=False))
    assert [figure.name.strip() for figure in figures if not figure.reached] == missed
