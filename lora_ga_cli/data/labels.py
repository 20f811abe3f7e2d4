"""Classes: their names, and the number of the one that a cell means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.data.source import Row, Source
from lora_ga_cli.errors import DataError, Fault, suggest

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import DatasetConfig


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
    """Writes the class's name where a row has its number, for templates to insert; other rows stay as they are."""

    def __init__(self, config: DatasetConfig):
        self._column = config.label
        self._class_of = LabelReader(config.label_names or [])

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
    """Names of the classes in a column: those of the source if it has names, otherwise their numbers.

    Args:
        column: the column as the source calls it.
        shown_as: the column as the user calls it.
        count: how many classes the model has, if that is set; otherwise they are counted.

    Raises:
        DataError: the classes have to be counted, and are not numbered from 0 without a gap.
    """
    names = source.class_names.get(column)
    if names is not None and count in (None, len(names)):
        return names
    if count is not None:
        return [str(number) for number in range(count)]
    counted = count_labels(source, column, shown_as=shown_as)
    if isinstance(counted, Fault):
        raise DataError([counted])
    return counted


def count_labels(source: Source, column: str, *, shown_as: str) -> list[str] | Fault:
    """Names ``"0"``, ``"1"``, ... for the classes that occur in a column.

    Args:
        column: the column as the source calls it.
        shown_as: the column as the user calls it.

    Returns:
        The names; or what is wrong when the column does not number its classes from 0 without a gap.
    """
    numbers: set[int] = set()
    others: dict[str, None] = {}
    for start in range(0, len(source), 10_000):
        rows = source.take(range(start, min(start + 10_000, len(source))), [column])
        for row in rows:
            value = row.get(column)
            number = as_number(value)
            if number is not None and number >= 0:
                numbers.add(number)
            elif isinstance(value, (str, bool)) and len(others) <= 20:
                others[str(value).lower() if isinstance(value, bool) else value.strip()] = None
    option = "dataset.label"
    if not numbers:
        names = sorted(others)[:20]
        what = f"column {shown_as!r} of {source.name} holds no number of a class"
        return Fault(
            option, what, f"number them by their names: dataset.label_names=[{','.join(names)}]" if names else ""
        )
    missing = next((number for number in range(len(numbers)) if number not in numbers), None)
    if missing is not None:
        what = f"in column {shown_as!r} of {source.name} class {missing} does not occur, though {max(numbers)} does"
        return Fault(option, what, "name every class in dataset.label_names; classes count from 0")
    return [str(number) for number in range(len(numbers))]
