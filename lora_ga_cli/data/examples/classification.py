"""Classifiers: a text or a pair of texts, and its class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lora_ga_cli.data.collate import collate_classes
from lora_ga_cli.data.examples.base import Example, Form, features_of
from lora_ga_cli.data.labels import LabelReader
from lora_ga_cli.data.show import ARROW, MASKED_STYLE, Segment, append_tokens
from lora_ga_cli.data.template import Template
from lora_ga_cli.data.tokens import truncated_tokens
from lora_ga_cli.registry import EXAMPLES

if TYPE_CHECKING:
    import torch
    from datasets.features import Features
    from rich.text import Text

    from lora_ga_cli.config.schema import DatasetConfig
    from lora_ga_cli.data.source import Row

Part = tuple[str, str | None, int]
"""The text, the second text of a pair, and the class number."""


@EXAMPLES.register("classification")
class Classification(Form):
    """``text``, and ``text_pair`` if given, as the tokenizer joins them; ``labels`` is the class number.

    ``token_type_ids`` is kept for pairs only, where the tokenizer makes them: for one text they are all 0, which is
    what a model assumes.
    """

    tasks = ("sequence_classification",)
    required = ("text", "label")
    optional = ("text_pair", "label_names")
    has_classes = True

    def __init__(self, config: DatasetConfig, tokenizer: Any, label_names: Sequence[str] | None = None):
        assert config.text is not None
        assert config.label is not None
        super().__init__(config, tokenizer, label_names)
        self._text = Template(config.text)
        self._pair = Template(config.text_pair) if config.text_pair is not None else None
        self._label = config.label
        self._class_of = LabelReader(label_names or [])
        self._columns = ["input_ids"]
        if self._pair is not None and "token_type_ids" in tokenizer.model_input_names:
            self._columns.append("token_type_ids")

    @cached_property
    def features(self) -> Features:
        return features_of(tokens=self._columns, numbers=["labels", "length"])

    def read(self, row: Row) -> Part:
        pair = self._pair.fill(row) if self._pair is not None else None
        return self._text.fill(row), pair, self._class_of(row.get(self._label), self._label)

    def tokenize(self, parts: Sequence[Part]) -> list[Example]:
        if not parts:
            return []
        pairs = [pair for _, pair, _ in parts] if self._pair is not None else None
        tokens = self.tokenizer([text for text, _, _ in parts], pairs, return_attention_mask=False, verbose=False)
        return [
            self._example({name: tokens[name][index] for name in self._columns}, part)
            for index, part in enumerate(parts)
        ]

    def _example(self, tokens: dict[str, list[int]], part: Part) -> Example:
        return Example({**tokens, "labels": part[2], "length": len(tokens["input_ids"])}, keep=part)

    def truncate(self, example: Example, max_length: int) -> Example:
        """The beginning; of a pair the longer text is truncated first. The tokenizer's own tokens stay."""
        text, pair, _ = example.keep
        tokens = truncated_tokens(self.tokenizer, text, pair, max_length)
        return self._example({name: list(tokens[name]) for name in self._columns}, example.keep)

    def learns(self, example: Example) -> bool:
        """Always: the class has a loss."""
        return True

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        return collate_classes(self.tokenizer, rows)

    def show(self, row: Mapping[str, Any]) -> Text:
        """The text, an arrow, and the class: its name, or its number where there are no names."""
        from rich.text import Text

        text = Text()
        # a classifier reads all of its text for one class, so no part of it is dim
        append_tokens(text, self.tokenizer, row["input_ids"], [True] * len(row["input_ids"]))
        text.append(ARROW, MASKED_STYLE)
        number = int(row["labels"])
        return text.append(self.label_names[number] if self.label_names else str(number), "bold")

    def parts(self, row: Mapping[str, Any]) -> list[Segment]:
        """The text, an arrow, and the class, which alone is what the model is to answer."""
        *text, name = super().parts(row)
        return [*(replace(part, learned=False) for part in text), name]
