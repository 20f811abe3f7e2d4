"""Local files as one source of rows."""

from __future__ import annotations

import contextlib
import difflib
import filecmp
from collections import Counter
from collections.abc import Sequence
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from typing import Literal

from lora_ga_cli.data.arrow import ArrowRows, Spool
from lora_ga_cli.data.compression import compression_of
from lora_ga_cli.data.faults import FIX_ROWS, RowFaults
from lora_ga_cli.data.formats import HEADERLESS, PLACED_BY_ROW, Findings, Unreadable, format_of, read_batches
from lora_ga_cli.data.identity import KEY_LENGTH, SMALL, code_hash
from lora_ga_cli.data.remote import is_remote, local_path, matching, remote_fault
from lora_ga_cli.data.source import FileRows, Row
from lora_ga_cli.data.source_store import ReadRows, SourceStore
from lora_ga_cli.errors import DataError, Fault
from lora_ga_cli.json_files import sha256_json
from lora_ga_cli.paths import resolve_path
from lora_ga_cli.remembered_digests import remembered_sha256

NEAR_FILE = 0.7
"""How similar two names of files are (`difflib`) if one may be a misspelling of the other."""


def listed(files: str | Sequence[str]) -> list[str]:
    """Paths and patterns (``data/*.jsonl``) as a list of files: those that a pattern matches, sorted.

    A pattern that matches no file stays, for `files_faults` to report.

    Raises:
        DataError: the hub cannot be asked which files match.
    """
    return [name for file in ([files] if isinstance(files, str) else files) for name in _matching(file)]


def _matching(file: str) -> list[str]:
    if not has_magic(file):
        return [file]
    if is_remote(file):
        return matching(file) or [file]
    path = resolve_path(file)
    if path.exists():
        return [file]  # brackets may be part of a name
    found = glob(str(path), recursive=True)  # noqa: PTH207  # Path.glob takes no absolute pattern
    return sorted(name for name in found if Path(name).is_file()) or [file]


def files_faults(files: Sequence[str], column_names: Sequence[str] | None) -> list[Fault]:
    """What is wrong with files before they are read: missing ones, unknown formats, columns named twice."""
    faults = []
    for file in files:
        if not is_remote(file) and (folder := resolve_path(file)).is_dir():
            faults.append(Fault(file, "is a folder", f"its files are {file.rstrip('/')}/*{_usual_suffix(folder)}"))
            continue
        try:
            suffix = format_of(file)
        except Unreadable as error:
            faults.append(Fault(file, str(error), error.hint))
            continue
        if missing := _missing(file):
            faults.append(missing)
        elif column_names is not None and suffix not in HEADERLESS:
            what = f"names the columns of a {' or '.join(HEADERLESS)} file, and {file} names its columns itself"
            faults.append(Fault("dataset.column_names", what, "dataset.columns={new: old} renames"))
    return faults + _repeated(column_names or [])


def _missing(file: str) -> Fault | None:
    if is_remote(file):
        return remote_fault(file)
    path = resolve_path(file)
    if path.is_file():
        return None
    if has_magic(file) and not path.exists():
        return Fault(file, "matches no file", "" if path.parent.is_dir() else f"there is no folder {path.parent}")
    return Fault(file, "no such file", _near_file(path))


def same_file(files: Sequence[str], others: Sequence[str]) -> tuple[str, str] | None:
    """The first of ``files`` that has the content of one of ``others``, with that one. Files of the hub are not
    read."""
    for file in files:
        for other in others:
            if file == other:
                return file, other
            if is_remote(file) or is_remote(other):
                continue
            with contextlib.suppress(OSError):
                if filecmp.cmp(resolve_path(file), resolve_path(other), shallow=False):
                    return file, other
    return None


def _usual_suffix(folder: Path) -> str:
    """The extension that most files of a folder have, of those that can be read."""
    counts: Counter[str] = Counter()
    for file in folder.iterdir():
        with contextlib.suppress(Unreadable):
            counts[format_of(file.name) + compression_of(file.name)] += 1
    return counts.most_common(1)[0][0] if counts else ""


def _repeated(names: Sequence[str]) -> list[Fault]:
    twice = sorted({name for name in names if list(names).count(name) > 1})
    return [Fault("dataset.column_names", f"{name!r} stands there twice") for name in twice]


def _near_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder}"
    names = [file.name for file in folder.iterdir() if file.is_file() and file.suffix == path.suffix]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=NEAR_FILE)
    return f"did you mean {near[0]}?" if near else ""


