"""Distinguishes complete checkpoints from those that were cut off while they were written, and from damaged ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_ga_cli.digests import Written, damage, written_in
from lora_ga_cli.files import file_sizes, set_aside
from lora_ga_cli.json_files import read_json, write_json

MARK = "complete.json"
"""The size and the digest of every other file of the checkpoint, and what the metrics were; it is written last."""
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Mark:
    """What the mark of a checkpoint says.

    Args:
        sizes: bytes by the name of the file.
        files: what the files were when they were written; empty for a checkpoint of an earlier version.
        metrics: what the run's metrics were (see `training.metrics`); None if it does not say.
    """

    sizes: Mapping[str, int]
    files: Mapping[str, Written] = field(default_factory=dict)
    metrics: Written | None = None


def mark_complete(checkpoint: Path, metrics: Written | None = None) -> None:
    """Declares that everything of a checkpoint has been written.

    Args:
        metrics: what the run's metrics are now.
    """
    names = [name for name in file_sizes(checkpoint) if name != MARK]
    content = {"files": written_in(checkpoint, names), "metrics": metrics}
    write_json(checkpoint / MARK, content, digest=True)


def read_mark(checkpoint: Path) -> Mark | None:
    """The mark of a checkpoint; None if there is none, or a damaged one."""
    try:
        stored: Any = read_json(checkpoint / MARK)
        if "files" not in stored:  # written before checkpoints carried digests
            return Mark({str(name): int(size) for name, size in stored.items()})
        files = {str(name): one for name, one in stored["files"].items()}
        return Mark({name: int(one["size"]) for name, one in files.items()}, files, stored.get("metrics"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_complete(checkpoint: Path) -> bool:
    """Whether the mark exists and every file still has the size in it. The content of the files is not read."""
    mark = read_mark(checkpoint)
    return mark is not None and _has_sizes(checkpoint, mark)


def damage_of(checkpoint: Path) -> str:
    """The first file of a marked checkpoint that is not what was written, and what is wrong with it; else empty."""
    mark = read_mark(checkpoint)
    if mark is None or not mark.sizes:
        return f"{MARK} is not what was written"
    for name, size in mark.sizes.items():
        if what := damage(checkpoint / name, mark.files.get(name) or {"size": size}):
            return f"{name} {what}"
    return ""


def step_of(checkpoint: Path) -> int:
    """The optimizer step of a checkpoint folder; -1 for another folder."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match.group(1)) if match else -1


def last_complete(folder: Path) -> Path | None:
    """The newest checkpoint that is complete by the sizes of its files. Nothing is renamed."""
    return next((item for item in _newest_first(folder) if is_complete(item)), None)


def last_sound(folder: Path, notify: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files are what was written.

    Incomplete and damaged ones after it are renamed, and ``notify`` is called for each. The content of older ones is
    not read.
    """
    for checkpoint in _newest_first(folder):
        if not (checkpoint / MARK).exists():
            aside = set_aside(checkpoint, "cut-off")
            notify(f"{checkpoint.name} was cut off while it was written; it was renamed to {aside.name}")
        elif what := damage_of(checkpoint):
            aside = set_aside(checkpoint, "damaged")
            notify(f"{checkpoint.name} is damaged ({what}); it was renamed to {aside.name}")
        else:
            return checkpoint
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted((item for item in folder.glob("checkpoint-*") if step_of(item) >= 0), key=step_of, reverse=True)


def _has_sizes(checkpoint: Path, mark: Mark) -> bool:
    actual = file_sizes(checkpoint)
    return bool(mark.sizes) and all(actual.get(name) == size for name, size in mark.sizes.items())
