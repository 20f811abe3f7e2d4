"""The metrics of a run as JSON lines: one object for each logged point.

The file only grows while a run trains. So what it was at some moment is told by how many bytes it had and by their
digest: a checkpoint keeps this of the moment when it was written, and the manifest of the end.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lora_ga_cli.digests import Written
from lora_ga_cli.files import atomic_file

NUMBERS = ("epoch", "loss", "eval_loss", "learning_rate", "tokens_per_second", "memory_bytes", "time")
"""Entries of a point that are shown. It may have others."""


def append(file: Path, point: dict[str, Any]) -> None:
    """Adds a point at the end of the file."""
    with file.open("a", encoding="utf-8") as opened:
        opened.write(json.dumps(point) + "\n")


def read(file: Path) -> list[dict[str, Any]]:
    """All points. Lines that are none are left out, such as an incomplete last one, which a killed process leaves."""
    points = []
    for line in file.read_bytes().split(b"\n") if file.exists() else []:
        if (point := point_in(line)) is not None:
            points.append(point)
    return points


def point_in(line: bytes) -> dict[str, Any] | None:
    """The point in a line; None if there is none, or if a value that is drawn is neither a number nor null."""
    try:
        point = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(point, dict) or not _is_whole(point.get("step")):
        return None
    sound = all(point.get(name) is None or _is_number(point[name]) for name in NUMBERS)
    return point if sound else None


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_whole(value) or isinstance(value, float)


def state(file: Path) -> dict[str, Any]:
    """What the file is now: ``size`` in bytes, ``lines``, and the ``sha256`` of it all."""
    data = file.read_bytes() if file.exists() else b""
    return {"size": len(data), "lines": data.count(b"\n"), "sha256": hashlib.sha256(data).hexdigest()}


def damage(file: Path, expected: Written) -> str:
    """What is wrong with the beginning of the file, as a sentence; empty if nothing is.

    Args:
        expected: the `state` of an earlier moment; points may have been added since.
    """
    data = (file.read_bytes() if file.exists() else b"")[: expected["size"]]
    if hashlib.sha256(data).hexdigest() == expected["sha256"]:
        return ""
    count = int(expected["lines"])
    lost = count - min(len(read(file)), count)
    how = f"lost {lost} of its {count} lines" if lost else f"has {count} lines, some of which are not what was written"
    return f"{file} {how}; curves show what is left"


def rewind(file: Path, step: int) -> None:
    """Drops the points after ``step``: a resumed run logs them again."""
    kept = [point for point in read(file) if point["step"] <= step]
    with atomic_file(file) as temporary:
        temporary.write_text("".join(json.dumps(point) + "\n" for point in kept), encoding="utf-8")
