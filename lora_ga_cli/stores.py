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
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, key: str) -> Path:
        """The folder of an entry, whether it is stored or not."""
        return self.folder / key

    def stored(self) -> list[Path]:
        """The folder of every entry, in no order."""
        return [item for item in self.folder.iterdir() if _is_entry(item)] if self.folder.is_dir() else []

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
