"""Rows of large files, which are kept in the cache by the files' content."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.data.local import read_files
from lora_ga_cli.data.source import FileRows
from lora_ga_cli.data.source_store import SourceStore
from lora_ga_cli.data.store import MANIFEST_FILE, ROWS_FILE
from lora_ga_cli.errors import DataError

ROWS = [{"q": f"question {number}", "n": number} for number in range(3000)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture(autouse=True)
def _every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_ga_cli.data.local.SMALL", 0)


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, notes: list[str]) -> SourceStore:
    return SourceStore(tmp_path / "cache", notes.append)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "d.jsonl"
    path.write_text(LINES)
    os.utime(path, (1, 1))  # the hash of a file that has just changed is not remembered
    return path


def read(file: Path, store: SourceStore, **options: Any) -> FileRows:
    return read_files([str(file)], **{"column_names": None, "on_bad_row": "error", **options}, store=store)


def rows_of(source: FileRows) -> list[dict[str, Any]]:
    return source.take(range(len(source)), source.columns)


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the file was read")

    monkeypatch.setattr("lora_ga_cli.data.local.read_batches", fail)


def test_a_file_is_read_and_checked_once(file: Path, store: SourceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(file, store)
    forbid_reading(monkeypatch)
    again = read(file, store)
    assert rows_of(first) == rows_of(again) == ROWS
    assert again.columns == first.columns == ["q", "n"]
    assert [again.where(index) for index in (0, 2999)] == [f"{file}:1", f"{file}:3000"]
    (entry,) = store.entries()
    assert (entry.rows, entry.source, entry.damage) == (3000, str(file), "")


def test_its_name_does_not_matter(file: Path, store: SourceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read(file, store)
    forbid_reading(monkeypatch)
    moved = file.rename(file.with_name("moved.jsonl"))
    assert read(moved, store).where(4) == f"{moved}:5"


def test_one_byte_does(file: Path, store: SourceStore) -> None:
    read(file, store)
    file.write_text(LINES.replace("question 7", "question 8", 1))
    assert read(file, store).take([7], ["q"]) == [{"q": "question 8"}]
    assert len(list(store.entries())) == 2


def test_what_was_skipped_is_told_again_and_is_an_error_where_it_has_to_be(file: Path, store: SourceStore) -> None:
    file.write_text(LINES + "oops\n")
    for _ in range(2):
        assert read(file, store, on_bad_row="skip").malformed == 1
    with pytest.raises(DataError, match=r"d\.jsonl:3001: not JSON"):
        read(file, store)


def test_rows_with_errors_are_not_kept(file: Path, store: SourceStore) -> None:
    file.write_text(LINES + "oops\n")
    with pytest.raises(DataError):
        read(file, store)
    assert list(store.entries()) == []
    assert store.leftovers() == []


@pytest.mark.parametrize("name", [ROWS_FILE, MANIFEST_FILE])
def test_damaged_rows_are_read_again(name: str, file: Path, store: SourceStore, notes: list[str]) -> None:
    read(file, store)
    (entry,) = store.entries()
    damaged = entry.path / name
    damaged.write_bytes(damaged.read_bytes()[:-20])
    assert [bool(entry.damage) for entry in store.verify()] == [True]
    assert rows_of(read(file, store)) == ROWS
    assert len(notes) == 1
    assert "damaged" in notes[0]
    assert [entry.damage for entry in store.verify()] == [""]


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    file: Path, store: SourceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_ga_cli.data import local

    def changing(*arguments: Any) -> Any:
        yield from read_batches(*arguments)
        file.write_text(LINES * 2)

    read_batches = local.read_batches
    monkeypatch.setattr(local, "read_batches", changing)
    assert rows_of(read(file, store)) == ROWS
    assert list(store.entries()) == []


def test_a_cache_that_cannot_be_written_stops_nothing(file: Path, tmp_path: Path, notes: list[str]) -> None:
    (tmp_path / "cache").touch()
    assert rows_of(read(file, SourceStore(tmp_path / "cache", notes.append))) == ROWS


def test_column_names_are_part_of_the_key(tmp_path: Path, store: SourceStore) -> None:
    path = tmp_path / "d.csv"
    path.write_text("a,b\n1,2\n")
    assert read(path, store).columns == ["a", "b"]
    assert read(path, store, column_names=["x", "y"]).columns == ["x", "y"]


def test_parquet_keeps_its_types(tmp_path: Path, store: SourceStore) -> None:
    import pyarrow.lib as pa
    import pyarrow.parquet

    rows = [{"t": b"\x00", "n": [number], "s": None} for number in range(2500)]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")  # type: ignore[no-untyped-call]
    for _ in range(2):
        source = read(tmp_path / "d.parquet", store)
        assert rows_of(source) == rows
        assert source.where(2400).endswith("d.parquet:row 2401")
