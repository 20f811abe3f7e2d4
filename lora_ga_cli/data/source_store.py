"""The store of rows as they were read, before they become examples: by the content that they were read from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_ga_cli.data.arrow import Spool, mapped
from lora_ga_cli.data.store import MANIFEST_FILE, ROWS_FILE, Damaged, StoreOfRows
from lora_ga_cli.errors import DamagedFile, DataError, system_fault
from lora_ga_cli.files import atomic_folder, sha256_file
from lora_ga_cli.json_files import read_json, write_json

if TYPE_CHECKING:
    import pyarrow.lib as pa

FORMAT = 1


@dataclass(frozen=True)
class ReadRows:
    """The rows of one file, or of a stream.

    Args:
        batches: the rows as record batches, see `ArrowRows`.
        columns: all columns that occur.
        malformed: rows that were left out on reading.
        notes: what a user should know about how they were read.
        class_names: names of the classes by column, where the source has them.
    """

    batches: Sequence[pa.RecordBatch]
    columns: list[str]
    malformed: int = 0
    notes: list[str] = field(default_factory=list)
    class_names: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(batch.num_rows for batch in self.batches)


class SourceStore(StoreOfRows):
    """Rows as they were read, by key."""

    kind = "sources"

    def rows(
        self, key: str, source: str, read: Callable[[Spool], ReadRows], unchanged: Callable[[], bool] = lambda: True
    ) -> ReadRows:
        """The rows of a key, read now if they are not stored.

        Another process that asks for the same rows waits until they are.

        Args:
            source: what they are read from, for people.
            read: reads them into a spool. What it cannot read it raises as a `DataError`.
            unchanged: whether what was read is still what the key says; otherwise it is not stored.

        Raises:
            DataError: they cannot be read, or the store cannot be written.
        """
        if (found := self.loaded(key, load)) is not None:
            return found
        with contextlib.ExitStack() as claims:
            try:
                waiting = f"another process is reading {source}; waiting for it"
                claims.enter_context(self.claimed(key, self.notify, waiting))
            except OSError as error:
                self.notify(f"rows cannot be stored in {self.folder}: {error.strerror or error}")
                return read(Spool(None))
            if self.path(key).is_dir():
                try:
                    return load(self.path(key))
                except Damaged as error:
                    self.notify(f"stored rows are damaged and are read again ({error})")
            try:
                return self._kept(key, source, read, unchanged)
            except OSError as error:
                raise DataError([system_fault("cache_dir", self.folder, error)]) from error

    def _kept(
        self, key: str, source: str, read: Callable[[Spool], ReadRows], unchanged: Callable[[], bool]
    ) -> ReadRows:
        with contextlib.suppress(_NotKept), atomic_folder(self.path(key)) as folder:
            file = (folder / ROWS_FILE).open("w+b")  # its rows are mapped as long as they are used
            rows = read(Spool(self.folder, 0, file))
            if not len(rows) or not unchanged():
                raise _NotKept
            manifest = {
                "format": FORMAT,
                "name": "",
                "source": source,
                "rows": len(rows),
                "columns": rows.columns,
                "malformed": rows.malformed,
                "notes": rows.notes,
                "class_names": rows.class_names,
                "file_sha256": sha256_file(folder / ROWS_FILE),
            }
            write_json(folder / MANIFEST_FILE, manifest, digest=True)
        return rows

    def check(self, folder: Path) -> None:
        load(folder)


class _NotKept(Exception):
    """There are no rows, or what was read is no longer what the key says."""


def load(folder: Path) -> ReadRows:
    """Stored rows; the file is memory-mapped.

    Raises:
        Damaged: a file is missing, is not what was written, or cannot be read.
    """
    try:
        manifest: dict[str, Any] = read_json(folder / MANIFEST_FILE)
        if sha256_file(folder / ROWS_FILE) != manifest["file_sha256"]:
            raise Damaged(f"{folder / ROWS_FILE} is not what was written")
        with (folder / ROWS_FILE).open("rb") as file:
            batches = mapped(file)
        return ReadRows(batches, manifest["columns"], manifest["malformed"], manifest["notes"], manifest["class_names"])
    except DamagedFile as error:
        raise Damaged(str(error)) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{folder}: {type(error).__name__}: {error}") from error
