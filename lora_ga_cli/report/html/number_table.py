"""Tables of numbers, as plain data for a template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class NumberTable:
    """A table whose first column names the rows, and whose others are numbers.

    Args:
        left_out: lines that are not in the page, because there are too many.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    left_out: int = 0
