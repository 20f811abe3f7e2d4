"""Alpaca's rows (https://github.com/tatsu-lab/stanford_alpaca): an instruction, perhaps an input, and an output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lora_ga_cli.data.row_formats.base import TEXT, RowFormat
from lora_ga_cli.registry import ROW_FORMATS

if TYPE_CHECKING:
    from lora_ga_cli.data.source import Row

PROMPT = (
    "Below is an instruction that describes a task"
    "{?input}, paired with an input that provides further context{/input}. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n"
    "{?input}### Input:\n{input}\n\n{/input}"
    "### Response:\n"
)
"""The two prompts of the repository's train.py, with and without an input, in one template. A line end stands after
``### Response:``, which separates it from the answer."""


@ROW_FORMATS.register("alpaca")
class AlpacaRows(RowFormat):
    """``{"instruction": "…", "input": "…", "output": "…"}``, where ``input`` may be absent, null or empty."""

    columns: ClassVar = {"instruction": TEXT, "output": TEXT}
    optional = ("input",)
    aliases: ClassVar = {"output": ("response",)}
    tasks = ("causal_lm", "seq2seq_lm")
    precedence = 40
    fields = ("prompt", "answer", "label", "label_names")

    @classmethod
    def options(cls, rows: Sequence[Row]) -> dict[str, str]:
        return {"prompt": PROMPT, "answer": "{output}"}
