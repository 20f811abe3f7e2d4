"""Causal models: a prompt without loss, then the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lora_ga_cli.data.examples.base import MASKED, Example, columns_of
from lora_ga_cli.data.labels import LabelWriter
from lora_ga_cli.data.template import Template
from lora_ga_cli.errors import DataError, Fault

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import DatasetConfig
    from lora_ga_cli.data.source import Row


class PromptAnswer:
    """``prompt`` then ``answer`` then the end-of-text token.

    The two are tokenized apart: a tokenizer may merge the prompt's last characters with the answer's first, and then
    the model would learn from other prompt tokens than it is shown when it generates. The prompt starts with what the
    tokenizer puts at a text's start (often a beginning-of-text token) and never ends with what it puts at the end.
    """

    def __init__(self, config: DatasetConfig, tokenizer: Any):
        assert config.prompt is not None
        assert config.answer is not None
        self.features = columns_of(
            tokens=["input_ids", "labels"], numbers=["length", "prompt_length"], texts=["prompt", "reference"]
        )
        self._prompt = Template(config.prompt)
        self._answer = Template(config.answer)
        self._named = LabelWriter(config)
        self._tokenizer = tokenizer
        self._start = leading_tokens(tokenizer)

    def read(self, row: Row) -> tuple[str, str]:
        row = self._named(row)
        return self._prompt.fill(row), self._answer.fill(row)

    def tokenize(self, parts: Sequence[tuple[str, str]]) -> list[Example]:
        prompts = plain_tokens(self._tokenizer, [prompt for prompt, _ in parts])
        answers = plain_tokens(self._tokenizer, [answer for _, answer in parts])
        return [
            self._example(self._start + prompt, [*answer, self._tokenizer.eos_token_id], *texts)
            for prompt, answer, texts in zip(prompts, answers, parts, strict=True)
        ]

    def _example(self, prompt: list[int], answer: list[int], shown: str, expected: str) -> Example:
        row = {
            "input_ids": prompt + answer,
            "labels": [MASKED] * len(prompt) + answer,
            "length": len(prompt) + len(answer),
            "prompt_length": len(prompt),
            "prompt": shown,
            "reference": expected,
        }
        return Example(row)

    def cut(self, example: Example, max_length: int) -> Example:
        """The first tokens. The end-of-text token goes too: the model is not to learn to stop there."""
        return Example(cut_causal(example.row, max_length))

    def learns(self, example: Example) -> bool:
        return causal_learns(example.row)


def cut_causal(row: dict[str, Any], max_length: int) -> dict[str, Any]:
    """A causal row with its first tokens only."""
    cut = {"input_ids": row["input_ids"][:max_length], "labels": row["labels"][:max_length]}
    return {**row, **cut, "length": len(cut["input_ids"])}


def causal_learns(row: dict[str, Any]) -> bool:
    """Whether a loss remains; a causal model predicts no first token, so that one does not count."""
    return any(label != MASKED for label in row["labels"][1:])


def plain_tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of each text without any that the tokenizer adds."""
    if not texts:
        return []
    result: list[list[int]] = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
    )["input_ids"]
    return result


def leading_tokens(tokenizer: Any) -> list[int]:
    """What the tokenizer puts at the start of a text, found from how it treats one.

    Raises:
        DataError: the text's own tokens are not among those with the added ones.
    """
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    for start in range(len(full) - len(plain) + 1):
        if plain and full[start : start + len(plain)] == plain:
            return full[:start]
    raise DataError(
        [Fault("model.tokenizer", "cannot tell which tokens it puts at the start of a text", "take another")]
    )
