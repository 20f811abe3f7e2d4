"""Templates: ``{column}`` in a text. There are no expressions: a recipe from a stranger can only insert columns."""

from __future__ import annotations

import datetime
import decimal
import math
import string
from collections.abc import Mapping
from typing import Any

from lora_ga_cli.data.faults import BadRow


class TemplateError(ValueError):
    """A template that is not plain text with ``{column}`` fields."""


class Template:
    """A text with ``{column}`` fields; ``{{`` and ``}}`` are braces.

    Args:
        text: the template.

    Raises:
        TemplateError: unbalanced braces, or a field that is more than a column's name.
    """

    def __init__(self, text: str):
        self._parts: list[tuple[str, str | None]] = []
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise TemplateError(f"{error} in {text!r}; a literal brace is written {{{{ or }}}}") from None
        for literal, field, spec, conversion in parsed:
            if field is not None:
                shown = "{" + field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
                if not field:
                    raise TemplateError(f"{shown} names no column; a literal brace is written {{{{ or }}}}")
                if spec or conversion or any(mark in field for mark in ".[]{}"):
                    raise TemplateError(
                        f"{shown} is more than a column's name; a column of that name is renamed by dataset.columns"
                    )
            self._parts.append((literal, field))

    @property
    def columns(self) -> list[str]:
        """The columns that the template inserts, each once."""
        return list(dict.fromkeys(field for _, field in self._parts if field is not None))

    def fill(self, row: Mapping[str, Any]) -> str:
        """The text for a row.

        Raises:
            BadRow: a column is missing or null in this row, or holds something other than a text or a number.
        """
        return "".join(literal + (as_text(row, field) if field is not None else "") for literal, field in self._parts)


def as_text(row: Mapping[str, Any], column: str) -> str:
    """A column's value as text; numbers and dates as Python writes them."""
    if column not in row:
        raise BadRow(f"column {column!r} is missing in this row")
    value = row[column]
    if isinstance(value, str):
        if not value.isascii() and _half_character(value):
            raise BadRow(f"column {column!r} holds half of a surrogate pair, which no text has")
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise BadRow(f"column {column!r} is null")
    if isinstance(value, (bool, int, float, decimal.Decimal, datetime.date, datetime.time)):
        return str(value)
    raise BadRow(f"column {column!r} holds a {type(value).__name__}, not a text or a number")


def _half_character(text: str) -> bool:
    # JSON can escape a lone surrogate; tokenizers refuse it with an error that names no row
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
