"""Telling a complete checkpoint from one that was cut off while it was written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from lora_ga_cli.files import file_sizes, read_json, set_aside, write_json

MARK = "complete.json"
"""Written last: the size in bytes of every other file of the checkpoint."""
_NAME = re.compile(r"checkpoint-(\d+)")


def mark_complete(checkpoint: Path) -> None:
    """Declares that everything of a checkpoint has been written."""
    sizes = file_sizes(checkpoint)
    sizes.pop(MARK, None)
    write_json(checkpoint / MARK, sizes)


def is_complete(checkpoint: Path) -> bool:
    """Whether the mark is there and every file has the size it had then."""
    try:
        expected = read_json(checkpoint / MARK)
    except (OSError, ValueError):
        return False
    actual = file_sizes(checkpoint)
    return bool(expected) and all(actual.get(name) == size for name, size in expected.items())


def step_of(checkpoint: Path) -> int:
    match = _NAME.fullmatch(checkpoint.name)
    return int(match.group(1)) if match else -1


def last_complete(folder: Path, notify: Callable[[str], None]) -> Path | None:
    """The newest complete checkpoint; incomplete ones after it are set aside, and ``notify`` is called."""
    found = sorted((item for item in folder.glob("checkpoint-*") if step_of(item) >= 0), key=step_of, reverse=True)
    for checkpoint in found:
        if is_complete(checkpoint):
            return checkpoint
        aside = set_aside(checkpoint, "cut-off")
        notify(f"{checkpoint.name} was cut off while it was written; set aside as {aside.name}")
    return None
