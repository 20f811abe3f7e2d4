"""Rows of a benchmark: from a local file, or from the hub."""

from __future__ import annotations

from collections.abc import Sequence

from lora_ga_cli.config.schema import EvalConfig
from lora_ga_cli.data.hub import read_hub
from lora_ga_cli.data.local import files_faults, listed, read_files
from lora_ga_cli.data.source import Row, Source
from lora_ga_cli.errors import DataError, Fault

FILE = "eval.file"


def benchmark_rows(
    options: EvalConfig, columns: Sequence[str], *, path: str, subset: str | None = None, split: str
) -> list[Row]:
    """The rows of ``eval.file``, or else of a hub data set; the first ``eval.limit`` of them.

    Args:
        columns: what every row must have, without which there is no benchmark.
        path: hub data set (``org/name``), with its subset and split.

    Raises:
        DataError: no such file or data set, a malformed row, or a column that is missing.
    """
    if options.file is not None:
        return file_rows(FILE, options.file, columns, limit=options.limit)
    source = read_hub(path, subset=subset, revision=None, split=split, option=FILE)
    return _taken(source, columns, FILE, "", options.limit)


def file_rows(
    option: str, files: str | Sequence[str], columns: Sequence[str], *, hint: str = "", limit: int | None = None
) -> list[Row]:
    """The rows of the file or files that an option names.

    Args:
        columns: what every row must have.
        hint: what to do where one is missing; without it, the columns there are.

    Raises:
        DataError: no such file, a malformed row, or a column that is missing.
    """
    names = listed(files)
    if faults := files_faults(names, None):
        raise DataError(faults)
    return _taken(read_files(names, column_names=None, on_bad_row="error"), columns, option, hint, limit)


def _taken(source: Source, columns: Sequence[str], option: str, hint: str, limit: int | None) -> list[Row]:
    if missing := [column for column in columns if column not in source.columns]:
        what = f"{source.name} has no column {' and '.join(map(repr, missing))}"
        raise DataError([Fault(option, what, hint or f"columns: {', '.join(source.columns)}")])
    return source.take(range(min(len(source), limit or len(source))), columns)
