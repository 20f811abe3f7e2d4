"""File formats: bytes in, rows out, each with its place. What is malformed is reported, never guessed.

A reader of a text format yields ``(place, row)``, or ``(place, BadRow)`` where a row is malformed and the next can
still be read. It raises `Unreadable` where nothing that follows can be trusted. Places count from 1: lines of the file,
or rows in .json and .parquet.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lora_ga_cli.data.arrow import BATCH, Row, json_batches
from lora_ga_cli.data.compression import OPENERS, DamagedFile, compression_of, opened
from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.errors import suggest
from lora_ga_cli.json_files import json_problem

if TYPE_CHECKING:
    import pyarrow.lib as pa

Records = Iterator[tuple[int, Row | BadRow]]
Names = Sequence[str] | None


class Unreadable(Exception):
    """The rest of a file cannot be read: what is wrong, on which line if the file has lines, and the next step."""

    def __init__(self, what: str, *, line: int | None = None, hint: str = "", option: str = ""):
        super().__init__(what)
        self.line = line
        self.hint = hint
        self.option = option


def format_of(path: str) -> str:
    """The format's extension without the compression's: ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet``."""
    name = path.lower()
    compression = compression_of(name)
    suffix = Path(name.removesuffix(compression)).suffix
    if suffix not in FORMATS or (compression and suffix in TYPED_READERS):
        near = suggest(suffix, FORMATS) if suffix and suffix not in FORMATS else ""
        known = f"known: {', '.join(FORMATS)}, the text formats also {' and '.join(OPENERS)}"
        shown = suffix + compression
        what = f"no reader for the extension {shown!r}" if shown else "no extension, which tells the format"
        raise Unreadable(what, hint=f"{near} {known}" if near and not near.startswith("known") else known)
    return suffix


@dataclass
class Findings:
    """What is found out about a file while it is read.

    Args:
        bad: receives every malformed row, with its place.
        columns: the columns that occur.
        notes: what a user should know about how the file is read.
    """

    bad: Callable[[int, BadRow], None]
    columns: dict[str, None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_batches(path: Path, column_names: Names, findings: Findings) -> Iterator[pa.RecordBatch]:
    """Every row of a file, by the file's extension, as record batches: typed ones, or JSON (see `json_batches`).

    Raises:
        Unreadable: the rest of the file cannot be read.
        OSError: it cannot be opened or read.
    """
    suffix = format_of(path.name)
    try:
        with opened(path) as (file, encoding):
            if encoding:
                findings.notes.append(f"is {encoding}, by its byte order mark, and is read as such")
            if suffix in TYPED_READERS:
                for batch in TYPED_READERS[suffix](file):
                    findings.columns.update(dict.fromkeys(batch.schema.names))
                    yield batch
            else:
                yield from json_batches(_good(READERS[suffix](file, column_names), findings))
    except DamagedFile as error:
        raise Unreadable(str(error), hint=error.hint) from error


def _good(records: Records, findings: Findings) -> Iterator[tuple[int, Row]]:
    for place, row in records:
        if isinstance(row, BadRow):
            findings.bad(place, row)
        else:
            findings.columns.update(dict.fromkeys(row))
            yield place, row


def _lines(file: BinaryIO, *, ends: bool = False) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, without their end unless ``ends``.

    Only ``\\n`` (or ``\\r\\n``) ends a line: a text may hold the other separators of Unicode.
    """
    for number, line in enumerate(file, start=1):
        yield number, line if ends else line.removesuffix(b"\n").removesuffix(b"\r")


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1}") from None


def _read_jsonl(file: BinaryIO, names: Names) -> Records:
    for number, line in _lines(file):
        if line.strip():
            try:
                yield number, _json_object(_text(line))
            except BadRow as bad:
                yield number, bad


def _json_object(text: str) -> Row:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"not JSON: {json_problem(error, line=False)}") from None
    return _object(value)


def _object(value: object) -> Row:
    if not isinstance(value, dict):
        raise BadRow(f"a JSON {_kind(value)}, where an object with the columns is wanted")
    return value


def _kind(value: object) -> str:
    names = {list: "list", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), "object")


