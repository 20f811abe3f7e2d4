"""Classes: their names, and the number of the one that a cell means."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.data.source import Row, Source
from lora_ga_cli.data.template import has_value
from lora_ga_cli.errors import DataError, Fault, suggest

MAX_CLASSES = 1000
"""How many classes are found in a column: one with more different texts holds no classes."""
NAME_THEM = "name every class in dataset.label_names"


class LabelReader:
    """The class number of a cell.

    A cell is a name, or a number from 0. Where the names are themselves numbers (stars ``["1", "2", "3"]``), a cell is
    always read as a name, so that 1 can mean one thing only.

    Args:
        names: names of the classes in the order of their numbers.
    """

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        self._numbers = {name: number for number, name in enumerate(self.names)}
        self._by_number = not any(as_number(name) is not None for name in self.names)

    def __call__(self, value: Any, column: str) -> int:
        """The class number, from 0 to the number of classes - 1.

        Raises:
            BadRow: the cell is empty, or no class.
        """
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise BadRow(f"column {column!r} is null, not a class")
        number = as_number(value)
        # booleans are written as in JSON; a table with gaps stores an integer as a float
        text = str(value).lower() if isinstance(value, bool) else str(value).strip() if number is None else str(number)
        if text in self._numbers:
            return self._numbers[text]
        if self._by_number and number is not None and 0 <= number < len(self.names):
            return number
        hint = suggest(text, self.names)
        shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
        raise BadRow(f"column {column!r} holds {shown}, which is no class{f' ({hint})' if hint else ''}")


class LabelWriter:
    """Writes the class's name where a row has its number, for templates to insert; other rows stay as they are.

    Args:
        column: the column with the class; None if there is none.
        names: names of the classes in the order of their numbers.
    """

    def __init__(self, column: str | None, names: Sequence[str]):
        self._column = column
        self._class_of = LabelReader(names)

    def __call__(self, row: Row) -> Row:
        """The row with a name in the column ``dataset.label``.

        Raises:
            BadRow: the cell is no class.
        """
        if self._column is None:
            return row
        number = self._class_of(row.get(self._column), self._column)
        return {**row, self._column: self._class_of.names[number]}


def as_number(value: Any) -> int | None:
    """An integer from an int, a float without fraction or digits; None for anything else, booleans too."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    text = str(value).strip() if isinstance(value, str) else ""
    return int(text) if text.removeprefix("-").isascii() and text.removeprefix("-").isdigit() else None


def label_names_faults(names: Sequence[str], num_labels: int | None) -> list[Fault]:
    """What is wrong with the configured names of the classes.

    Args:
        num_labels: ``model.num_labels``.
    """
    option = "dataset.label_names"
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    faults = [Fault(option, f"{name!r} stands there twice") for name in repeated]
    if not names:
        faults.append(Fault(option, "an empty list", "name every class, or leave the option out"))
    if num_labels is not None and num_labels != len(names):
        what = f"{len(names)} names, and model.num_labels={num_labels}"
        faults.append(Fault(option, what, "leave model.num_labels out"))
    return faults


def class_names(source: Source, column: str, *, shown_as: str, count: int | None) -> list[str]:
    """Names of the classes in a column: those of the source if it has names, otherwise those in the column.

    Args:
        column: the column as the source calls it.
        shown_as: the column as the user calls it.
        count: how many classes the model has, if that is set.

    Raises:
        DataError: the column numbers its classes with a gap, mixes numbers and names, or has not as many as the model.
    """
    names = source.class_names.get(column)
    if names is not None and count in (None, len(names)):
        return names
    found = find_classes(source, column, shown_as=shown_as, count=count)
    if isinstance(found, Fault):
        raise DataError([found])
    return found


def find_classes(source: Source, column: str, *, shown_as: str, count: int | None = None) -> list[str] | Fault:
    """The classes that occur in a column: its names in sorted order, or ``"0"``, ``"1"``, ... for numbers.

    What is no number in a column of numbers is left to its row, where it is reported.

    Args:
        column: the column as the source calls it.
        shown_as: the column as the user calls it.
        count: how many classes there are, if that is known. Numbered ones need not occur then.

    Returns:
        The names; or what is wrong with the column.
    """
    numbers: Counter[int] = Counter()
    names: Counter[str] = Counter()
    for start in range(0, len(source), 10_000):
        rows = source.take(range(start, min(start + 10_000, len(source))), [column])
        for row in rows:
            value = row.get(column)
            number = as_number(value)
            if number is not None and number >= 0:
                numbers[number] += 1
            elif number is None and isinstance(value, (str, bool)) and has_value(row, column):
                names[str(value).lower() if isinstance(value, bool) else value.strip()] += 1
        if len(names) > MAX_CLASSES:
            break
    where = f"column {shown_as!r} of {source.name}"
    if names.total() > numbers.total():
        return _names(names, numbers, where, count)
    if not numbers:
        return Fault("dataset.label", f"{where} holds no class", "a class is a text, or a number from 0")
    if count is not None:
        return [str(number) for number in range(count)]
    missing = next((number for number in range(len(numbers)) if number not in numbers), None)
    if missing is not None:
        what = f"in {where} class {missing} does not occur, though {max(numbers)} does"
        return Fault("dataset.label", what, f"{NAME_THEM}; classes count from 0")
    return [str(number) for number in range(len(numbers))]


def _names(names: Collection[str], numbers: Collection[int], where: str, count: int | None) -> list[str] | Fault:
    """The names in sorted order; or what is wrong with them."""
    listed = sorted(names)
    if len(names) > MAX_CLASSES:
        return Fault("dataset.label", f"{where} holds more than {MAX_CLASSES:,} different texts", NAME_THEM)
    if numbers:
        what = f"{where} holds numbers ({min(numbers)}) and names ({listed[0]!r})"
        return Fault("dataset.label", what, NAME_THEM)
    if count is not None and count != len(listed):
        what = f"{count}, and {where} has {len(listed)} classes: {', '.join(listed[:20])}"
        return Fault("model.num_labels", what, "leave model.num_labels out, or name the classes: dataset.label_names")
    return listed


def described(names: Sequence[str], shown: int = 20) -> str:
    """The classes with their numbers, for people."""
    listed = [f"{number} {name}" if str(number) != name else name for number, name in enumerate(names[:shown])]
    more = f", and {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)} classes: {', '.join(listed)}{more}"
