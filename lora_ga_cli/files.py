"""Atomic writes and checksums. No file or folder is ever seen half written."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]


TEMPORARY = re.compile(r"\.(.+)\.loraga-[a-z0-9_]{8}\.(tmp|old)")
"""Names of the temporary files and folders that are made here, and of no others: what was left is removed."""


def final_path(path: str | Path) -> Path:
    """The path without the names of temporary files and folders, which mean nothing to a user."""
    found = ((part, TEMPORARY.fullmatch(part)) for part in Path(path).parts)
    return Path(*(match.group(1) if match else part for part, match in found))


@contextlib.contextmanager
def _temporary(path: Path, *, folder: bool) -> Iterator[Path]:
    """Yields a new file or folder next to ``path``, and removes it at the end if it is still there.

    What killed processes left in this folder is removed too. The kernel lets go of a process's locks when it ends, so
    what is not locked belongs to nobody.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path.parent)
    prefix, suffix = f".{path.name}.loraga-", ".tmp"
    with contextlib.ExitStack() as stack:
        while True:
            if folder:
                temporary = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=path.parent))
                lock = os.open(temporary, os.O_RDONLY) if fcntl is not None else None
            else:
                lock, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=path.parent)
                temporary = Path(name)
            if lock is not None:
                stack.callback(os.close, lock)
            # until it is locked, another thread or process may take it for what a killed one left, and remove it
            if (lock is None or _locked(lock) is not False) and temporary.exists():
                break
            _remove(temporary)
        try:
            yield temporary
        finally:
            _remove(temporary)


def _locked(file: int) -> bool | None:
    """Locks an open file or folder. Returns whether it could, and None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_left(folder: Path) -> None:
    """Removes temporary files and folders of processes that were killed, where it is allowed."""
    with contextlib.suppress(OSError), os.scandir(folder) as items:
        left = [item for item in items if (match := TEMPORARY.fullmatch(item.name)) and _is_unused(item, match)]
    for item in left:
        with contextlib.suppress(OSError):
            file = os.open(item.path, os.O_RDONLY)
            try:
                if _locked(file):
                    _remove(Path(item.path))
            finally:
                os.close(file)


def _is_unused(item: os.DirEntry[str], match: re.Match[str]) -> bool:
    """Whether a file or folder with the name of a temporary one is not the only copy of something."""
    replaced = match.group(2) == "old"
    return fcntl is not None and (not replaced or Path(item.path).with_name(match.group(1)).exists())


def _remove(item: Path) -> None:
    if item.is_dir():
        shutil.rmtree(item)
    else:
        item.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to ``path``; on success it is renamed to ``path``, on any error it is removed."""
    with _temporary(path, folder=False) as temporary:
        yield temporary
        _sync(temporary)
        follow_umask(temporary)
        temporary.replace(path)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder next to ``path``; on success it replaces ``path``, on any error it is removed."""
    with _temporary(path, folder=True) as temporary:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        follow_umask(temporary)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.loraga-", suffix=".old", dir=path.parent))
            path.replace(old / path.name)
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)


def follow_umask(path: Path) -> None:
    """Makes a file, or a folder with all that is in it, as readable as the user's umask says.

    (tempfile makes private files, and so do some versions of safetensors, whatever the umask is.)
    """
    umask = os.umask(0)  # there is no way to read it without setting it
    os.umask(umask)
    for item in (path, *(path.rglob("*") if path.is_dir() else ())):
        if not item.is_symlink():
            item.chmod((0o777 if item.is_dir() else 0o666) & ~umask)


def _sync(path: Path) -> None:
    with path.open("r+b") as file:  # Windows syncs only files that are open for writing
        os.fsync(file.fileno())


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(path: Path, why: str) -> Path:
    """Renames ``path`` to ``path.why``, ``path.why-2``, …; returns the new name."""
    for number in range(1, 10_000):
        new = path.with_name(f"{path.name}.{why}" + (f"-{number}" if number > 1 else ""))
        if not new.exists():
            path.replace(new)
            return new
    raise OSError(f"too many folders named {path.name}.{why}-N in {path.parent}")


def file_sizes(folder: Path) -> dict[str, int]:
    """Name and size in bytes of every file below ``folder``."""
    return {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
