"""Names of a run's files, and whether a process works on the run. (It imports nothing heavy.)"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CONFIG = "config.yaml"
MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
LOCK_WAIT = 0.2
"""Seconds for which a run waits for its lock: `is_locked` may hold it for a moment."""


def names_told_apart(folders: Sequence[Path]) -> list[str]:
    """For each folder its name, and its path instead where another folder has the same name.

    Paths inside the working folder are given from there.
    """
    names = [folder.resolve().name for folder in folders]
    return [
        name if names.count(name) == 1 else str(_from_here(folder)) for name, folder in zip(names, folders, strict=True)
    ]


def _from_here(folder: Path) -> Path:
    place, here = folder.resolve(), Path.cwd().resolve()
    return place.relative_to(here) if place.is_relative_to(here) else place


def lock_file(run: Path) -> Path:
    """The file that a process locks while it works on a run. It lies beside the run's folder."""
    return run.with_name(f".{run.name}.lock")


def run_of_lock(file: Path) -> Path:
    """The folder of the run that a lock file is for."""
    return file.with_name(file.name.removeprefix(".").removesuffix(".lock"))


def is_locked(run: Path) -> bool:
    """Whether a process works on a run. Nothing is written."""
    file = lock_file(run)
    if fcntl is None:
        return file.exists() and not _can_lock(file)
    try:
        handle = os.open(file, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True  # locked; or a file system without locks, where the file exists only while a process works
    finally:
        os.close(handle)
    return False


def _can_lock(file: Path) -> bool:
    try:
        with FileLock(file, timeout=0):
            return True
    except Timeout:
        return False
