"""Local files as one source of rows."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lora_ga_cli.data.faults import FIX_ROWS, BadRow, RowFaults
from lora_ga_cli.data.formats import HEADERLESS, PLACED_BY_ROW, Unreadable, format_of, read_records
from lora_ga_cli.data.source import FileRows, Row
from lora_ga_cli.errors import DataError, Fault, suggest
from lora_ga_cli.files import resolve_path


def listed(files: str | Sequence[str]) -> list[str]:
    """One path or several, as a list."""
    return [files] if isinstance(files, str) else list(files)


def files_faults(files: Sequence[str], column_names: Sequence[str] | None) -> list[Fault]:
    """What is wrong with files before they are read: missing ones, unknown formats, columns named twice."""
    faults = []
    for file in files:
        path = resolve_path(file)
        try:
            suffix = format_of(file)
        except Unreadable as error:
            faults.append(Fault(file, str(error), error.hint))
            continue
        if not path.is_file():
            faults.append(Fault(file, "is a folder" if path.is_dir() else "no such file", _near_file(path)))
        elif column_names is not None and suffix not in HEADERLESS:
            what = f"names the columns of a {' or '.join(HEADERLESS)} file, and {file} names its columns itself"
            faults.append(Fault("dataset.column_names", what, "dataset.columns={new: old} renames"))
    return faults + _repeated(column_names or [])


def _repeated(names: Sequence[str]) -> list[Fault]:
    twice = sorted({name for name in names if list(names).count(name) > 1})
    return [Fault("dataset.column_names", f"{name!r} stands there twice") for name in twice]


def _near_file(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        return f"there is no folder {folder}"
    return suggest(
        path.name, (file.name for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    )


def read_files(
    files: Sequence[str], *, column_names: Sequence[str] | None, on_bad_row: Literal["error", "skip"]
) -> FileRows:
    """All rows of the files, in their order.

    Raises:
        DataError: malformed rows under ``on_bad_row="error"``, a damaged file, or one without any row.
    """
    name = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    rows: list[Row] = []
    places = array("q")
    starts: list[tuple[str, int, str]] = []
    columns: dict[str, None] = {}
    skipped = 0
    faults: list[Fault] = []
    for file in files:
        unit = "row " if format_of(file) in PLACED_BY_ROW else ""
        starts.append((file, len(rows), unit))
        bad = RowFaults(file)
        try:
            for place, row in read_records(resolve_path(file), column_names):
                if isinstance(row, BadRow):
                    bad.add("malformed", f"{file}:{unit}{place}", str(row))
                else:
                    rows.append(row)
                    places.append(place)
                    columns.update(dict.fromkeys(row))
            if len(rows) == starts[-1][1] and not len(bad):
                faults.append(Fault(file, "holds no rows"))
        except Unreadable as error:
            place_of_fault = file if error.line is None else f"{file}:{error.line}"
            what = f"{error} ({place_of_fault})" if error.option else str(error)
            faults.append(Fault(error.option or place_of_fault, what, error.hint))
        except OSError as error:
            faults.append(Fault(file, f"cannot be read: {error.strerror or error}"))
        if on_bad_row == "error":
            faults += bad.faults({"malformed": FIX_ROWS})
        skipped += len(bad)
    if not faults and not rows:
        faults.append(Fault(name, f"none of its {skipped:,} rows can be read"))
    if faults:
        raise DataError(faults)
    return FileRows(name, rows, starts, places, list(columns), malformed=skipped)
