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
        """The row as it is used; None if it is left out. Cells that hold no text are judged as the text they make."""
        if any(not pattern.search(str(row.get(column, ""))) for column, pattern in self._keep.items()):
            return None
        changed = dict(row)
        for column, pattern in self._extract.items():
            found = pattern.search(str(row.get(column, "")))
            if found is None:
                return None
            changed[column] = found.group(1)
        return changed


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
