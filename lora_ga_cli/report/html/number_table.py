"""Tables of numbers, as plain data for a template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class NumberTable:
    """A table whose columns are numbers, from ``numbers`` on.

    Args:
        left_out: lines that are not in the page, because there are too many.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: int = 1
    left_out: int = 0
