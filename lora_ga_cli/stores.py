"""Results by content in folders of the cache: each is written once, and safe for several processes at once."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

Notify = Callable[[str], None]


class FolderStore:
    """Entries by key, each of them a folder.

    Args:
        folder: where the entries are; it need not exist.
        shared: a folder with more entries, which are read and nothing else. An entry in it is complete, because it
            gets its name after it is written, so it is read without a lock.
    """

    def __init__(self, folder: Path, shared: Path | None = None):
        self.folder, self.shared = folder, shared

    def path(self, key: str) -> Path:
        """The folder in which an entry is made, whether it is stored or not."""
        return self.folder / key

    def places(self, key: str) -> list[Path]:
        """The folders in which an entry is stored: at most two."""
        folders = [self.path(key), *([self.shared / key] if self.shared is not None else [])]
        return [folder for folder in folders if folder.is_dir()]

    def stored(self) -> list[Path]:
        """The folder of every entry, in no order."""
        entries: dict[str, Path] = {}
        for folder in (self.shared, self.folder):  # what was made here is used in the place of what is only read
            if folder is not None and folder.is_dir():
                entries |= {item.name: item for item in folder.iterdir() if _is_entry(item)}
        return list(entries.values())

    @contextlib.contextmanager
    def claimed(self, key: str, notify: Notify, waiting: str) -> Iterator[None]:
        """Lets one process at a time make an entry.

        Args:
            notify: receives ``waiting`` if another process is making it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self._lock(key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            notify(waiting)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def discard(self, key: str) -> bool:
        """Removes an entry unless a process is making it again; returns whether it was removed."""
        try:
            with self._lock(key).acquire(timeout=0):
                shutil.rmtree(self.path(key), ignore_errors=True)  # another process may have removed it
        except Timeout:
            return False
        return True

    def leftovers(self) -> list[Path]:
        """Folders left by interrupted writes, and damaged entries set aside; nothing that a process is writing."""
        if not self.folder.is_dir():
            return []
        items = [item for item in self.folder.iterdir() if item.is_dir() and not _is_entry(item)]
        return [item for item in items if not self._in_use(item.name.removeprefix(".").partition(".")[0])]

    def _lock(self, key: str) -> FileLock:
        """The lock of a process that makes an entry. Its file stays, since others may wait for it."""
        return FileLock(self.folder / f".{key}.lock")

    def _in_use(self, key: str) -> bool:
        if not (self.folder / f".{key}.lock").exists():
            return False
        try:
            with self._lock(key).acquire(timeout=0):
                return False
        except Timeout:
            return True


def age_in_days(created: float) -> float:
    """Days since a moment in seconds since the epoch."""
    return (time.time() - created) / 86400


def _is_entry(item: Path) -> bool:
    return item.is_dir() and not item.name.startswith(".") and "." not in item.name
