"""TRL's prompts and completions: two texts, or two lists of messages."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.data.row_formats.base import CONVERSATION, CONVERSATION_OPTIONS, TEXT, Kind, RowFormat
from lora_ga_cli.registry import ROW_FORMATS

if TYPE_CHECKING:
    from lora_ga_cli.data.source import Row

EITHER = Kind("a text or a list of messages", lambda value: TEXT.fits(value) or CONVERSATION.fits(value))
MESSAGES = "messages"
RATING = "label"
"""A column of truth values in rows for KTO, which are not learned from here."""


@ROW_FORMATS.register("prompt_completion")
class PromptCompletionRows(RowFormat):
    """``{"prompt": "…", "completion": "…"}``: the completion is learned.

    Where both are lists of messages, they are one conversation, of which the assistant's turns in the completion are
    learned.
    """

    columns: ClassVar = {"prompt": EITHER, "completion": EITHER}
    tasks = ("causal_lm", "seq2seq_lm")
    precedence = 50
    fields = ("prompt", "answer", "messages", *CONVERSATION_OPTIONS)

    @classmethod
    def options(cls, rows: Sequence[Row]) -> dict[str, str]:
        conversations = sum(CONVERSATION.fits(row.get("prompt")) for row in rows)
        # a JSON text of messages is both
        texts = sum(TEXT.fits(row.get("prompt")) for row in rows if not CONVERSATION.fits(row.get("prompt")))
        return {"messages": MESSAGES} if conversations > texts else {"prompt": "{prompt}", "answer": "{completion}"}

    @classmethod
    def refused(cls, rows: Sequence[Row], kept: Collection[str]) -> str:
        rated = sum(isinstance(row.get(RATING), bool) for row in rows)
        if RATING in kept or 2 * rated <= len(rows):
            return ""
        return (
            f"column {RATING!r} says whether a completion is a good one, and all completions would be learned: "
            f'dataset.keep={{{RATING}: "True"}} learns the good ones'
        )

    @classmethod
    def source_columns(cls, columns: Collection[str]) -> list[str]:
        joined = [name for name in cls.columns if MESSAGES in columns]
        return [*joined, *(name for name in columns if name != MESSAGES)]

    @classmethod
    def convert(cls, row: Row, columns: Collection[str]) -> Row:
        """The row with both lists as one in ``messages``, where these are read."""
        if MESSAGES in columns:
            parts = {name: _messages(row, name) for name in cls.columns}
            unlearned = [message | {"weight": 0} for message in parts["prompt"]]
            return {**row, MESSAGES: [*unlearned, *parts["completion"]]}
        return row


def _messages(row: Row, column: str) -> list[dict[str, Any]]:
    value = row.get(column)
    if not CONVERSATION.fits(value):
        raise BadRow(f"column {column!r} holds no list of messages, as the other rows do")
    assert value is not None
    listed: Sequence[Mapping[str, Any]] = json.loads(value) if isinstance(value, str) else value
    return [dict(message) for message in listed]