def read_files(
    files: Sequence[str],
    *,
    column_names: Sequence[str] | None,
    on_bad_row: Literal["error", "skip"],
    store: SourceStore | None = None,
) -> FileRows:
    """All rows of the files, in their order.

    Args:
        store: where the rows of large files are looked up, and kept if they are not there. Without one, all rows are
            kept in memory.

    Raises:
        DataError: malformed rows under ``on_bad_row="error"``, a damaged file, or one without any row.
    """
    name = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    parts: list[ReadRows] = []
    starts: list[tuple[str, int, str]] = []
    faults: list[Fault] = []
    for file in files:
        starts.append((file, sum(map(len, parts)), _unit(file)))
        try:
            parts.append(_rows_of(file, column_names, on_bad_row, store))
        except DataError as error:
            faults += error.faults
    skipped = sum(part.malformed for part in parts)
    if not faults and not any(map(len, parts)):
        faults.append(Fault(name, f"none of its {skipped:,} rows can be read"))
    if faults:
        raise DataError(faults)
    return FileRows(
        name,
        ArrowRows([part.batches for part in parts]),
        starts,
        None,
        list(dict.fromkeys(column for part in parts for column in part.columns)),
        malformed=skipped,
        notes=[_noted(file, note) for file, part in zip(files, parts, strict=True) for note in part.notes],
    )


def _noted(file: str, note: str) -> str:
    return f"{file}{note}" if note.startswith(":") else f"{file} {note}"  # a line of the file, or all of it


def read_first_rows(files: Sequence[str], column_names: Sequence[str] | None, count: int) -> list[Row]:
    """The first rows of files that are not malformed, without reading the rest.

    Args:
        count: how many rows, at most.

    Raises:
        Unreadable: a file cannot be read that far.
        OSError: a file cannot be opened.
        DataError: a file on the hub cannot be fetched.
    """
    rows: list[Row] = []
    for file in files:
        for batch in read_batches(local_path(file), column_names, Findings(lambda _, __: None)):
            rows += ArrowRows([[batch]])[: count - len(rows)]
            if len(rows) == count:
                return rows
    return rows


def _unit(file: str) -> str:
    return "row " if format_of(file) in PLACED_BY_ROW else ""


def _rows_of(
    file: str, column_names: Sequence[str] | None, on_bad_row: Literal["error", "skip"], store: SourceStore | None
) -> ReadRows:
    """The rows of one file, from the store if they are there."""
    read = partial(_read, file, column_names, on_bad_row)
    key = _key(file, column_names, store) if store is not None else None
    if store is None or key is None:
        return read(Spool(store.folder if store is not None else None))
    rows = store.rows(key, file, read, lambda: _key(file, column_names, store) == key)
    if rows.malformed and on_bad_row == "error":  # they were left out when the file was read before
        return read(Spool(store.folder))
    return rows


def _key(file: str, column_names: Sequence[str] | None, store: SourceStore) -> str | None:
    """The key of a large file's rows; None for a small file, and if the hash of its content cannot be had."""
    path = local_path(file)
    try:
        if path.stat().st_size < SMALL:
            return None
        content = remembered_sha256(path, store.memo)
    except OSError:
        return None  # what cannot be read is reported when it is read
    return sha256_json([content, path.suffixes[-2:], column_names, code_hash()])[:KEY_LENGTH]


def _read(
    file: str, column_names: Sequence[str] | None, on_bad_row: Literal["error", "skip"], spool: Spool
) -> ReadRows:
    bad, unit = RowFaults(file), _unit(file)
    findings = Findings(lambda place, row: bad.add("malformed", f"{file}:{unit}{place}", str(row)))
    faults = []
    try:
        spool.add(read_batches(local_path(file), column_names, findings))
        rows = ReadRows(spool.finish(), list(findings.columns), len(bad), findings.notes)
        if not len(rows) and not len(bad):
            faults.append(Fault(file, "holds no rows", "write rows into it, or name another file"))
    except Unreadable as error:
        place_of_fault = file if error.line is None else f"{file}:{error.line}"
        what = f"{error} ({place_of_fault})" if error.option else str(error)
        faults.append(Fault(error.option or place_of_fault, what, error.hint))
    except OSError as error:
        faults.append(Fault(file, f"cannot be read: {error.strerror or error}"))
    if on_bad_row == "skip" and len(bad) and not faults:
        first = bad.faults({})[0]
        place = first.where.removeprefix(file)  # rows are stored by their content, and the file may be renamed
        rows.notes.append(f"{place}: skipped, the first malformed row: {first.what}")
    if on_bad_row == "error":
        faults += bad.faults({"malformed": FIX_ROWS})
    if faults:
        raise DataError(faults)
    return rows
