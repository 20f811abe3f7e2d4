"""The forms of an example: what each needs of a row, and the tokens it makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from lora_ga_cli.data.patterns import pattern_faults
from lora_ga_cli.data.template import Template, TemplateError
from lora_ga_cli.errors import Fault

if TYPE_CHECKING:
    from datasets.features import Features

    from lora_ga_cli.config.schema import DatasetConfig, Task
    from lora_ga_cli.data.source import Row

MASKED = -100
"""The label of a token without loss, as PyTorch's cross entropy ignores it."""


@dataclass(frozen=True)
class Example:
    """One tokenized row.

    Args:
        row: the columns of `Split.rows`.
        keep: what the form needs to cut the row later.
    """

    row: dict[str, Any]
    keep: Any = field(default=None, repr=False)


class Form(Protocol):
    """Makes examples of rows in two steps, so that texts are checked row by row and tokenized many at once."""

    features: Features
    """Columns of the examples."""

    def read(self, row: Row) -> Any:
        """What is tokenized of a row. Raises `BadRow`."""
        ...

    def tokenize(self, parts: Sequence[Any]) -> list[Example]:
        """Examples of what `read` gave, whatever their length."""
        ...

    def cut(self, example: Example, max_length: int) -> Example:
        """The example with only the beginning of its tokens."""
        ...

    def learns(self, example: Example) -> bool:
        """Whether any token (or the class) has a loss."""
        ...


def form_faults(config: DatasetConfig, task: Task, tokenizer: Any) -> list[Fault]:
    """What is wrong with templates and tokenizer, before any row is read."""
    faults = pattern_faults(config)
    for option in ("prompt", "answer", "text", "text_pair"):
        if (text := getattr(config, option)) is not None:
            try:
                Template(text)
            except TemplateError as error:
                faults.append(Fault(f"dataset.{option}", str(error)))
    if task == "causal_lm" and config.messages is not None and not tokenizer.chat_template:
        hint = "take a chat model, or its tokenizer by model.tokenizer=NAME, or give dataset.prompt and dataset.answer"
        faults.append(Fault("dataset.messages", "the tokenizer has no chat template", hint))
    if task == "causal_lm" and config.messages is None and tokenizer.eos_token_id is None:
        faults.append(
            Fault("model.tokenizer", "the tokenizer has no end-of-text token, which ends each answer", "take another")
        )
    return faults


def form_for(config: DatasetConfig, task: Task, tokenizer: Any, label_names: Sequence[str] | None) -> Form:
    """The form that a configuration without `form_faults` describes."""
    if task == "sequence_classification":
        from lora_ga_cli.data.examples.classification import Classify

        return Classify(config, tokenizer, label_names or [])
    if task == "seq2seq_lm":
        from lora_ga_cli.data.examples.text_to_text import TextToText

        return TextToText(config, tokenizer)
    if config.messages is not None:
        from lora_ga_cli.data.examples.chat import Chat

        return Chat(config, tokenizer)
    from lora_ga_cli.data.examples.prompt_answer import PromptAnswer

    return PromptAnswer(config, tokenizer)


def form_needs(config: DatasetConfig) -> dict[str, str]:
    """Columns that the configuration names (after renaming), with the option that names each first."""
    needs: dict[str, str] = {}
    for option in ("prompt", "answer", "text", "text_pair"):
        if (text := getattr(config, option)) is not None:
            for column in Template(text).columns:
                needs.setdefault(column, f"dataset.{option}")
    for option in ("messages", "label"):
        if (column := getattr(config, option)) is not None:
            needs.setdefault(column, f"dataset.{option}")
    for option in ("keep", "extract"):
        for column in getattr(config, option):
            needs.setdefault(column, f"dataset.{option}")
    return needs


def columns_of(*, tokens: Sequence[str], numbers: Sequence[str], texts: Sequence[str] = ()) -> Features:
    """Types of an example's columns: a list of token numbers, a whole number, or a text a row."""
    from datasets.features import Features, List, Value

    types: dict[str, Any] = {name: List(Value("int32")) for name in tokens}
    types |= {name: Value("int32") for name in numbers}
    # 64-bit offsets: all prompts of a data set together may exceed 2 GiB
    types |= {name: Value("large_string") for name in texts}
    return Features(types)  # type: ignore[arg-type, no-untyped-call]
