"""What tests of the forms share: making a form, and writing its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_ga_cli.config.row_forms import row_form
from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data.examples.base import Example, Form


def make_form(config: DatasetConfig, task: str, tokenizer: Any, label_names: Sequence[str] | None = None) -> Form:
    form: Form = row_form(config, task)(config, tokenizer, label_names)
    return form


def one_example(form: Form, row: dict[str, Any]) -> Example:
    (example,) = form.tokenize([form.read(row)])
    return example


def tokens(tokenizer: Any, example: Example, column: str = "input_ids") -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(example.row[column]))


def learned_tokens(tokenizer: Any, example: Example) -> str:
    """The tokens with a loss; a dot stands for each of the others."""
    pairs = zip(example.row["input_ids"], example.row["labels"], strict=True)
    assert all(label in (-100, token) for token, label in pairs)
    labels = example.row["labels"]
    return " ".join("." if label == -100 else tokenizer.convert_ids_to_tokens(label) for label in labels)
