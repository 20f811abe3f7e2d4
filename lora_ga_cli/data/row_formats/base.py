"""What a row format is: a way in which others write their rows, found by the columns. A format is one file.

.. code-block:: python

    @ROW_FORMATS.register("question_response")  # chosen by dataset.format=question_response, or found
    class QuestionResponse(RowFormat):
        columns = {"question": TEXT, "response": TEXT}

        @classmethod
        def options(cls, rows):
            return {"prompt": "{question}\\n", "answer": "{response}"}

A format says which columns its rows have, and which options of `dataset` read them. Those options select a form
(`data.examples.base.Form`), which makes examples of the rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from lora_ga_cli.data.source import Row


@dataclass(frozen=True)
class Kind:
    """What a column holds.

    Args:
        name: as a person calls it.
        fits: whether a value is one.
    """

    name: str
    fits: Callable[[Any], bool]


def _is_text(value: object) -> bool:
    number = isinstance(value, int) or (isinstance(value, float) and not math.isnan(value))
    return isinstance(value, str) or number


def _is_conversation(value: object) -> bool:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return False
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return False
    return all(isinstance(item, Mapping) and ("role" in item or "from" in item) for item in value)


TEXT = Kind("a text", _is_text)
CONVERSATION = Kind("a list of messages", _is_conversation)
CONVERSATION_OPTIONS = ("tools", "learn_turns", "chat_template")
"""Options of `dataset` that go with any column of messages."""


class RowFormat:
    """How rows are written by those who share them."""

    columns: ClassVar[Mapping[str, Kind]]
    """The columns that every row has, and what they hold."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Columns that a row may have: absent, null and empty are alike."""
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Other names of the columns, with which a person is told how to rename theirs."""
    tasks: ClassVar[tuple[str, ...]] = ("causal_lm",)
    """The values of ``model.task`` for which rows are read so."""
    precedence: ClassVar[int]
    """Of several formats that rows fit, the one with the highest precedence is taken: the more specific one."""
    fields: ClassVar[tuple[str, ...]]
    """The options of `dataset` that `options` may give; each may be given by the user instead."""

    @classmethod
    def options(cls, rows: Sequence[Row]) -> dict[str, str]:
        """The options of `dataset` that read such rows.

        Args:
            rows: the first rows of the data set.
        """
        raise NotImplementedError

    @classmethod
    def fits(cls, row: Row, needed: Collection[str]) -> bool:
        """Whether a row is of this format.

        Args:
            needed: those of `columns` that are read, because no option of the user's replaces them.
        """
        return all(column in row and cls.columns[column].fits(row[column]) for column in needed)

    @classmethod
    def refused(cls, rows: Sequence[Row], kept: Collection[str]) -> str:
        """Why rows with these columns must not be learned, for people; empty if they may.

        Args:
            rows: the first rows of the data set.
            kept: the columns by which ``dataset.keep`` selects rows.
        """
        return ""

    @classmethod
    def source_columns(cls, columns: Collection[str]) -> list[str]:
        """The columns that are read from the source, of those that the form reads. For formats that `convert`."""
        return list(columns)

    @classmethod
    def convert(cls, row: Row, columns: Collection[str]) -> Row:
        """The row as the options of `options` read it.

        Args:
            columns: those that the form reads.

        Raises:
            BadRow: it is not of this format.
        """
        return row
