"""Prompts and answers: the columns of loraga's own examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lora_ga_cli.data.row_formats.base import TEXT, RowFormat
from lora_ga_cli.registry import ROW_FORMATS

if TYPE_CHECKING:
    from lora_ga_cli.data.source import Row


@ROW_FORMATS.register("prompt_answer")
class PromptAnswerRows(RowFormat):
    """``{"prompt": "…", "answer": "…"}``: the answer is learned."""

    columns: ClassVar = {"prompt": TEXT, "answer": TEXT}
    aliases: ClassVar = {
        "prompt": ("question", "query", "problem", "instruction", "input", "source"),
        "answer": ("response", "reply", "solution", "output", "target"),
    }
    tasks = ("causal_lm", "seq2seq_lm")
    precedence = 30
    fields = ("prompt", "answer", "label", "label_names")

    @classmethod
    def options(cls, rows: Sequence[Row]) -> dict[str, str]:
        return {"prompt": "{prompt}", "answer": "{answer}"}
