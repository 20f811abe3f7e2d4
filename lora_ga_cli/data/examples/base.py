"""What a form of a row is. A form is one file: it is written and registered there, and found by its name.

.. code-block:: python

    @EXAMPLES.register("joined_lines")  # chosen by dataset.form=joined_lines
    class JoinedLines(Form):
        tasks = ("causal_lm",)

        def read(self, row): ...
        def tokenize(self, parts): ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from lora_ga_cli.data.collate import collate_tokens
from lora_ga_cli.data.ends import Ends
from lora_ga_cli.data.flatten import flatten_tokens
from lora_ga_cli.data.show import Segment, append_tokens, segments
from lora_ga_cli.data.template import Template, TemplateError
from lora_ga_cli.data.tokens import MASKED
from lora_ga_cli.errors import Fault

if TYPE_CHECKING:
    import torch
    from datasets.features import Features
    from rich.text import Text

    from lora_ga_cli.config.schema import DatasetConfig
    from lora_ga_cli.data.source import Row

TEMPLATES = ("prompt", "answer", "text", "text_pair")
"""Options of `dataset` that hold a template."""
COLUMNS = ("messages", "label", "tools")
"""Options of `dataset` that hold the name of a column."""


@dataclass(frozen=True)
class Example:
    """One tokenized row.

    Args:
        row: the columns of `Split.rows`.
        keep: what the form needs to truncate the row later.
        notes: what is to be said of the row, for people; each is counted and printed once for all rows.
    """

    row: dict[str, Any]
    keep: Any = field(default=None, repr=False)
    notes: tuple[str, ...] = ()


class Form(ABC):
    """How rows become examples, batches, and text for people.

    A form states which options select it, reads a row, and tokenizes what it read. Reading and tokenizing are apart, so
    that texts are checked row by row and tokenized many at once. Everything else has a default, which is right for a
    causal model: its rows have ``input_ids`` and ``labels`` of the same length.

    Args:
        config: how the data set is read; without `faults`.
        tokenizer: a tokenizer of transformers; it is not changed.
        label_names: for a form with `named_classes`, the names of the classes in the order of their numbers.
    """

    tasks: ClassVar[tuple[str, ...]]
    """The values of ``model.task`` that the form serves."""
    required: ClassVar[tuple[str, ...]] = ()
    """Options of `dataset` that select the form when all of them are given. Without any, only ``dataset.form`` selects
    it."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Other options of `dataset` that the form reads, out of `config.row_forms.ROW_OPTIONS`."""
    extra_options: ClassVar[tuple[str, ...]] = ()
    """Names inside ``dataset.options`` that the form reads."""
    has_classes: ClassVar[bool] = False
    """Whether the labels are class numbers, so that the data set's classes have names."""

    def __init__(self, config: DatasetConfig, tokenizer: Any, label_names: Sequence[str] | None = None):
        self.config = config
        self.tokenizer = tokenizer
        self.label_names = label_names

    @classmethod
    def flattens(cls) -> bool:
        """Whether `flatten` makes the batches of `collate` without padding. A form of a causal model that collates in
        its own way has to flatten in its own way too."""
        own = cls.collate is not Form.collate and cls.flatten is Form.flatten
        return "causal_lm" in cls.tasks and not own

    @classmethod
    def named_classes(cls, config: DatasetConfig) -> bool:
        """Whether rows have a class whose name is needed: it is found in the data where ``dataset.label_names`` does
        not give it."""
        return cls.has_classes

    @classmethod
    def problems(cls, config: DatasetConfig) -> Iterator[str]:
        """Options that do not go together, a line each. Asked when the configuration is checked."""
        yield from ()

    @classmethod
    def faults(cls, config: DatasetConfig, tokenizer: Any) -> list[Fault]:
        """What is wrong with templates and tokenizer. Asked before any row is read."""
        faults = []
        for option, text in cls._given(config, TEMPLATES):
            try:
                constant = not Template(text).columns
            except TemplateError as error:
                faults.append(Fault(f"dataset.{option}", str(error)))
                continue
            # a prompt may be the same for all rows, and is then more than a word
            if constant and (option != "prompt" or text.isidentifier()):
                hint = f"""to insert a column: 'dataset.{option}="{{{text if text.isidentifier() else "column"}}}"'"""
                faults.append(
                    Fault(f"dataset.{option}", f"{text!r} inserts no column, so all rows would have it", hint)
                )
        return faults

    @classmethod
    def columns(cls, config: DatasetConfig) -> dict[str, str]:
        """The columns (after renaming) that the form reads, with the option that names each first."""
        columns: dict[str, str] = {}
        for option, text in cls._given(config, TEMPLATES):
            for column in Template(text).columns:
                columns.setdefault(column, f"dataset.{option}")
        for option, column in cls._given(config, COLUMNS):
            columns.setdefault(column, f"dataset.{option}")
        return columns

    @classmethod
    def columns_if_present(cls, config: DatasetConfig) -> Sequence[str]:
        """Other columns (after renaming) that the form reads where there are any."""
        return ()

    @classmethod
    def ends(cls, config: DatasetConfig, tokenizer: Any) -> Ends:
        """What ends an answer of the rows, so that a model which learned them stops there. By default the end-of-text
        token."""
        end = tokenizer.eos_token_id
        return Ends(() if end is None else (end,))

    @classmethod
    def warnings(cls, config: DatasetConfig, tokenizer: Any) -> list[str]:
        """What a user should know before training on such rows, a line each."""
        return []

    @classmethod
    def _given(cls, config: DatasetConfig, options: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Those of the options that the form reads and the configuration gives."""
        for option in options:
            if option in (*cls.required, *cls.optional) and getattr(config, option) is not None:
                yield option, getattr(config, option)

    @cached_property
    def features(self) -> Features:
        """Names and types of the columns of `Example.row`. ``length``, in tokens, is always one of them."""
        return features_of(
            tokens=["input_ids", "labels"], numbers=["length", "prompt_length"], texts=["prompt", "reference"]
        )

    @abstractmethod
    def read(self, row: Row) -> Any:
        """What is tokenized of a row.

        Raises:
            BadRow: the row cannot become an example.
        """

    @abstractmethod
    def tokenize(self, parts: Sequence[Any]) -> list[Example]:
        """Examples of what `read` returned, whatever their length."""

    def examples(self, parts: Sequence[Any]) -> list[list[Example]]:
        """For each part that `read` returned its examples. A form whose rows may become several examples overrides
        this; by default every row is one."""
        return [[example] for example in self.tokenize(parts)]

    def truncate(self, example: Example, max_length: int) -> Example:
        """The example with only the first tokens. An end-of-text token goes too: the model must not learn to stop
        there."""
        row = example.row
        first = {name: row[name][:max_length] for name in ("input_ids", "labels")}
        return replace(example, row={**row, **first, "length": len(first["input_ids"])})

    def learns(self, example: Example) -> bool:
        """Whether any token has a loss. A causal model predicts no first token, so that one does not count."""
        return any(label != MASKED for label in example.row["labels"][1:])

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch of rows, as the model takes it for a forward pass with loss; all tensors are int64."""
        return collate_tokens(self.tokenizer, rows)

    def flatten(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch of a causal model whose rows follow one another, see `flatten_tokens`."""
        return flatten_tokens(rows)

    def show(self, row: Mapping[str, Any]) -> Text:
        """A row as the model sees it, for people. What has no loss is dim; special tokens are magenta."""
        from rich.text import Text

        text = Text()
        append_tokens(text, self.tokenizer, row["input_ids"], [label != MASKED for label in row["labels"]])
        return text

    def parts(self, row: Mapping[str, Any]) -> list[Segment]:
        """The text of `show` in parts with and without loss, for where no style can be shown."""
        return segments(self.show(row))


def features_of(*, tokens: Sequence[str], numbers: Sequence[str], texts: Sequence[str] = ()) -> Features:
    """Types of an example's columns: lists of token numbers, integers, and texts."""
    from datasets.features import Features, List, Value

    types: dict[str, Any] = {name: List(Value("int32")) for name in tokens}
    types |= {name: Value("int32") for name in numbers}
    # 64-bit offsets: all prompts of a data set together may exceed 2 GiB
    types |= {name: Value("large_string") for name in texts}
    return Features(types)  # type: ignore[arg-type, no-untyped-call]
