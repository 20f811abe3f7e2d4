"""OpenAI's conversations: a list of messages with a role and a content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lora_ga_cli.data.row_formats.base import CONVERSATION, CONVERSATION_OPTIONS, RowFormat
from lora_ga_cli.registry import ROW_FORMATS

if TYPE_CHECKING:
    from lora_ga_cli.data.source import Row


@ROW_FORMATS.register("messages")
class MessageRows(RowFormat):
    """``{"messages": [{"role": "user", "content": "…"}, …]}``: the assistant's turns are learned."""

    columns: ClassVar = {"messages": CONVERSATION}
    aliases: ClassVar = {"messages": ("conversation", "chat", "dialog", "dialogue", "turns")}
    precedence = 60
    fields = ("messages", *CONVERSATION_OPTIONS)

    @classmethod
    def options(cls, rows: Sequence[Row]) -> dict[str, str]:
        return {"messages": "messages"}
