"""Digests of large files, which are remembered from one run to the next."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from lora_ga_cli.errors import DamagedFile
from lora_ga_cli.files import (
    sha256_file,
)
from lora_ga_cli.json_files import read_json, write_json

CLOCK_RESOLUTION = 2.0
"""Seconds within which a file system may give two changes of a file the same time."""


def remembered_sha256(file: Path, memo: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, remembered in ``memo`` (JSON) by path, size and time of change.

    A damaged memo is begun again. A file that has just changed is not remembered, since it may change once more within
    the resolution of the file system's clock.
    """
    stat = file.stat()
    entry = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    digests = _remembered(memo)
    if entry in digests:
        return digests[entry]
    digest = sha256_file(file)
    if time.time() - stat.st_mtime > CLOCK_RESOLUTION:
        from filelock import FileLock

        memo.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(memo.with_name(f".{memo.name}.lock")):  # another process may have added to it meanwhile
            write_json(memo, _remembered(memo) | {entry: digest}, digest=True)
    return digest


def _remembered(memo: Path) -> dict[str, str]:
    with contextlib.suppress(FileNotFoundError, DamagedFile):
        found = read_json(memo)
        return found if isinstance(found, dict) else {}
    return {}


def drop_damaged(memo: Path, notify: Callable[[str], None]) -> None:
    """Removes what `remembered_sha256` remembers if it is damaged, with a message."""
    try:
        read_json(memo)
    except FileNotFoundError:
        return
    except DamagedFile as error:
        notify(f"{error}; the digests in it are computed again")
        with contextlib.suppress(OSError):  # a cache that cannot be written
            memo.unlink()
