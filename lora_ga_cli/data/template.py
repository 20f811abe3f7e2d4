"""Templates: ``{column}`` in a text. There are no expressions: a recipe from a stranger can only insert columns.

A section ``{?column}…{/column}`` stands in the text of a row only where the row has a value in the column: absent, null
and empty are alike.
"""

from __future__ import annotations

import datetime
import decimal
import math
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_ga_cli.data.faults import BadRow

MARKS = {"?": "section", "/": "end"}


class TemplateError(ValueError):
    """A template that is not plain text with ``{column}`` fields and sections."""


@dataclass(frozen=True)
class _Part:
    """A text, and what follows it.

    Args:
        kind: ``insert`` a column; begin a ``section`` of it; ``end`` that; or nothing (empty).
    """

    literal: str
    kind: str = ""
    column: str = ""


class Template:
    """A text with ``{column}`` fields and sections; ``{{`` and ``}}`` are braces.

    Args:
        text: the template.

    Raises:
        TemplateError: unbalanced braces or sections, or a field that is more than a column's name.
    """

    def __init__(self, text: str):
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise TemplateError(f"{error} in {text!r}; a literal brace is written {{{{ or }}}}") from None
        self._parts = [_part(*item) for item in parsed]
        _check_sections(self._parts)

    @property
    def columns(self) -> list[str]:
        """The columns that the template inserts or asks for, each once."""
        return list(dict.fromkeys(part.column for part in self._parts if part.column))

    @property
    def has_sections(self) -> bool:
        """Whether a part of the text depends on a column."""
        return any(part.kind == "end" for part in self._parts)

    def fill(self, row: Mapping[str, Any]) -> str:
        """The text for a row.

        Raises:
            BadRow: an inserted column is missing or null in this row, or holds something other than a text or a
                number.
        """
        return "".join(self._texts(row))

    def _texts(self, row: Mapping[str, Any]) -> Iterator[str]:
        shown: list[bool] = []
        for part in self._parts:
            if all(shown):
                yield part.literal
            if part.kind == "end":
                shown.pop()
            elif part.kind == "insert" and all(shown):
                yield as_text(row, part.column)
            elif part.kind == "section":
                shown.append(has_value(row, part.column))


def _part(literal: str, field: str | None, spec: str | None, conversion: str | None) -> _Part:
    if field is None:
        return _Part(literal)
    kind, column = (MARKS[field[0]], field[1:]) if field[:1] in MARKS else ("insert", field)
    shown = "{" + field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
    if not column:
        raise TemplateError(f"{shown} names no column; a literal brace is written {{{{ or }}}}")
    if spec or conversion or any(mark in column for mark in ".[]{}"):
        raise TemplateError(
            f"{shown} is more than a column's name; a column of that name is renamed by dataset.columns"
        )
    return _Part(literal, kind, column)


def _check_sections(parts: Sequence[_Part]) -> None:
    opened: list[str] = []
    for part in parts:
        if part.kind == "section":
            opened.append(part.column)
        elif part.kind == "end":
            if opened[-1:] != [part.column]:
                where = f"the section of {opened[-1]!r} is open" if opened else "no section is open"
                raise TemplateError(f"{{/{part.column}}} ends no section: {where}")
            opened.pop()
    if opened:
        raise TemplateError(f"the section of {opened[-1]!r} is not ended: {{/{opened[-1]}}} is missing")


def with_sections(text: str, optional: Sequence[str]) -> str:
    """A template that also serves rows without some columns.

    A paragraph (the text between blank lines) that inserts one of these columns and no other becomes a section of that
    column, so that its heading goes with it. Elsewhere only the inserted column does. A template with sections of its
    own stays as it is.

    Args:
        text: a template.
        optional: the columns that a row may lack.

    Raises:
        TemplateError: as `Template`.
    """
    if Template(text).has_sections:
        return text
    pieces = re.split(r"(\n\n+)", text)  # paragraphs at even places, what stands between them at odd ones
    result = ""
    for paragraph, gap in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
        columns = Template(paragraph).columns
        if len(columns) == 1 and columns[0] in optional:
            result += f"{{?{columns[0]}}}{paragraph}{gap}{{/{columns[0]}}}"
            continue
        for column in set(columns) & set(optional):
            paragraph = _in_section(paragraph, column)
        result += paragraph + gap
    return result


def _in_section(text: str, column: str) -> str:
    """The template with every ``{column}`` in a section of its own; ``{{column}}`` is a text in braces."""
    field = re.compile(r"\{\{|\}\}|\{" + re.escape(column) + r"\}")
    shown = f"{{?{column}}}{{{column}}}{{/{column}}}"
    return field.sub(lambda found: found[0] if len(found[0]) == 2 else shown, text)


def has_value(row: Mapping[str, Any], column: str) -> bool:
    """Whether a row has a value in a column: it is not absent, null, or a text of white space only."""
    value = row.get(column)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    return not isinstance(value, str) or bool(value.strip())


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
