"""ShareGPT's conversations: a list of turns with ``from`` and ``value``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lora_ga_cli.data.row_formats.base import CONVERSATION, CONVERSATION_OPTIONS, RowFormat
from lora_ga_cli.registry import ROW_FORMATS

if TYPE_CHECKING:
    from lora_ga_cli.data.source import Row


@ROW_FORMATS.register("sharegpt")
class ShareGptRows(RowFormat):
    """``{"conversations": [{"from": "human", "value": "…"}, …]}``: the assistant's turns are learned."""

    columns: ClassVar = {"conversations": CONVERSATION}
    precedence = 55
    fields = ("messages", *CONVERSATION_OPTIONS)

    @classmethod
    def options(cls, rows: Sequence[Row]) -> dict[str, str]:
        return {"messages": "conversations"}
