"""Files of every format: rows, their places, and the message about a broken one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from lora_ga_cli.data.local import files_faults, listed, read_files, same_file
from lora_ga_cli.data.source import FileRows
from lora_ga_cli.errors import DataError

Write = Callable[..., str]


def read(*files: str, names: list[str] | None = None, bad: Literal["error", "skip"] = "error") -> FileRows:
    return read_files(files, column_names=names, on_bad_row=bad)


def rows_of(source: FileRows) -> list[dict[str, Any]]:
    return source.take(range(len(source)), source.columns)


def faults_of(*files: str, **options: Any) -> list[str]:
    """The faults as a person reads them, with the test's folder left out."""
    with pytest.raises(DataError) as error:
        read(*files, **options)
    folder = str(Path(files[0]).parent) + "/"
    return [str(fault).replace(folder, "") for fault in error.value.faults]


TWO = [{"q": "a", "n": 1}, {"q": "é", "n": 2}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", '{"q": "a", "n": 1}\n\n{"q": "é", "n": 2}'),
        ("d.jsonl.gz", '\ufeff{"q": "a", "n": 1}\r\n{"q": "é", "n": 2}\r\n'),
        ("d.json", '[{"q": "a", "n": 1},\n {"q": "é", "n": 2}]'),
        ("d.json.gz", '\ufeff{"version": 2, "data": [{"q": "a", "n": 1}, {"q": "é", "n": 2}]}'),
        ("D.JSONL", '{"q": "a", "n": 1}\n{"q": "é", "n": 2}\n'),
    ],
)
def test_json_in_its_forms(write: Write, name: str, content: str) -> None:
    assert rows_of(read(write(name, content))) == TWO


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.csv", 'q,n\n"a",1\n"é",2\n'),
        ("d.csv.gz", "\ufeffq,n\r\na,1\r\né,2"),
        ("d.tsv", "q\tn\na\t1\n\né\t2\n"),
        ("d.tsv.gz", "\ufeffq\tn\r\na\t1\r\né\t2"),
    ],
)
def test_tables_in_their_forms(write: Write, name: str, content: str) -> None:
    assert rows_of(read(write(name, content))) == [{"q": "a", "n": "1"}, {"q": "é", "n": "2"}]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = str(tmp_path / "d.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(TWO), path)
    source = read(path)
    assert rows_of(source) == TWO
    assert source.where(1) == f"{path}:row 2"


def test_quotes_are_literal_in_tsv_and_quote_in_csv(write: Write) -> None:
    tsv = read(write("d.tsv", 'a\tb\n"He\tsaid ""so"\n'))
    csv = read(write("d.csv", 'a,b\n"He, there","said ""so"""\n'))
    assert rows_of(tsv) == [{"a": '"He', "b": 'said ""so"'}]
    assert rows_of(csv) == [{"a": "He, there", "b": 'said "so"'}]


def test_a_csv_row_may_span_lines_and_is_found_by_its_first(write: Write) -> None:
    source = read(write("d.csv", 'a,b\n"1\r\n2",x\n3,y\n'))
    assert rows_of(source) == [{"a": "1\r\n2", "b": "x"}, {"a": "3", "b": "y"}]
    assert [source.where(0).rsplit(":")[-1], source.where(1).rsplit(":")[-1]] == ["2", "4"]


def test_a_long_csv_field_is_read_and_the_modules_limit_put_back(write: Write) -> None:
    import csv

    before = csv.field_size_limit()
    (row,) = rows_of(read(write("d.csv", f"a\n{'x' * 200_000}\n")))
    assert len(row["a"]) == 200_000
    assert csv.field_size_limit() == before


def test_only_a_line_feed_ends_a_line(write: Write) -> None:
    """Unicode's other separators stand in real texts, and str.splitlines would cut there."""
    text = "a\u2028b\x85c\x0cd"
    assert rows_of(read(write("d.tsv", f"q\n{text}\n"))) == [{"q": text}]
    assert rows_of(read(write("d.jsonl", '{"q": "' + text.replace("\x0c", "") + '"}'))) == [{"q": "a\u2028b\x85cd"}]


@pytest.mark.parametrize(("content", "sign"), [("q;a\n1;2\n", "semicolons"), ("q\ta\n1\t2\n", "tabs")])
def test_another_separator_than_the_comma_is_named(write: Write, content: str, sign: str) -> None:
    (fault,) = faults_of(write("d.csv", content))
    assert fault.startswith("d.csv:1: the header ")
    assert f"{sign} stand between its names (the separator of .csv is a comma" in fault


def test_a_file_without_header_takes_column_names(write: Write) -> None:
    source = read(write("d.tsv", "x\t1\ny\t2\n"), names=["q", "n"])
    assert rows_of(source) == [{"q": "x", "n": "1"}, {"q": "y", "n": "2"}]


def test_several_files_follow_each_other_and_keep_their_places(write: Write) -> None:
    one, two = write("a.jsonl", '\n{"q": "x"}\n{"q": "y"}\n'), write("b.csv", "q,r\nz,1\n")
    source = read(one, two)
    assert source.columns == ["q", "r"]
    assert rows_of(source) == [{"q": "x"}, {"q": "y"}, {"q": "z", "r": "1"}]
    assert [source.where(i) for i in range(3)] == [f"{one}:2", f"{one}:3", f"{two}:2"]


BROKEN = [
    ("d.jsonl", b'{"q": 1}\n{"q": 1\n', "d.jsonl:2: not JSON: a comma is missing at column 8"),
    ("d.jsonl", b'{"q": 1}\n\n[1]\n', "d.jsonl:3: a JSON list, where an object with the columns is wanted"),
    ("d.jsonl", b'{"q": 1}\n"x"\n', "d.jsonl:2: a JSON string, where an object with the columns is wanted"),
    ("d.jsonl", b'{"q": 1}\n{"q": "\xff"}\n', "d.jsonl:2: not UTF-8: byte 0xff at position 8"),
    ("d.jsonl", b'{"q": 1}\n{"q": ' + b"[" * 100_000 + b"\n", "d.jsonl:2: not JSON: "),
    ("d.json", b'[{"q": 1}, 7]', "d.json:row 2: a JSON number, where an object with the columns is wanted"),
    ("d.tsv", b"a\tb\n1\t2\n1\t2\t3\n", "d.tsv:3: 3 fields where 2 columns are expected"),
    ("d.tsv", b"a\tb\n1\t2\n1\n", "d.tsv:3: 1 field where 2 columns are expected"),
    ("d.tsv", b"a\tb\n1\t2\nx\t\xe9\n", "d.tsv:3: not UTF-8: byte 0xe9 at position 3"),
    ("d.csv", b'a,b\n1,2\n"1\n1"\n', "d.csv:3: 1 field where 2 columns are expected (the row ends on line 4)"),
    ("d.csv", b"a,b\n1,2\n1,\xe9\n", "d.csv:3: not UTF-8: byte 0xe9 at position 3"),
    ("d.csv", b'a,b\n1,2\n"1"x,2\n', "d.csv:3: not CSV: ',' expected after '\"'"),
]


@pytest.mark.parametrize(("name", "content", "fault"), BROKEN)
def test_a_malformed_row_is_named_by_its_line_with_the_fix(write: Write, name: str, content: bytes, fault: str) -> None:
    (message,) = faults_of(write(name, content))
    assert message.startswith(fault)
    assert message.endswith("(fix them, or dataset.on_bad_row=skip leaves such rows out and counts them)")


@pytest.mark.parametrize(("name", "content", "fault"), BROKEN)
def test_or_skipped_and_counted(write: Write, name: str, content: bytes, fault: str) -> None:
    source = read(write(name, content), bad="skip")
    assert (len(source), source.malformed) == (1, 1)
    place, _, reason = fault.partition(": ")
    assert any(
        f"{place}: skipped, the first malformed row: {reason.partition(' (fix')[0]}" in note for note in source.notes
    )


def test_the_rows_after_a_malformed_one_keep_their_lines(write: Write) -> None:
    source = read(write("d.csv", b'a,b\n\xff,"\n"\n1,2\n'), bad="skip")
    assert rows_of(source) == [{"a": "1", "b": "2"}]
    assert source.where(0).endswith("d.csv:4")


def test_all_faults_are_counted_and_ten_are_shown(write: Write) -> None:
    messages = faults_of(write("d.jsonl", "{\n" * 13), write("e.tsv", "a\tb\n1\n"))
    assert len(messages) == 12
    assert messages[9].startswith("d.jsonl:10: ")
    assert messages[10].startswith("d.jsonl: and 3 more of the same kind (fix them, ")
    assert messages[11].startswith("e.tsv:2: ")


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("d.jsonl", b"", "d.jsonl: holds no rows"),
        ("d.tsv", b"a\tb\n", "d.tsv: holds no rows"),
        ("d.csv", b"\n\n", "d.csv: holds no rows"),
        ("d.json", b"[]", "d.json: holds no rows"),
        ("d.json", b'[{"q": 1},\n{"q" 2}]', "d.json:2: not JSON: a colon is missing at column 6"),
        (
            "d.json",
            b'{"q": 1}\n{"q": 2}',
            "d.json:2: not JSON: the text goes on after the end at column 1 (one object a line is the format .jsonl)",
        ),
        (
            "d.json",
            b'{"a": [], "b": []}',
            "d.json: an object that holds the lists a, b: a list of objects, or an object that holds one list, "
            "is wanted",
        ),
        (
            "d.json",
            b'{"a": 1}',
            "d.json: an object that holds no list: a list of objects, or an object that holds one list, is wanted",
        ),
        ("d.json", b"3", "d.json: a JSON number: a list of objects, or an object that holds one list, is wanted"),
        ("d.json", b'[{"q":\n"\xff"}]', "d.json:2: not UTF-8: byte 0xff"),
        (
            "d.csv",
            b"a,a\n1,2\n",
            "d.csv:1: the header names 'a' twice (a file without a header line takes dataset.column_names)",
        ),
        ("d.tsv", b"\xff\n1\n", "d.tsv:1: the header line is malformed: not UTF-8: byte 0xff at position 1"),
        ("d.parquet", b"no", "d.parquet: not a Parquet file that can be read"),
    ],
)
def test_a_file_that_cannot_serve_at_all(write: Write, name: str, content: bytes, fault: str) -> None:
    (message,) = faults_of(write(name, content), bad="skip")
    assert message.startswith(fault)


