"""Texts and their classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lora_ga_cli.data.row_formats.base import TEXT, RowFormat
from lora_ga_cli.registry import ROW_FORMATS

if TYPE_CHECKING:
    from lora_ga_cli.data.source import Row


@ROW_FORMATS.register("text_label")
class TextLabelRows(RowFormat):
    """``{"text": "…", "label": "…"}`` for a classifier."""

    columns: ClassVar = {"text": TEXT, "label": TEXT}
    aliases: ClassVar = {"text": ("sentence", "content", "review"), "label": ("labels", "class", "category", "target")}
    tasks = ("sequence_classification",)
    precedence = 20
    fields = ("text", "text_pair", "label", "label_names")

    @classmethod
    def options(cls, rows: Sequence[Row]) -> dict[str, str]:
        return {"text": "{text}", "label": "label"}
