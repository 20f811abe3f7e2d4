"""Rows of a benchmark: from a local file, or from the hub."""

from __future__ import annotations

from collections.abc import Sequence

from lora_ga_cli.config.schema import EvalConfig
from lora_ga_cli.data.hub import read_hub
from lora_ga_cli.data.local import files_faults, listed, read_files
from lora_ga_cli.data.source import Row, Source
from lora_ga_cli.errors import DataError, Fault


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
    source: Source
    if options.file is not None:
        files = listed(options.file)
        if faults := files_faults(files, None):
            raise DataError(faults)
        source = read_files(files, column_names=None, on_bad_row="error")
    else:
        source = read_hub(path, subset=subset, revision=None, split=split, option="eval.file")
    missing = [column for column in columns if column not in source.columns]
    if missing:
        what = f"{source.name} has no column {' and '.join(map(repr, missing))}"
        raise DataError([Fault("eval.file", what, f"columns: {', '.join(source.columns)}")])
    count = min(len(source), options.limit or len(source))
    return source.take(range(count), columns)
