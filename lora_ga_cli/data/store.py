"""The store of tokenized rows on disk, by the content of everything they are made from."""

from __future__ import annotations

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from lora_ga_cli.errors import DamagedFile
from lora_ga_cli.files import atomic_folder, file_sizes, sha256_file
from lora_ga_cli.json_files import read_json, write_json
from lora_ga_cli.stores import FolderStore, Notify

if TYPE_CHECKING:
    from datasets.arrow_dataset import Dataset

    from lora_ga_cli.data.split import Split

ROWS_FILE = "rows.arrow"
MANIFEST_FILE = "manifest.json"
FORMAT = 3
Rows = TypeVar("Rows")
"""Rows as a store gives them back."""


class Damaged(Exception):
    """Stored rows whose files are incomplete or changed; the message says what is wrong with them."""


@dataclass(frozen=True)
class StoredRows:
    """A tokenized split as it is stored: `Split` without its form.

    Args:
        source: what the rows were read from when they were stored, for people.
        sha256: `rows_hash` of the rows.
        label_names: for a classifier the names of the classes in the order of their numbers, else None.
    """

    rows: Dataset
    skipped: dict[str, int]
    truncated: int
    source: str
    sha256: str
    label_names: list[str] | None
    read_rows: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowsEntry:
    """Stored rows, as their manifest describes them."""

    key: str
    path: Path
    name: str
    rows: int
    size: int
    """Bytes on disk."""
    created: float
    """Seconds since the epoch."""
    source: str
    """What the rows were read from, for people."""
    damage: str = ""
    """What is wrong with it; empty if no damage is known."""


class StoreOfRows(FolderStore, ABC):
    """Folders by content, each with rows in a file of Arrow and a manifest: ``root/<kind>/<key>``.

    Args:
        root: the folder of the cache.
        notify: receives messages for the user: that it waits, that stored rows are damaged.
        shared: the folder of a cache that is only read.
    """

    kind: ClassVar[str]

    def __init__(self, root: Path, notify: Notify = print, shared: Path | None = None):
        super().__init__(root / self.kind, shared / self.kind if shared is not None else None)
        self.cache = root, shared
        self.memo = root / "digests.json"
        self.notify = notify

    def loaded(self, key: str, load: Callable[[Path], Rows]) -> Rows | None:
        """The first entry that is stored and whole. A damaged one that may only be read is named."""
        for folder in self.places(key):
            try:
                return load(folder)
            except Damaged as error:
                if folder != self.path(key):  # or it is looked at again when this process may replace it
                    where = "in a cache that may only be read"
                    self.notify(f"stored rows {where} are damaged and are made again ({error})")
        return None

    def entries(self) -> Iterator[RowsEntry]:
        """All stored rows, newest first."""
        yield from sorted((entry_of(folder) for folder in self.stored()), key=lambda entry: -entry.created)

    def verify(self) -> Iterator[RowsEntry]:
        """All stored rows, with their bytes checked against their manifests."""
        for entry in self.entries():
            try:
                self.check(entry.path)
                yield entry
            except Damaged as error:
                yield dataclasses.replace(entry, damage=str(error))

    @abstractmethod
    def check(self, folder: Path) -> None:
        """Reads the rows of a folder.

        Raises:
            Damaged: a file is missing, is not what was written, or cannot be read.
        """


class RowStore(StoreOfRows):
    """Tokenized splits by key."""

    kind = "rows"

    def claim(self, key: str, claims: contextlib.ExitStack) -> StoredRows | None:
        """The rows of a key. If they are not stored, or damaged, this process may make them until ``claims`` ends.

        Another process that asks for the same rows waits until then.
        """
        if (found := self.loaded(key, load)) is not None:
            return found
        try:
            waiting = "another process is tokenizing these rows; waiting for it"
            claims.enter_context(self.claimed(key, self.notify, waiting))
        except OSError:
            return None  # what cannot be written here is reported when the rows are made
        if not self.path(key).is_dir():
            return None
        try:
            return load(self.path(key))
        except Damaged as error:
            self.notify(f"stored rows are damaged and are made again ({error})")
            return None

    def keep(self, key: str, split: Split, label_names: list[str] | None) -> Split:
        """Stores a split, in the place of a damaged one if there is one.

        Returns:
            The split with its rows on the disk; unchanged, with a message, if it cannot be stored.
        """
        manifest = {
            "format": FORMAT,
            "name": split.name,
            "source": split.source,
            "rows": len(split.rows),
            "rows_sha256": split.sha256,
            "skipped": split.skipped,
            "truncated": split.truncated,
            "label_names": label_names,
            "read_rows": split.read_rows,
            "notes": list(split.notes),
        }
        try:
            with atomic_folder(self.path(key)) as folder:
                _write(split.rows, folder / ROWS_FILE)
                digest = sha256_file(folder / ROWS_FILE)
                write_json(folder / MANIFEST_FILE, manifest | {"file_sha256": digest}, digest=True)
        except OSError as error:
            self.notify(f"tokenized rows cannot be stored in {self.folder}: {error.strerror or error}")
            return split
        kept = dataclasses.replace(split, rows=_mapped(self.path(key) / ROWS_FILE))
        kept.remember(split.sha256)
        return kept

    def check(self, folder: Path) -> None:
        load(folder)


def load(folder: Path) -> StoredRows:
    """Stored rows; the file is memory-mapped.

    Raises:
        Damaged: a file is missing, is not what was written, or cannot be read.
    """
    try:
        manifest = read_json(folder / MANIFEST_FILE)
        if sha256_file(folder / ROWS_FILE) != manifest["file_sha256"]:
            raise Damaged(f"{folder / ROWS_FILE} is not what was written")
        rows = _mapped(folder / ROWS_FILE)
        if len(rows) != manifest["rows"]:
            raise Damaged(f"{folder / ROWS_FILE} holds {len(rows)} rows, not {manifest['rows']}")
        return StoredRows(
            rows,
            manifest["skipped"],
            manifest["truncated"],
            manifest["source"],
            manifest["rows_sha256"],
            manifest["label_names"],
            manifest["read_rows"],
            tuple(manifest["notes"]),
        )
    except DamagedFile as error:
        raise Damaged(str(error)) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{folder}: {type(error).__name__}: {error}") from error


def _mapped(file: Path) -> Dataset:
    from datasets.arrow_dataset import Dataset

    return Dataset.from_file(str(file))


def _write(rows: Dataset, file: Path) -> None:
    from pyarrow.ipc import new_stream

    table: Any = rows.data.table
    with file.open("wb") as stream, new_stream(stream, table.schema) as writer:
        writer.write_table(table)


def entry_of(folder: Path) -> RowsEntry:
    """Stored rows as their manifest describes them; the rows are not read."""
    size, created = sum(file_sizes(folder).values()), folder.stat().st_mtime
    try:
        manifest = read_json(folder / MANIFEST_FILE)
        name, rows, source = str(manifest["name"]), int(manifest["rows"]), str(manifest["source"])
        return RowsEntry(folder.name, folder, name, rows, size, created, source)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return RowsEntry(folder.name, folder, "?", 0, size, created, "?", f"no readable manifest ({error})")
