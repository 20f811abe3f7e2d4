"""Encoder-decoder models: the prompt goes in, the answer comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lora_ga_cli.data.cutting import encode_cut
from lora_ga_cli.data.examples.base import Example, columns_of
from lora_ga_cli.data.labels import LabelWriter
from lora_ga_cli.data.template import Template

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import DatasetConfig
    from lora_ga_cli.data.source import Row


class TextToText:
    """``prompt`` is the encoder's input and ``answer`` the decoder's labels, each as the tokenizer ends it.

    A row's length is that of its longer side, and the longest allowed length counts for each side.
    """

    def __init__(self, config: DatasetConfig, tokenizer: Any):
        assert config.prompt is not None
        assert config.answer is not None
        self.features = columns_of(tokens=["input_ids", "labels"], numbers=["length"], texts=["prompt", "reference"])
        self._prompt = Template(config.prompt)
        self._answer = Template(config.answer)
        self._named = LabelWriter(config)
        self._tokenizer = tokenizer

    def read(self, row: Row) -> tuple[str, str]:
        row = self._named(row)
        return self._prompt.fill(row), self._answer.fill(row)

    def tokenize(self, parts: Sequence[tuple[str, str]]) -> list[Example]:
        if not parts:
            return []
        prompts = self._tokenizer([prompt for prompt, _ in parts], verbose=False)["input_ids"]
        answers = self._tokenizer(text_target=[answer for _, answer in parts], verbose=False)["input_ids"]
        return [
            self._example(prompt, self._ended(answer), *texts)
            for prompt, answer, texts in zip(prompts, answers, parts, strict=True)
        ]

    def _ended(self, answer: list[int]) -> list[int]:
        end = self._tokenizer.eos_token_id
        return answer if end is None or answer[-1:] == [end] else [*answer, end]

    def _example(self, prompt: list[int], answer: list[int], shown: str, expected: str) -> Example:
        length = max(len(prompt), len(answer))
        return Example(
            {"input_ids": prompt, "labels": answer, "length": length, "prompt": shown, "reference": expected}
        )

    def cut(self, example: Example, max_length: int) -> Example:
        """The first tokens of each side.

        The input keeps its end token, as the encoder knows texts. The labels lose theirs: the model is not to learn to
        stop there.
        """
        row = example.row
        prompt = row["input_ids"]
        if len(prompt) > max_length:
            prompt = encode_cut(self._tokenizer, row["prompt"], None, max_length)["input_ids"]
        return self._example(prompt, row["labels"][:max_length], row["prompt"], row["reference"])

    def learns(self, example: Example) -> bool:
        return bool(example.row["labels"])
