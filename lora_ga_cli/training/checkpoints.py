"""Distinguishes complete checkpoints from those that were cut off while they were written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from lora_ga_cli.files import file_sizes, read_json, set_aside, write_json

MARK = "complete.json"
"""The size in bytes of every other file of the checkpoint; it is written last."""
_NAME = re.compile(r"checkpoint-(\d+)")


def mark_complete(checkpoint: Path) -> None:
    """Declares that everything of a checkpoint has been written."""
    sizes = file_sizes(checkpoint)
    sizes.pop(MARK, None)
    write_json(checkpoint / MARK, sizes)


def is_complete(checkpoint: Path) -> bool:
    """Whether the mark exists and every file still has the size in it."""
    try:
        expected = read_json(checkpoint / MARK)
    except (OSError, ValueError):
        return False
    actual = file_sizes(checkpoint)
    return bool(expected) and all(actual.get(name) == size for name, size in expected.items())


def step_of(checkpoint: Path) -> int:
    """The optimizer step of a checkpoint folder; -1 for another folder."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match.group(1)) if match else -1


def last_complete(folder: Path, notify: Callable[[str], None]) -> Path | None:
    """The newest complete checkpoint. Incomplete ones after it are renamed, and ``notify`` is called."""
    found = sorted((item for item in folder.glob("checkpoint-*") if step_of(item) >= 0), key=step_of, reverse=True)
    for checkpoint in found:
        if is_complete(checkpoint):
            return checkpoint
        aside = set_aside(checkpoint, "cut-off")
        notify(f"{checkpoint.name} was cut off while it was written; it was renamed to {aside.name}")
    return None
