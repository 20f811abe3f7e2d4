"""Rows that are left out, and texts that are shortened, before templates are filled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_ga_cli.data.recognize import format_of_rows
from lora_ga_cli.data.source import Row
from lora_ga_cli.errors import Fault, InvalidInput
from lora_ga_cli.expressions import Expression, shown

if TYPE_CHECKING:
    import re

    from lora_ga_cli.config.schema import DatasetConfig


class Patterns:
    """``dataset.keep`` and ``dataset.extract``, each a regular expression by column.

    A row stays if every pattern of ``keep`` matches somewhere in its column. A text is replaced by what the first group
    of its pattern in ``extract`` matches; a row in which nothing matches is left out.
    """

    def __init__(self, config: DatasetConfig):
        self._keep = {column: _expression("keep", column, pattern) for column, pattern in config.keep.items()}
        self._extract = {column: _expression("extract", column, pattern) for column, pattern in config.extract.items()}

    def __call__(self, row: Row) -> Row | None:
        """The row as it is used; None if it is left out.

        A cell that holds no text is searched as Python writes it. A null cell matches no pattern of ``keep``, and
        ``extract`` leaves it as it is, for the form to report.
        """
        if any(not _search(pattern, row.get(column)) for column, pattern in self._keep.items()):
            return None
        changed = dict(row)
        for column, pattern in self._extract.items():
            if row.get(column) is None:
                continue
            match = _search(pattern, row[column])
            if match is None:
                return None
            changed[column] = match.group(1)
        return changed


def _expression(option: str, column: str, pattern: str) -> Expression:
    return Expression(f"dataset.{option}.{column}", pattern)


def _search(pattern: Expression, cell: object) -> re.Match[str] | None:
    return None if cell is None else pattern.search(str(cell))


def pattern_faults(config: DatasetConfig) -> list[Fault]:
    """What is wrong with the patterns themselves."""
    faults = []
    row_format = format_of_rows(config)
    conversations = [] if config.messages is None else [config.messages]
    if row_format is not None:
        conversations = row_format.source_columns(conversations)
    for option, patterns, needs_group in (("keep", config.keep, False), ("extract", config.extract, True)):
        for column, pattern in patterns.items():
            where = f"dataset.{option}.{column}"
            if column in conversations:
                faults.append(Fault(where, "the column holds lists of messages, and patterns are for texts"))
            try:
                group_count = _expression(option, column, pattern).groups
            except InvalidInput as error:
                faults += error.faults
            else:
                if needs_group and not group_count:
                    what = f"{shown(pattern)} has no group to extract"
                    faults.append(Fault(where, what, "put ( ) around what is wanted"))
    return faults