def _read_json(file: BinaryIO, names: Names) -> Records:
    try:
        value = json.loads(file.read().decode("utf-8"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise Unreadable(f"not UTF-8: byte 0x{error.object[error.start]:02x}", line=line) from error
    except json.JSONDecodeError as error:
        hint = "one object a line is the format .jsonl" if error.msg == "Extra data" else ""
        raise Unreadable(f"not JSON: {json_problem(error, line=False)}", line=error.lineno, hint=hint) from error
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON: {json_problem(error)}") from error
    for number, item in enumerate(_list_in(value), start=1):
        try:
            yield number, _object(item)
        except BadRow as bad:
            yield number, bad


def _list_in(value: object) -> list[object]:
    if isinstance(value, list):
        return value
    wanted = "a list of objects, or an object that holds one list, is wanted"
    if not isinstance(value, dict):
        raise Unreadable(f"a JSON {_kind(value)}: {wanted}")
    lists = {key: item for key, item in value.items() if isinstance(item, list)}
    if len(lists) != 1:
        content = f"the lists {', '.join(lists)}" if lists else "no list"
        raise Unreadable(f"an object that holds {content}: {wanted}")
    return next(iter(lists.values()))


def _read_tsv(file: BinaryIO, names: Names) -> Records:
    """Quotes are literal and a tab always separates."""
    return _records(((number, number, _tab_fields(line)) for number, line in _lines(file) if line), names)


def _tab_fields(line: bytes) -> list[str] | BadRow:
    try:
        return _text(line).split("\t")
    except BadRow as bad:
        return bad


def _read_csv(file: BinaryIO, names: Names) -> Records:
    return _records(_with_commas(_csv_fields(file)) if names is None else _csv_fields(file), names)


def _with_commas(
    fields: Iterator[tuple[int, int, list[str] | BadRow]],
) -> Iterator[tuple[int, int, list[str] | BadRow]]:
    """The same, where the header does not look like one whose names another sign than a comma separates.

    Raises:
        Unreadable: it does.
    """
    for number, (line, last, values) in enumerate(fields):
        if number == 0 and not isinstance(values, BadRow) and len(values) == 1:
            for sign, called in ((";", "semicolons"), ("\t", "tabs")):
                parts = values[0].split(sign)
                if len(parts) > 1 and all(re.fullmatch(r"[\w .-]{1,40}", part) for part in parts):
                    what = f"the header {values[0]!r} is one column, and {called} stand between its names"
                    hint = "the separator of .csv is a comma: save it with commas" + (
                        ", or name the file .tsv" if sign == "\t" else ", or with tabs as .tsv"
                    )
                    raise Unreadable(what, line=line, hint=hint)
        yield line, last, values


def _csv_fields(file: BinaryIO) -> Iterator[tuple[int, int, list[str] | BadRow]]:
    bad_lines: dict[int, BadRow] = {}

    def decoded() -> Iterator[str]:
        for number, line in _lines(file, ends=True):
            try:
                yield _text(line)
            except BadRow as bad:
                # the reader needs a text to see where the row ends; the row itself is dropped
                bad_lines[number] = bad
                yield line.decode("utf-8", errors="replace")

    limit = csv.field_size_limit(2**31 - 1)  # the module's default of 128 KiB is less than a long document
    try:
        reader = csv.reader(decoded(), strict=True)
        while True:
            first = reader.line_num + 1
            try:
                fields: list[str] | BadRow = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end of data" in str(error):
                    # all lines since then are in doubt, so this is more than a row to skip
                    raise Unreadable(
                        "a quote that opens in this row is never closed", line=first, hint="double a literal quote"
                    ) from error
                fields = BadRow(f"not CSV: {error}")
            fields = next(
                (bad_lines.pop(line) for line in range(first, reader.line_num + 1) if line in bad_lines), fields
            )
            if isinstance(fields, BadRow) or fields:
                yield first, reader.line_num, fields
    finally:
        csv.field_size_limit(limit)


def _records(fields: Iterator[tuple[int, int, list[str] | BadRow]], names: Names) -> Records:
    """Rows of (first line, last line, fields), where the first row is the header unless ``names`` are given."""
    header = list(names) if names is not None else None
    first_row = True
    for line, last, values in fields:
        if header is None:
            if isinstance(values, BadRow):
                raise Unreadable(f"the header line is malformed: {values}", line=line)
            if twice := sorted({name for name in values if values.count(name) > 1}):
                hint = "a file without a header line takes dataset.column_names"
                raise Unreadable(f"the header names {twice[0]!r} twice", line=line, hint=hint)
            header = values
            continue
        if isinstance(values, BadRow):
            yield line, values
        elif len(values) == len(header):
            yield line, dict(zip(header, values, strict=True))
        elif names is not None and first_row:
            what = f"{_count(header, 'name')}, and the file's first row has {_count(values, 'field')}"
            raise Unreadable(what, line=line, option="dataset.column_names")
        else:
            spread = f" (the row ends on line {last})" if last > line else ""
            yield line, BadRow(f"{_count(values, 'field')} where {_count(header, 'column')} are expected{spread}")
        first_row = False


def _count(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _parquet_batches(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    import pyarrow.lib
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file, pre_buffer=False)  # type: ignore[no-untyped-call]
        yield from table.iter_batches(batch_size=BATCH)  # type: ignore[no-untyped-call]
    except (pyarrow.lib.ArrowException, OSError) as error:
        raise Unreadable(
            f"not a Parquet file that can be read: {str(error).splitlines()[0]}", hint="fetch it again"
        ) from error


READERS: dict[str, Callable[[BinaryIO, Names], Records]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
}
TYPED_READERS: dict[str, Callable[[BinaryIO], Iterator[pa.RecordBatch]]] = {".parquet": _parquet_batches}
"""Readers of formats whose columns have types. No row of them is malformed."""
FORMATS = (*READERS, *TYPED_READERS)
HEADERLESS = (".csv", ".tsv")
"""Formats of files that may lack a header line, so that ``column_names`` names their columns."""
PLACED_BY_ROW = (".json", ".parquet")
"""Formats in which a row has a number, and no line."""
