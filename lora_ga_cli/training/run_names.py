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
    """For each folder its name, with as many of the folders around it as tell it from the others.

    A folder that is given twice has its path.
    """
    paths = [folder.resolve().parts[1:] for folder in folders]
    names = []
    for folder, path in zip(folders, paths, strict=True):
        counts = range(1, max(map(len, paths)) + 1)
        alone = (count for count in counts if [other[-count:] for other in paths].count(path[-count:]) == 1)
        count = next(alone, None)
        names.append(str(folder) if count is None else "/".join(path[-count:]))
    return names


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
