"""What loading returns: tokenized rows, and how many rows were left out, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lora_ga_cli.data.ends import Ends
from lora_ga_cli.data.identity import rows_hash

if TYPE_CHECKING:
    from datasets.arrow_dataset import Dataset

    from lora_ga_cli.config.schema import DatasetConfig
    from lora_ga_cli.data.examples.base import Form


@dataclass(frozen=True)
class Split:
    """Tokenized rows.

    Args:
        name: ``train``, ``validation``, or as the caller chose.
        rows: columns as the form makes them. The shipped forms make ``input_ids``, ``labels`` (-100 where there is no
            loss; a class number for a classifier) and ``length`` (tokens; of the longer side for seq2seq_lm), and
            ``token_type_ids`` where the tokenizer makes them for pairs. For generation they make ``prompt`` and
            ``reference`` (strings: what is shown, and what is expected), and for causal_lm ``prompt_length``:
            ``input_ids[:prompt_length]`` is the prompt, token by token.
        skipped: rows that were left out, counted by reason; only reasons that occurred.
        truncated: rows that were truncated to the longest allowed length.
        form: what made the rows; it collates and shows them.
        source: the file, or the hub data set and its split, for people.
        reused: whether the rows were tokenized by an earlier run and read from the cache.
        read_rows: how many rows of the source ``rows`` were made of, where one may have become several; None means one
            each.
        notes: what a user should know about how the rows were read, and about some of them; a line each.
    """

    name: str
    rows: Dataset
    skipped: dict[str, int]
    truncated: int
    form: Form
    source: str = ""
    reused: bool = False
    read_rows: int | None = None
    notes: Sequence[str] = ()

    @property
    def ends(self) -> Ends:
        """What ends an answer of these rows."""
        return type(self.form).ends(self.form.config, self.form.tokenizer)

    @cached_property
    def sha256(self) -> str:
        """The identity of the rows, see `rows_hash`."""
        return rows_hash(self.rows)

    def remember(self, sha256: str) -> None:
        """Sets `sha256` to what was computed before; a copy with other rows computes its own."""
        vars(self)["sha256"] = sha256

    def summary(self) -> str:
        """One line for people: rows, tokens, and how many rows were skipped or truncated."""
        lengths = np.sort(self.rows.select_columns(["length"]).with_format("numpy")["length"][:])
        middle = lengths[(len(lengths) - 1) // 2]
        count = f"{len(lengths):,} {'row' if len(lengths) == 1 else 'rows'}"
        if self.read_rows not in (None, len(lengths)):
            count = f"{len(lengths):,} examples of {self.read_rows:,} {'row' if self.read_rows == 1 else 'rows'}"
        line = f"{self.name}: {count}, {lengths[0]:,} to {lengths[-1]:,} tokens (median {middle:,})"
        for reason, number in self.skipped.items():
            line += f"; {number:,} skipped: {reason}"
        line += f"; {self.truncated:,} truncated" if self.truncated else ""
        return line + ("; tokenized before" if self.reused else "")


@dataclass(frozen=True)
class Data:
    """The splits of a data set that were asked for.

    Args:
        train: None if it was not asked for.
        validation: None if it was not asked for, or the configuration gives none.
        label_names: for a classifier the names of the classes in the order of their numbers, else None.
        config: the data set's options, with those that were found in the rows.
        notes: lines for the user that say what was found in the rows.
    """

    train: Split | None
    validation: Split | None
    label_names: list[str] | None
    config: DatasetConfig
    notes: list[str] = field(default_factory=list)
