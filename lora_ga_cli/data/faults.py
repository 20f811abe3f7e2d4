"""Collects what is wrong with rows, or worth a line: all are counted, and the first of each kind are shown; and what is
wrong in several steps."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping
from typing import TypeVar

from lora_ga_cli.errors import DataError, Fault, InvalidInput

T = TypeVar("T")

SHOWN = 10
"""How many faults of one kind are written out."""

FIX_ROWS = "fix them, or dataset.on_bad_row=skip leaves such rows out and counts them"


class BadRow(Exception):
    """A row that cannot become an example; `str(error)` is the reason."""


class EmptyAnswer(BadRow):
    """A row whose answer is empty: it teaches the model to answer nothing."""


class RowFaults:
    """Faults of rows, by kind. Memory does not grow with their number.

    Args:
        source: what the rows are read from, for messages.
    """

    def __init__(self, source: str):
        self.source = source
        self._counts: dict[str, int] = {}
        self._shown: dict[str, list[tuple[int, str, str]]] = {}

    def __len__(self) -> int:
        return sum(self._counts.values())

    def add(self, kind: str, where: str, what: str, position: int | None = None) -> None:
        """Adds a fault.

        Args:
            position: where its row stands among the rows of the source; by default after those of all faults so far.
        """
        place = len(self) if position is None else position
        self._counts[kind] = self._counts.get(kind, 0) + 1
        shown = self._shown.setdefault(kind, [])
        bisect.insort(shown, (place, where, what))
        del shown[SHOWN:]

    def faults(self, hints: dict[str, str]) -> list[Fault]:
        """The first faults of each kind in the order of the source; the last fault of a kind has the kind's hint."""
        result = []
        for kind, shown in sorted(self._shown.items(), key=lambda item: item[1][0]):
            lines = [(where, what) for _, where, what in shown]
            if more := self._counts[kind] - len(shown):
                lines.append((self.source, f"and {more:,} more of the same kind"))
            result += [Fault(where, what) for where, what in lines[:-1]]
            result.append(Fault(*lines[-1], hint=hints.get(kind, "")))
        return result


class RowNotes:
    """What is said of rows that are kept: how many there are of each kind, and where the first one is.

    Args:
        one, many: what is counted.
    """

    def __init__(self, one: str = "row", many: str = "rows") -> None:
        self._one, self._many = one, many
        self._first: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def add(self, note: str, where: str) -> None:
        self._counts[note] = self._counts.get(note, 0) + 1
        self._first.setdefault(note, where)

    def lines(self) -> list[str]:
        """A line for each kind, in the order met."""
        return [
            f"{count:,} {self._one if count == 1 else self._many} {note} (first: {self._first[note]})"
            for note, count in self._counts.items()
        ]


def all_of(steps: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """The result of every step; if any fail, the faults of all of them together.

    Raises:
        DataError: the faults.
    """
    faults: list[Fault] = []
    results: dict[str, T] = {}
    for name, step in steps.items():
        try:
            results[name] = step()
        except InvalidInput as error:
            faults += error.faults
    if faults:
        raise DataError(list(dict.fromkeys(faults)))
    return results
