"""A form of a row as a user adds one, in one file: lines of a dialog in two columns, joined to a prompt and an answer.

Rows are like ``{"question": ["2 and 2?", "in short:"], "reply": ["4"]}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_ga_cli.data.examples.base import Example, Form
from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.data.tokens import MASKED, answer_tokens, prompt_tokens
from lora_ga_cli.registry import EXAMPLES


@EXAMPLES.register("joined_lines")
class JoinedLines(Form):
    """``question`` then ``reply``, each a list of lines; ``dataset.options.separator`` stands between two lines."""

    tasks = ("causal_lm",)
    extra_options = ("separator",)

    @classmethod
    def columns(cls, config: Any) -> dict[str, str]:
        return dict.fromkeys(("question", "reply"), "dataset.form")

    def read(self, row: dict[str, Any]) -> tuple[str, str]:
        for column in ("question", "reply"):
            if not isinstance(row.get(column), list):
                raise BadRow(f"column {column!r} holds no list of lines")
        separator = self.config.options.get("separator", "\n")
        return separator.join(row["question"]) + separator, separator.join(row["reply"])

    def tokenize(self, parts: Sequence[tuple[str, str]]) -> list[Example]:
        examples = []
        for prompt_text, reference in parts:
            (prompt,) = prompt_tokens(self.tokenizer, [prompt_text])
            answer = answer_tokens(self.tokenizer, prompt, prompt_text, reference)
            row = {"input_ids": prompt + answer, "labels": [MASKED] * len(prompt) + answer}
            row |= {"length": len(prompt) + len(answer), "prompt_length": len(prompt)}
            examples.append(Example({**row, "prompt": prompt_text, "reference": reference}))
        return examples
