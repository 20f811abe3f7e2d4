"""Encoder-decoder models: the prompt goes in, the answer comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lora_ga_cli.data.examples.base import Example, features_of
from lora_ga_cli.data.examples.prompt_answer import PromptAndAnswer
from lora_ga_cli.data.show import ARROW, MASKED_STYLE, append_tokens
from lora_ga_cli.data.tokens import MASKED, truncated_tokens
from lora_ga_cli.registry import EXAMPLES

if TYPE_CHECKING:
    from datasets.features import Features
    from rich.text import Text


@EXAMPLES.register("text_to_text")
class TextToText(PromptAndAnswer):
    """``prompt`` is the encoder's input and ``answer`` the decoder's labels, each as the tokenizer ends it.

    A row's length is that of its longer side, and the longest allowed length counts for each side.
    """

    tasks = ("seq2seq_lm",)

    @cached_property
    def features(self) -> Features:
        return features_of(tokens=["input_ids", "labels"], numbers=["length"], texts=["prompt", "reference"])

    def tokenize(self, parts: Sequence[tuple[str, str]]) -> list[Example]:
        if not parts:
            return []
        prompts = self.tokenizer([prompt for prompt, _ in parts], verbose=False)["input_ids"]
        answers = self.tokenizer(text_target=[answer for _, answer in parts], verbose=False)["input_ids"]
        return [
            self._example(prompt, self._ended(answer), *texts)
            for prompt, answer, texts in zip(prompts, answers, parts, strict=True)
        ]

    def _ended(self, answer: list[int]) -> list[int]:
        end = self.tokenizer.eos_token_id
        return answer if end is None or answer[-1:] == [end] else [*answer, end]

    def _example(self, prompt: list[int], answer: list[int], prompt_text: str, reference: str) -> Example:
        length = max(len(prompt), len(answer))
        return Example(
            {"input_ids": prompt, "labels": answer, "length": length, "prompt": prompt_text, "reference": reference}
        )

    def truncate(self, example: Example, max_length: int) -> Example:
        """The first tokens of each side.

        The input keeps its end token, as the encoder knows texts. The labels lose theirs: the model must not learn to
        stop there.
        """
        row = example.row
        prompt = row["input_ids"]
        if len(prompt) > max_length:
            prompt = truncated_tokens(self.tokenizer, row["prompt"], None, max_length)["input_ids"]
        return self._example(prompt, row["labels"][:max_length], row["prompt"], row["reference"])

    def learns(self, example: Example) -> bool:
        """Whether there is any label: a decoder predicts the first one too."""
        return bool(example.row["labels"])

    def show(self, row: Mapping[str, Any]) -> Text:
        """The input, an arrow, and the labels."""
        from rich.text import Text

        text = Text()
        append_tokens(text, self.tokenizer, row["input_ids"], [False] * len(row["input_ids"]))
        text.append(ARROW, MASKED_STYLE)
        append_tokens(text, self.tokenizer, row["labels"], [label != MASKED for label in row["labels"]])
        return text
