"""Rows before they become examples: where they come from, and which columns they have."""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lora_ga_cli.data.arrow import ArrowRows
from lora_ga_cli.data.arrow import Row as Row
from lora_ga_cli.errors import Fault, suggest


class Source(Protocol):
    """Rows that can be fetched by number, from 0."""

    name: str
    """The name in messages: the file, or the hub data set and its split."""
    columns: list[str]
    malformed: int
    """Rows that were left out on reading."""
    class_names: dict[str, list[str]]
    """Names of the classes by column, for the columns for which the source has them."""
    notes: Sequence[str]
    """What a user should know about how the rows are read, a line each."""

    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int], columns: Sequence[str]) -> list[Row]:
        """Rows by number. A column that a row does not have is absent from its dictionary."""
        ...

    def where(self, index: int) -> str:
        """The row's place, as a person would look for it."""
        ...


@dataclass
class FileRows:
    """Rows of local files.

    Args:
        name: the files.
        rows: all rows, file after file.
        files: per file its path, the number of its first row, and the unit in which its rows are found: ``""`` for a
            line of the file, ``"row "`` where there are no lines.
        places: per row the line or row (from 1) in its file; None if `rows` knows them.
    """

    name: str
    rows: Sequence[Row]
    files: list[tuple[str, int, str]]
    places: Sequence[int] | None
    columns: list[str]
    malformed: int = 0
    class_names: dict[str, list[str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    fingerprint: str | None = None
    """The identity of the rows, where it is not that of the files' content."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Sequence[int], columns: Sequence[str]) -> list[Row]:
        if isinstance(self.rows, ArrowRows):
            return self.rows.take(indices, columns)
        wanted = set(columns)
        return [{key: value for key, value in self.rows[index].items() if key in wanted} for index in indices]

    def where(self, index: int) -> str:
        path, _, unit = self.files[bisect.bisect_right(self.files, index, key=lambda file: file[1]) - 1]
        place = self.rows.place(index) if isinstance(self.rows, ArrowRows) else (self.places or ())[index]
        return f"{path}:{unit}{place}"


def renames_faults(source: Source, renames: Mapping[str, str]) -> list[Fault]:
    """What is wrong with ``dataset.columns`` for these rows: an old name that is not there, a new one that is."""
    faults = []
    for new, old in renames.items():
        if old not in source.columns and new in source.columns:
            what = f"{source.name} has no column {old!r} to be called {new!r}, but a column {new!r}"
            hint = f"the new name comes first, {{new: old}}: dataset.columns={{{old}: {new}}}"
            faults.append(Fault(f"dataset.columns.{new}", what, hint))
        elif old not in source.columns:
            faults.append(
                Fault(
                    f"dataset.columns.{new}", f"{source.name} has no column {old!r}", near_column(old, source.columns)
                )
            )
        elif new in source.columns and new not in renames.values():
            faults.append(
                Fault(
                    f"dataset.columns.{new}", f"{source.name} has a column {new!r} already", "choose another new name"
                )
            )
    return faults


def renamed(source: Source, renames: Mapping[str, str]) -> dict[str, str]:
    """Every column's name after ``dataset.columns``, with its name in the source."""
    gone = set(renames.values())
    found = {new: old for new, old in renames.items() if old in source.columns}
    return {name: name for name in source.columns if name not in gone} | found


def headerless_hint(source: str, columns: Sequence[str]) -> str:
    """The hint for a file whose first line may be a row, and was read as the names of its columns; else empty.

    Args:
        source: the name of the file.
    """
    if re.search(r"\.[ct]sv\b", source) is None or not any(map(_looks_like_data, columns)):
        return ""
    names = ", ".join(f"column{number}" for number in range(1, len(columns) + 1))
    return f"if its first line is a row and no header: dataset.column_names=[{names}], with names of yours"


def _looks_like_data(column: str) -> bool:
    return re.fullmatch(r"[-+]?\d+(\.\d*)?", column) is not None or len(column.split()) >= 3 or len(column) > 40


def near_column(name: str, columns: Sequence[str]) -> str:
    """The hint for an unknown column: the nearest, and all there are."""
    near = suggest(name, columns)
    listed = ", ".join(columns[:30]) + (", ..." if len(columns) > 30 else "")
    return f"{near} columns: {listed}" if near and not near.startswith("known") else f"columns: {listed}"
