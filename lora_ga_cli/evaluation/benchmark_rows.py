"""Reads the rows of a benchmark, from a local file or from the hub."""

from __future__ import annotations

from collections.abc import Sequence

from lora_ga_cli.config.schema import EvalOptions
from lora_ga_cli.data.hub import HubSplit, read_hub
from lora_ga_cli.data.local import files_faults, listed, read_files
from lora_ga_cli.data.source import Row, Source
from lora_ga_cli.errors import DataError, Fault

FILE = "eval.file"


def benchmark_rows(
    options: EvalOptions, columns: Sequence[str], *, path: str, subset: str | None = None, split: str
) -> list[Row]:
    """The rows of ``eval.file``, or else of a data set on the hub; only the first ``eval.limit`` if that is set.

    Args:
        columns: columns that the rows must have.
        path: data set on the hub (``org/name``), with its subset and split.

    Raises:
        DataError: a missing file, data set or column, or a malformed row.
    """
    if options.file is not None:
        return file_rows(FILE, options.file, columns, limit=options.limit)
    source = read_hub(HubSplit(path, split, FILE, subset))
    return _first_rows(source, columns, FILE, "", options.limit)


def file_rows(
    option: str, files: str | Sequence[str], columns: Sequence[str], *, hint: str = "", limit: int | None = None
) -> list[Row]:
    """The rows of the file or files that an option names.

    Args:
        columns: columns that the rows must have.
        hint: the next step if a column is missing; by default the columns that exist.

    Raises:
        DataError: a missing file or column, or a malformed row.
    """
    names = listed(files)
    if faults := files_faults(names, None):
        raise DataError(faults)
    return _first_rows(read_files(names, column_names=None, on_bad_row="error"), columns, option, hint, limit)


def _first_rows(source: Source, columns: Sequence[str], option: str, hint: str, limit: int | None) -> list[Row]:
    if missing := [column for column in columns if column not in source.columns]:
        what = f"{source.name} has no column {' and '.join(map(repr, missing))}"
        raise DataError([Fault(option, what, hint or f"columns: {', '.join(source.columns)}")])
    return source.take(range(min(len(source), limit or len(source))), columns)
