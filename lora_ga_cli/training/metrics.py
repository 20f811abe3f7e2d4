"""The metrics of a run as JSON lines: one object for each logged point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lora_ga_cli.files import atomic_file


def append(file: Path, point: dict[str, Any]) -> None:
    """Adds a point at the end of the file."""
    with file.open("a", encoding="utf-8") as opened:
        opened.write(json.dumps(point) + "\n")


def read(file: Path) -> list[dict[str, Any]]:
    """All points; an incomplete last line, which a killed process leaves, is skipped."""
    points = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            points.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return points


def rewind(file: Path, step: int) -> None:
    """Drops the points after ``step``: a resumed run logs them again."""
    kept = [point for point in read(file) if point["step"] <= step]
    with atomic_file(file) as temporary:
        temporary.write_text("".join(json.dumps(point) + "\n" for point in kept), encoding="utf-8")
