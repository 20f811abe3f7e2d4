"""What files were when they were written: their sizes and digests, by which damage is noticed before they are used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_ga_cli.errors import DamagedFile
from lora_ga_cli.files import sha256_file

Written = Mapping[str, Any]
"""A file as it was written: ``size`` in bytes and ``sha256`` (which files of earlier versions do not have)."""


def written(file: Path) -> dict[str, Any]:
    """What a file is now."""
    return {"size": file.stat().st_size, "sha256": sha256_file(file)}


def written_in(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What files below a folder are now, by their names."""
    return {name: written(folder / name) for name in names}


def damage(file: Path, expected: Written) -> str:
    """What is wrong with a file, as the rest of a sentence that begins with its name; empty if nothing is."""
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        return "is missing"
    if size != expected.get("size", size):
        return f"has {size:,} bytes and was written with {expected['size']:,}"
    same = "sha256" not in expected or sha256_file(file) == expected["sha256"]
    return "" if same else "does not have the bytes that were written"


def check_file(file: Path, expected: Written, mend: str) -> None:
    """Checks a file before it is used.

    Args:
        mend: the next step, where it is damaged.

    Raises:
        DamagedFile
    """
    if what := damage(file, expected):
        raise DamagedFile(file, what, mend)


def check_files(folder: Path, expected: Mapping[str, Written], mend: str) -> None:
    """`check_file` for files below a folder, by their names."""
    for name, one in expected.items():
        check_file(folder / name, one, mend)