def test_a_quote_that_never_closes_is_no_row_to_skip(write: Write) -> None:
    """It swallows the rest of the file: counting that as one bad row would hide the loss."""
    (message,) = faults_of(write("d.csv", 'a,b\n1,2\n"3,4\n5,6\n7,8\n'), bad="skip")
    assert message == "d.csv:3: a quote that opens in this row is never closed (double a literal quote)"


def test_nothing_but_malformed_rows_is_an_error_even_when_they_are_skipped(write: Write) -> None:
    assert faults_of(write("d.jsonl", "{\n{\n"), bad="skip") == ["d.jsonl: none of its 2 rows can be read"]


def test_column_names_of_another_number_than_the_fields(write: Write) -> None:
    path = write("d.tsv", "1\t2\t3\n4\t5\t6\n")
    (message,) = faults_of(path, names=["a", "b"])
    assert message == "dataset.column_names: 2 names, and the file's first row has 3 fields (d.tsv:1)"


def test_a_damaged_gzip_file(write: Write, tmp_path: Path) -> None:
    path = Path(write("d.jsonl.gz", '{"q": 1}\n' * 1000))
    path.write_bytes(path.read_bytes()[:-12])
    (message,) = faults_of(str(path))
    assert message.startswith("d.jsonl.gz: damaged gzip file: ")
    (tmp_path / "e.jsonl.gz").write_bytes(b"plain")
    (message,) = faults_of(str(tmp_path / "e.jsonl.gz"))
    assert message.startswith("e.jsonl.gz: damaged gzip file: Not a gzipped file")


