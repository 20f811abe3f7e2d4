"""Causal models: a prompt without loss, then the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lora_ga_cli.data.examples.base import Example, Form
from lora_ga_cli.data.faults import EmptyAnswer
from lora_ga_cli.data.labels import LabelWriter
from lora_ga_cli.data.template import Template
from lora_ga_cli.data.tokens import MASKED, end_faults, extended_tokens, leading_tokens, prompt_tokens
from lora_ga_cli.errors import Fault
from lora_ga_cli.registry import EXAMPLES

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import DatasetConfig
    from lora_ga_cli.data.source import Row


class PromptAndAnswer(Form):
    """Reading of rows by the templates ``prompt`` and ``answer``, which may insert the name of a class."""

    required = ("prompt", "answer")
    optional = ("label", "label_names")

    def __init__(self, config: DatasetConfig, tokenizer: Any, label_names: Sequence[str] | None = None):
        assert config.prompt is not None
        assert config.answer is not None
        super().__init__(config, tokenizer, label_names)
        self._prompt = Template(config.prompt)
        self._answer = Template(config.answer)
        self._with_label_name = LabelWriter(config.label, label_names or config.label_names or [])

    @classmethod
    def named_classes(cls, config: DatasetConfig) -> bool:
        return config.label is not None

    def read(self, row: Row) -> tuple[str, str]:
        """The prompt and the answer.

        Raises:
            BadRow: one of them cannot be filled in, or the answer is empty.
        """
        row = self._with_label_name(row)
        prompt, answer = self._prompt.fill(row), self._answer.fill(row)
        if not answer.strip() and not self.config.allow_empty_answers:
            raise EmptyAnswer("the answer is empty, which teaches the model to answer nothing")
        return prompt, answer


@EXAMPLES.register("prompt_answer")
class PromptAnswer(PromptAndAnswer):
    """``prompt`` then ``answer`` then the end-of-text token.

    The prompt's tokens are those that the model is shown when it generates, and the tokens of both decode to both
    texts. Where a tokenizer would merge the prompt's last characters with the answer's first, they are kept apart. The
    prompt starts with what the tokenizer puts at a text's start (often a beginning-of-text token), once, and never ends
    with what it puts at the end.
    """

    tasks = ("causal_lm",)

    def __init__(self, config: DatasetConfig, tokenizer: Any, label_names: Sequence[str] | None = None):
        super().__init__(config, tokenizer, label_names)
        self._start = leading_tokens(tokenizer)

    @classmethod
    def faults(cls, config: DatasetConfig, tokenizer: Any) -> list[Fault]:
        return [*super().faults(config, tokenizer), *end_faults(tokenizer, "answer")]

    def tokenize(self, parts: Sequence[tuple[str, str]]) -> list[Example]:
        prompts = prompt_tokens(self.tokenizer, [prompt for prompt, _ in parts], leading=self._start)
        together = prompt_tokens(self.tokenizer, ["".join(texts) for texts in parts], leading=self._start)
        examples = []
        for prompt, both, texts in zip(prompts, together, parts, strict=True):
            answer = extended_tokens(self.tokenizer, prompt, texts[1], both)[len(prompt) :]
            examples.append(self._example(prompt, [*answer, self.tokenizer.eos_token_id], *texts))
        return examples

    def _example(self, prompt: list[int], answer: list[int], prompt_text: str, reference: str) -> Example:
        row = {
            "input_ids": prompt + answer,
            "labels": [MASKED] * len(prompt) + answer,
            "length": len(prompt) + len(answer),
            "prompt_length": len(prompt),
            "prompt": prompt_text,
            "reference": reference,
        }
        return Example(row)
