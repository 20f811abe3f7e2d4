"""Classifiers: a text or a pair, and its class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lora_ga_cli.data.cutting import encode_cut
from lora_ga_cli.data.examples.base import Example, columns_of
from lora_ga_cli.data.labels import LabelReader
from lora_ga_cli.data.template import Template

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import DatasetConfig
    from lora_ga_cli.data.source import Row


class Classify:
    """``text``, and ``text_pair`` if given, as the tokenizer joins them; ``labels`` is the class number.

    ``token_type_ids`` is kept for pairs only, where the tokenizer makes them: for one text they are all 0, which is
    what a model assumes.
    """

    def __init__(self, config: DatasetConfig, tokenizer: Any, label_names: Sequence[str]):
        assert config.text is not None
        assert config.label is not None
        self._text = Template(config.text)
        self._pair = Template(config.text_pair) if config.text_pair is not None else None
        self._label = config.label
        self._class_of = LabelReader(label_names)
        self._tokenizer = tokenizer
        self._columns = ["input_ids"]
        if self._pair is not None and "token_type_ids" in tokenizer.model_input_names:
            self._columns.append("token_type_ids")
        self.features = columns_of(tokens=self._columns, numbers=["labels", "length"])

    def read(self, row: Row) -> tuple[str, str | None, int]:
        pair = self._pair.fill(row) if self._pair is not None else None
        return self._text.fill(row), pair, self._class_of(row.get(self._label), self._label)

    def tokenize(self, parts: Sequence[tuple[str, str | None, int]]) -> list[Example]:
        if not parts:
            return []
        pairs = [pair for _, pair, _ in parts] if self._pair is not None else None
        tokens = self._tokenizer([text for text, _, _ in parts], pairs, return_attention_mask=False, verbose=False)
        return [
            self._example({name: tokens[name][index] for name in self._columns}, part)
            for index, part in enumerate(parts)
        ]

    def _example(self, tokens: dict[str, list[int]], part: tuple[str, str | None, int]) -> Example:
        return Example({**tokens, "labels": part[2], "length": len(tokens["input_ids"])}, keep=part)

    def cut(self, example: Example, max_length: int) -> Example:
        """The beginning; of a pair the longer text is cut first. The tokenizer's own tokens stay."""
        text, pair, _ = example.keep
        tokens = encode_cut(self._tokenizer, text, pair, max_length)
        return self._example({name: list(tokens[name]) for name in self._columns}, example.keep)

    def learns(self, example: Example) -> bool:
        return True
