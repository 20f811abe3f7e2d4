"""Causal models: a text that is learned completely, as in pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lora_ga_cli.data.examples.base import Example, Form
from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.data.template import Template
from lora_ga_cli.data.tokens import end_faults, leading_tokens, prompt_tokens
from lora_ga_cli.errors import Fault
from lora_ga_cli.registry import EXAMPLES

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import DatasetConfig
    from lora_ga_cli.data.source import Row


@EXAMPLES.register("plain_text")
class PlainText(Form):
    """``text`` between what the tokenizer puts at a text's start and the end-of-text token. Every token has a loss.

    The prompt is what stands at the start, often a beginning-of-text token; the reference is the text.
    """

    tasks = ("causal_lm",)
    required = ("text",)

    def __init__(self, config: DatasetConfig, tokenizer: Any, label_names: Sequence[str] | None = None):
        assert config.text is not None
        super().__init__(config, tokenizer, label_names)
        self._text = Template(config.text)
        self._start = leading_tokens(tokenizer)

    @classmethod
    def faults(cls, config: DatasetConfig, tokenizer: Any) -> list[Fault]:
        return [*super().faults(config, tokenizer), *end_faults(tokenizer, "text")]

    def read(self, row: Row) -> str:
        """The text.

        Raises:
            BadRow: it is empty, or a column cannot be inserted.
        """
        text = self._text.fill(row)
        if not text.strip():
            raise BadRow("the text is empty")
        return text

    def tokenize(self, parts: Sequence[str]) -> list[Example]:
        texts = prompt_tokens(self.tokenizer, parts, leading=self._start)
        return [
            self._example(text, [*tokens, self.tokenizer.eos_token_id])
            for text, tokens in zip(parts, texts, strict=True)
        ]

    def _example(self, text: str, tokens: list[int]) -> Example:
        row = {
            "input_ids": tokens,
            "labels": list(tokens),
            "length": len(tokens),
            "prompt_length": len(self._start),
            "prompt": "",
            "reference": text,
        }
        return Example(row)
