"""Plain texts, as for pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lora_ga_cli.data.row_formats.base import TEXT, RowFormat
from lora_ga_cli.registry import ROW_FORMATS

if TYPE_CHECKING:
    from lora_ga_cli.data.source import Row


@ROW_FORMATS.register("text")
class TextRows(RowFormat):
    """``{"text": "…"}``: all of it is learned."""

    columns: ClassVar = {"text": TEXT}
    aliases: ClassVar = {"text": ("content", "document", "body")}
    precedence = 10
    fields = ("text",)

    @classmethod
    def options(cls, rows: Sequence[Row]) -> dict[str, str]:
        return {"text": "{text}"}
