"""Rows as record batches: what comes out is what went in, from memory and from a file."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pyarrow.lib as pa
import pytest

from lora_ga_cli.data.arrow import ArrowRows, Spool, json_batches
from lora_ga_cli.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"a": "x", "b": 1},
    {"a": 2.5, "b": None},
    {},
    {"b": [{"deep": True}], "c": "\ud800 half of a pair"},
    {"a": 10**30, "b": float("inf")},
]


def spooled(spool: Spool, count: int) -> list[pa.RecordBatch]:
    spool.add(json_batches((number + 1, {"n": number}) for number in range(count)))
    return spool.finish()


def files_of(batches: Sequence[pa.RecordBatch]) -> ArrowRows:
    return ArrowRows([batches])


def test_rows_of_any_types_come_back_as_they_were() -> None:
    rows = files_of(list(json_batches(enumerate(ROWS, start=1))))
    assert len(rows) == len(ROWS)
    assert list(rows) == rows[:] == ROWS
    assert rows[-1] == ROWS[-1]
    assert rows.take([3, 0], ["a", "c"]) == [{"c": "\ud800 half of a pair"}, {"a": "x"}]
    with pytest.raises(IndexError):
        rows[len(ROWS)]


def test_rows_of_several_files_have_their_places() -> None:
    """A typed file, whose rows are numbered, after one whose rows have lines."""
    typed = pa.record_batch({"n": [7, 8]})
    rows = ArrowRows([list(json_batches([(2, {"n": 1}), (5, {"n": 2})])), [typed, typed]])
    assert [row["n"] for row in rows] == [1, 2, 7, 8, 7, 8]
    assert [rows.place(index) for index in range(6)] == [2, 5, 1, 2, 3, 4]


@pytest.mark.parametrize("limit", [0, 20_000, 10**9])
def test_many_rows_go_into_a_file_that_has_no_name(tmp_path: Path, limit: int) -> None:
    rows = files_of(spooled(Spool(tmp_path / "cache", limit), 5000))
    assert [row["n"] for row in rows] == list(range(5000))
    assert [rows.place(index) for index in (0, 999, 1000, 4999)] == [1, 1000, 1001, 5000]
    assert (tmp_path / "cache").exists() == (limit < 10**9)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_spool_that_gets_no_rows_has_none(tmp_path: Path) -> None:
    assert spooled(Spool(tmp_path, 0), 0) == []


def test_rows_stay_in_memory_where_no_file_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert len(files_of(spooled(Spool(tmp_path / "file", 0), 5000))) == 5000


def test_a_disk_that_becomes_full_is_named_with_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, *_: object) -> None: ...

        def write_batch(self, batch: pa.RecordBatch) -> NoReturn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pyarrow.ipc.new_stream", Full)
    with pytest.raises(DataError) as error:
        spooled(Spool(tmp_path, 0), 5000)
    assert str(error.value) == (
        f"cache_dir: {tmp_path}: no space left on device (free some space there, or give another cache_dir)"
    )
