"""Rows that are left out, and texts that are shortened, before templates are filled."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lora_ga_cli.data.source import Row
from lora_ga_cli.errors import Fault

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import DatasetConfig


class Patterns:
    """``dataset.keep`` and ``dataset.extract``, each a regular expression by column.

    A row stays if every pattern of ``keep`` is found in its column. A text becomes what the first group of its pattern
    in ``extract`` finds; a row in which it finds nothing is left out.
    """

    def __init__(self, config: DatasetConfig):
        self._keep = {column: re.compile(pattern) for column, pattern in config.keep.items()}
        self._extract = {column: re.compile(pattern) for column, pattern in config.extract.items()}

    def __call__(self, row: Row) -> Row | None:
        """The row as it is used; None if it is left out.

        Cells that hold no text are judged as the text they make. An empty cell matches no pattern of ``keep``, and
        ``extract`` leaves it as it is, for the form to report.
        """
        if any(not _search(pattern, row.get(column)) for column, pattern in self._keep.items()):
            return None
        changed = dict(row)
        for column, pattern in self._extract.items():
            if row.get(column) is None:
                continue
            found = _search(pattern, row[column])
            if found is None:
                return None
            changed[column] = found.group(1)
        return changed


def _search(pattern: re.Pattern[str], cell: object) -> re.Match[str] | None:
    return None if cell is None else pattern.search(str(cell))


def pattern_faults(config: DatasetConfig) -> list[Fault]:
    """What is wrong with the patterns themselves."""
    faults = []
    for option, patterns, groups in (("keep", config.keep, 0), ("extract", config.extract, 1)):
        for column, pattern in patterns.items():
            where = f"dataset.{option}.{column}"
            try:
                found = re.compile(pattern).groups
            except re.error as error:
                faults.append(Fault(where, f"{pattern!r} is no regular expression: {error}"))
            else:
                if groups and not found:
                    faults.append(Fault(where, f"{pattern!r} has no group to extract", "put ( ) around what is wanted"))
    return faults
