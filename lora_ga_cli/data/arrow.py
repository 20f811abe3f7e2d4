"""Rows as Arrow record batches: in memory while they are few, otherwise in a file that is mapped into memory.

Memory does not grow with the number of rows of a mapped file: the system reads its pages when they are used, and takes
them back when it needs room.
"""

from __future__ import annotations

import bisect
import json
import mmap
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast, overload

from lora_ga_cli.errors import DataError, system_fault

if TYPE_CHECKING:
    import pyarrow.lib as pa

Row = dict[str, Any]
SMALL = 2**24
"""Bytes of rows that stay in memory."""
BATCH = 1000
"""Rows of a record batch."""
BATCH_BYTES = 2**22
"""Bytes after which a record batch of JSON rows is complete, though it may have fewer rows."""
ROW, PLACE = "row", "place"
JSON_ROWS = {b"loraga.rows": b"json"}
"""Metadata of batches whose rows are JSON objects in one column. Rows of a text file may differ in their columns and
types, which typed columns cannot hold."""


class Spool:
    """Record batches that are collected one after another.

    Args:
        folder: the folder of the cache, in which a file takes the batches when they become many. The file has no name,
            so that nothing is left of it when the process ends. None keeps all batches in memory.
        limit: bytes that stay in memory.
        file: an open file to write into, instead of one without a name.
    """

    def __init__(self, folder: Path | None, limit: int = SMALL, file: BinaryIO | None = None):
        self._folder, self._limit = folder, limit
        self._given = file
        self._batches: list[pa.RecordBatch] = []
        self._size = 0
        self._file: BinaryIO | None = None
        self._writer: Any = None

    def add(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Adds batches, all of which have one schema.

        Raises:
            DataError: the file cannot be written.
        """
        for batch in batches:
            if self._writer is not None:
                self._write(batch)
                continue
            self._batches.append(batch)
            self._size += batch.nbytes
            if self._folder is not None and self._size > self._limit:
                self._spill(self._folder)

    def finish(self) -> list[pa.RecordBatch]:
        """All batches; those of a file are mapped into memory, and need the file as long as they are used."""
        if self._writer is None:
            return self._batches
        assert self._file is not None
        try:
            self._writer.close()
            self._file.flush()
        except OSError as error:
            raise DataError([system_fault("cache_dir", self._folder, error)]) from error
        return mapped(self._file)

    def _write(self, batch: pa.RecordBatch) -> None:
        try:
            self._writer.write_batch(batch)
        except OSError as error:
            raise DataError([system_fault("cache_dir", self._folder, error)]) from error

    def _spill(self, folder: Path) -> None:
        from pyarrow.ipc import new_stream

        try:
            self._file = self._given or _unnamed_file(folder)
        except OSError:
            self._folder = None  # a cache that cannot be written stops no run: the rows stay in memory
            return
        self._writer = new_stream(self._file, self._batches[0].schema)
        batches, self._batches = self._batches, []
        self.add(batches)


def _unnamed_file(folder: Path) -> BinaryIO:
    folder.mkdir(parents=True, exist_ok=True)
    return cast(BinaryIO, tempfile.TemporaryFile(dir=folder))  # it is open as long as its rows are used


def mapped(file: BinaryIO) -> list[pa.RecordBatch]:
    """The record batches of an open Arrow stream file, mapped into memory."""
    import pyarrow.lib as pa
    from pyarrow.ipc import open_stream

    # the map is of the open file, which may have no name any more
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with open_stream(pa.py_buffer(content)) as stream:
        return list(stream)


def json_batches(
    rows: Iterable[tuple[int, Row]], default: Callable[[Any], Any] | None = None
) -> Iterator[pa.RecordBatch]:
    """Record batches of rows with their places, each row as a JSON object.

    Args:
        default: what to write for a value that JSON does not have.
    """
    import pyarrow.lib as pa

    types = pa.schema([(ROW, pa.large_binary()), (PLACE, pa.int64())], metadata=JSON_ROWS)
    texts: list[bytes] = []
    places: list[int] = []
    size = 0
    for place, row in rows:
        # half of a surrogate pair, which JSON can escape, is kept for the message about it
        text = json.dumps(row, ensure_ascii=False, default=default).encode("utf-8", "surrogatepass")
        texts.append(text)
        places.append(place)
        size += len(text)
        if len(texts) == BATCH or size > BATCH_BYTES:
            yield pa.record_batch([texts, places], schema=types)
            texts, places, size = [], [], 0
    if texts:
        yield pa.record_batch([texts, places], schema=types)


class ArrowRows(Sequence[Row]):
    """Rows of record batches, by number from 0.

    Args:
        files: the record batches of every file. Files may have different columns.
    """

    def __init__(self, files: Sequence[Sequence[pa.RecordBatch]]):
        self._batches = [batch for batches in files for batch in batches]
        self._json = [has_json(batch) for batch in self._batches]
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))
        self._in_file = [
            before for batches in files for before in accumulate([0, *(batch.num_rows for batch in batches[:-1])])
        ]
        """Rows of the same file that are before a batch."""

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        return self.take([index])[0]

    def take(self, indices: Iterable[int], columns: Sequence[str] | None = None) -> list[Row]:
        """Rows by number.

        Args:
            columns: only these; None for all. A column that a row does not have is absent.
        """
        wanted = None if columns is None else set(columns)
        return [self._row(index, wanted) for index in indices]

    def place(self, index: int) -> int:
        """Where a row is in its file, from 1: the line if the file has lines, otherwise the row's number."""
        number, inside = self._find(index)
        if self._json[number]:
            return int(self._batches[number].column(PLACE)[inside].as_py())
        return self._in_file[number] + inside + 1

    def _row(self, index: int, wanted: set[str] | None) -> Row:
        number, inside = self._find(index)
        batch = self._batches[number]
        if self._json[number]:
            row = json.loads(batch.column(ROW)[inside].as_py().decode("utf-8", "surrogatepass"))
            return row if wanted is None else {name: value for name, value in row.items() if name in wanted}
        names = [name for name in batch.schema.names if wanted is None or name in wanted]
        return {name: batch.column(name)[inside].as_py() for name in names}

    def _find(self, index: int) -> tuple[int, int]:
        """The number of the batch, and the row's number in it."""
        place = index if index >= 0 else len(self) + index
        if not 0 <= place < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._ends, place)
        return number, place - (self._ends[number - 1] if number else 0)


def has_json(batch: pa.RecordBatch) -> bool:
    """Whether the rows of a batch are JSON objects in one column."""
    return JSON_ROWS.items() <= (batch.schema.metadata or {}).items()
