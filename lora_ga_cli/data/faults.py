"""Collects what is wrong with rows, or worth a line: all are counted, and the first of each kind are shown."""

from __future__ import annotations

from lora_ga_cli.errors import Fault

SHOWN = 10
"""How many faults of one kind are written out."""

FIX_ROWS = "fix them, or dataset.on_bad_row=skip leaves such rows out and counts them"


class BadRow(Exception):
    """A row that cannot become an example; `str(error)` is the reason."""


class RowFaults:
    """Faults of rows, by kind. Memory does not grow with their number.

    Args:
        source: what the rows are read from, for messages.
    """

    def __init__(self, source: str):
        self.source = source
        self._counts: dict[str, int] = {}
        self._shown: dict[str, list[tuple[str, str]]] = {}

    def __len__(self) -> int:
        return sum(self._counts.values())

    def add(self, kind: str, where: str, what: str) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        shown = self._shown.setdefault(kind, [])
        if len(shown) < SHOWN:
            shown.append((where, what))

    def faults(self, hints: dict[str, str]) -> list[Fault]:
        """The faults of each kind in the order met; the last fault of a kind has the kind's hint."""
        result = []
        for kind, shown in self._shown.items():
            lines = list(shown)
            if more := self._counts[kind] - len(shown):
                lines.append((self.source, f"and {more:,} more of the same kind"))
            result += [Fault(where, what) for where, what in lines[:-1]]
            result.append(Fault(*lines[-1], hint=hints.get(kind, "")))
        return result


class RowNotes:
    """What is said of rows that are kept: how many there are of each kind, and where the first one is."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def add(self, note: str, where: str) -> None:
        self._counts[note] = self._counts.get(note, 0) + 1
        self._first.setdefault(note, where)

    def lines(self) -> list[str]:
        """A line for each kind, in the order met."""
        return [
            f"{count:,} {'row' if count == 1 else 'rows'} {note} (first: {self._first[note]})"
            for note, count in self._counts.items()
        ]