def test_files_are_checked_before_any_is_read(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", "{}")
    write("notes.txt", "")
    write("nosuch.csv", "")  # of another format
    (tmp_path / "f.csv").mkdir()
    write("f.csv/a.jsonl", "{}")
    names = ["trian.jsonl", "nosuch.jsonl", "notes.txt", "train.josnl", "d.parquet.gz", "plain", "f.csv", "train.jsonl"]
    faults = files_faults([str(tmp_path / name) for name in names], ["a", "a"])
    messages = [str(fault).replace(f"{tmp_path}/", "") for fault in faults]
    known = "known: .jsonl, .json, .csv, .tsv, .parquet, the text formats also .gz and .zst"
    assert messages == [
        "trian.jsonl: no such file (did you mean train.jsonl?)",
        "nosuch.jsonl: no such file",
        f"notes.txt: no reader for the extension '.txt' ({known})",
        f"train.josnl: no reader for the extension '.josnl' (did you mean .jsonl? {known})",
        f"d.parquet.gz: no reader for the extension '.parquet.gz' ({known})",
        f"plain: no extension, which tells the format ({known})",
        "f.csv: is a folder (its files are f.csv/*.jsonl)",
        "dataset.column_names: names the columns of a .csv or .tsv file, and train.jsonl names its columns itself "
        "(dataset.columns={new: old} renames)",
        "dataset.column_names: 'a' stands there twice",
    ]
    (fault,) = files_faults([str(tmp_path / "nowhere" / "d.csv")], None)
    assert str(fault).endswith(f"no such file (there is no folder {tmp_path}/nowhere)")


def test_a_copy_of_a_file_is_found_by_its_content(write: Write) -> None:
    train, copy, other = (write(f"{name}.jsonl", text) for name, text in (("t", "{}"), ("c", "{}"), ("o", "[]")))
    assert same_file([other, copy], [train]) == (copy, train)
    assert same_file([other], [train]) is None


def test_a_pattern_stands_for_all_files_that_it_matches_sorted(write: Write, tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("b.jsonl", "a.jsonl", "c.csv", "deep/d.jsonl", "deep/er/e.jsonl", ".hidden.jsonl"):
        write(name, "")

    def found(*patterns: str) -> list[str]:
        return [name.removeprefix(f"{tmp_path}/") for name in listed([f"{tmp_path}/{name}" for name in patterns])]

    assert found("*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert found("c.csv", "[ab].jsonl") == ["c.csv", "a.jsonl", "b.jsonl"]
    assert found("deep/**/*.jsonl") == ["deep/d.jsonl", "deep/er/e.jsonl"]
    assert found("*.tsv") == ["*.tsv"]


def test_brackets_in_the_name_of_a_file_are_no_pattern(write: Write) -> None:
    write("d1.jsonl", "")
    path = write("d[1].jsonl", "")
    assert listed(path) == [path]


def test_a_pattern_that_matches_nothing_and_a_folder_are_faults(write: Write, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("data/a.jsonl.zst", "data/b.jsonl.zst", "data/notes.md"):
        write(name, "")
    names = [str(tmp_path / name) for name in ("*.csv", "nowhere/*.csv")]
    messages = [str(fault).replace(f"{tmp_path}/", "") for fault in files_faults([*names, f"{tmp_path}/data/"], None)]
    assert messages == [
        "*.csv: matches no file",
        f"nowhere/*.csv: matches no file (there is no folder {tmp_path}/nowhere)".replace(f"{tmp_path}/", ""),
        "data/: is a folder (its files are data/*.jsonl.zst)",
    ]


def test_bundled_files_are_found_in_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write: Write) -> None:
    monkeypatch.setattr("lora_ga_cli.paths.ASSETS", tmp_path)
    write("d.jsonl", '{"q": 1}')
    assert files_faults(["bundled:d.jsonl"], None) == []
    assert read("bundled:d.jsonl").where(0) == "bundled:d.jsonl:1"
    (fault,) = files_faults(["bundled:dd.jsonl"], None)
    assert str(fault) == "bundled:dd.jsonl: no such file (did you mean d.jsonl?)"
