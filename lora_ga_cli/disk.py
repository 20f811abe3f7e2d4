"""What a disk allows: whether a folder can be written, and how much room there is."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
"""What the system says where writing is not allowed."""
LEAST_ROOM = 2**20
"""Bytes that have to be free on a disk before a run begins."""


def may_only_be_read(folder: Path) -> bool:
    """Whether a folder exists and can be read, and the system forbids to write into it."""
    if not os.access(folder, os.R_OK | os.X_OK) or not folder.is_dir():
        return False
    problem = folder_problem(folder)
    return problem is not None and problem.errno in FORBIDDEN


def folder_problem(folder: Path) -> OSError | None:
    """Why nothing can be written into a folder, which need not exist yet; None if nothing speaks against it.

    Nothing is created.
    """
    for path in (folder.absolute(), *folder.absolute().parents):
        try:
            if not path.is_dir():
                if path.exists():
                    return OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                path.stat()
        except NotADirectoryError:
            continue  # a part of the path is a file, which is looked at next
        except FileNotFoundError:
            continue
        except OSError as error:
            return error
        if not os.access(path, os.W_OK | os.X_OK):
            code = errno.EROFS if _is_on_read_only_disk(path) else errno.EACCES
            return OSError(code, os.strerror(code))
        return with_room(errno.ENOSPC, path) if shutil.disk_usage(path).free < LEAST_ROOM else None
    return None


def _is_on_read_only_disk(path: Path) -> bool:
    return hasattr(os, "statvfs") and bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def with_room(code: int, folder: Path) -> OSError:
    """The system's error about a full disk, with the bytes that are free.

    Args:
        code: of the error.
        folder: a folder on the disk, which need not exist yet.
    """
    return OSError(code, f"{os.strerror(code)}, {size(disk_room(folder))} are free now")


def disk_room(folder: Path) -> int:
    """Bytes that are free on the disk of a folder, which need not exist yet."""
    place = folder.absolute()
    return shutil.disk_usage(next(item for item in (place, *place.parents) if item.exists())).free


def size(count: float) -> str:
    """A number of bytes in binary units: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
