"""From rows to a tokenized split: taking rows in an order, tokenizing, and what happens to bad and long rows."""

from __future__ import annotations

import secrets
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_ga_cli.data.arrow import Spool
from lora_ga_cli.data.examples.base import Example, Form
from lora_ga_cli.data.faults import FIX_ROWS, BadRow, EmptyAnswer, RowFaults, RowNotes
from lora_ga_cli.data.mixture import Mixture
from lora_ga_cli.data.patterns import Patterns
from lora_ga_cli.data.recognize import format_of_rows
from lora_ga_cli.data.source import Source
from lora_ga_cli.data.split import Split
from lora_ga_cli.errors import DataError, Fault

if TYPE_CHECKING:
    import pyarrow.lib as pa
    from datasets.arrow_dataset import Dataset

    from lora_ga_cli.config.schema import DatasetConfig

BATCH = 1000
"""Rows that are tokenized at once: enough for the tokenizer's threads, and few enough for memory."""

MALFORMED = "malformed"
EMPTY = "an empty answer"
LEFT_OUT = "dataset.keep or dataset.extract does not match"
NOTHING_LEFT = "no token left to learn from"


@dataclass
class Builder:
    """Builds one split.

    Args:
        name: the split's name.
        source: the rows.
        form: makes examples of them.
        lookup: the source's name of each column, by its name after renaming.
        config: lengths, and what happens to bad and long rows.
        max_positions: tokens the model can take, if there is a limit.
        folder: where tokenized rows are written when they become many; None keeps all of them in memory.
        vocabulary: the tokens that the model's embedding has rows for, if it is known.
    """

    name: str
    source: Source
    form: Form
    lookup: dict[str, str]
    config: DatasetConfig
    max_positions: int | None = None
    folder: Path | None = None
    vocabulary: int | None = None

    def build(self, order: Sequence[int], limit: int | None, malformed: int = 0) -> Split:
        """The examples of the first ``limit`` rows in ``order``; rows that are skipped do not count.

        Args:
            malformed: rows that were left out on reading, to be counted as skipped.

        Raises:
            DataError: bad or long rows where the configuration has them as errors (all of them in one), or no row left.
        """
        self._skipped = Counter({MALFORMED: malformed})
        self._truncated = 0
        self._longest = 0
        self._bad = RowFaults(self.source.name)
        self._notes = RowNotes()
        self._kept = array("q")
        self._counted: set[tuple[str, int]] = set()
        self._unlearned = RowNotes("example", "examples")
        spool = Spool(self.folder)
        kept = position = 0
        # a faulty row counts for `limit`: no other row is drawn in its place, since the run ends anyway
        while position < len(order) and (limit is None or kept + len(self._bad) < limit):
            room = BATCH if limit is None else min(BATCH, limit - kept - len(self._bad))
            indices = order[position : position + room]
            position += len(indices)
            rows = []
            for examples in self._examples(indices):
                rows += [example.row for example in examples]
                kept += 1
            if rows and not len(self._bad):
                spool.add(self._stored(rows))
        if len(self._bad):
            raise DataError(self._bad.faults(self._hints()))
        if not kept:
            reasons = "; ".join(f"{count:,} skipped: {reason}" for reason, count in self._skipped.items() if count)
            raise DataError(
                [Fault(self.source.name, f"no row is left for {self.name}{f' ({reasons})' if reasons else ''}")]
            )
        return Split(
            self.name,
            _dataset(spool.finish()),
            {reason: count for reason, count in self._skipped.items() if count},
            self._truncated,
            self.form,
            self.source.name,
            read_rows=kept,
            notes=[*self.source.notes, *self._shares(), *self._notes.lines(), *self._unlearned.lines()],
        )

    def _examples(self, indices: Sequence[int]) -> Iterator[list[Example]]:
        """For each row that is kept its examples, at least one."""
        places: list[int] = []
        parts: list[Any] = []
        patterns = Patterns(self.config)
        names = [*needed_columns(type(self.form), self.config), *self.form.columns_if_present(self.config)]
        needed = {name: self.lookup[name] for name in names if name in self.lookup}
        row_format = format_of_rows(self.config)
        read = self.form.columns(self.config)
        for index, raw in zip(indices, self.source.take(indices, list(needed.values())), strict=True):
            row = patterns({name: raw[old] for name, old in needed.items() if old in raw})
            if row is None:
                self._skip(LEFT_OUT, index)
                continue
            try:
                part = self.form.read(row if row_format is None else row_format.convert(row, read))
            except EmptyAnswer as bad:
                self._bad_row(EMPTY, index, str(bad))
            except BadRow as bad:
                self._bad_row(MALFORMED, index, str(bad))
            else:
                places.append(index)
                parts.append(part)
        for index, examples in zip(places, self.form.examples(parts), strict=True):
            if fitting := self._fitting(index, examples):
                for note in examples[0].notes:
                    if self._is_new(note, index):
                        self._notes.add(note, self.source.where(index))
                self._kept.append(index)
                yield fitting

    def _fitting(self, index: int, examples: list[Example]) -> list[Example]:
        """The examples of a row that fit into the longest allowed length; none where the row is left out."""
        length = max(example.row["length"] for example in examples)
        is_truncated = length > self.config.max_length
        if is_truncated:
            if self.config.on_long_row == "error":
                self._longest = max(self._longest, length)
                what = f"{length:,} tokens, more than dataset.max_length={self.config.max_length}"
                self._fault("long", index, what)
                return []
            if self.config.on_long_row == "skip":
                self._skip(f"longer than {self.config.max_length} tokens", index)
                return []
            examples = [self._truncated_to_fit(example) for example in examples]
        learned = [example for example in examples if self.form.learns(example)]
        if not learned:
            where = f" in the first {self.config.max_length} of {length:,}" if is_truncated else ""
            self._bad_row(NOTHING_LEFT, index, NOTHING_LEFT + where)
            return []
        if self.vocabulary is not None:
            self._check_vocabulary(index, learned, self.vocabulary)
        if is_truncated and self._is_new("truncated", index):
            self._truncated += 1
        if len(learned) < len(examples) and self._is_new("unlearned", index):
            for _ in range(len(examples) - len(learned)):
                self._unlearned.add(f"left out of rows that are kept: {NOTHING_LEFT}", self.source.where(index))
        return learned

    def _truncated_to_fit(self, example: Example) -> Example:
        limit = self.config.max_length
        return self.form.truncate(example, limit) if example.row["length"] > limit else example

    def _check_vocabulary(self, index: int, examples: Sequence[Example], vocabulary: int) -> None:
        """Refuses a token that the model's embedding has no row for.

        Raises:
            DataError
        """
        lists = [example.row[name] for example in examples for name in ("input_ids", "labels")]
        largest = max(token for tokens in lists if isinstance(tokens, list) for token in tokens)
        if largest >= vocabulary:
            token = self.form.tokenizer.convert_ids_to_tokens(largest)
            what = (
                f"the tokenizer's token {token!r} has number {largest}, and the model's embedding {vocabulary} rows "
                f"(numbers 0 to {vocabulary - 1}); {self.source.where(index)} holds it"
            )
            raise DataError([Fault("model.tokenizer", what, "take the tokenizer that the model was trained with")])

    def _bad_row(self, kind: str, index: int, what: str) -> None:
        if self.config.on_bad_row == "skip":
            if self._skip(kind, index):
                self._notes.add(f"skipped: {kind}", f"{self.source.where(index)}: {what}")
        else:
            self._fault(kind, index, what)

    def _fault(self, kind: str, index: int, what: str) -> None:
        if self._is_new("faulty", index):
            self._bad.add(kind, self.source.where(index), what, index)

    def _skip(self, reason: str, index: int) -> bool:
        """Counts a row that is skipped; whether it is counted for the first time."""
        is_new = self._is_new(reason, index)
        self._skipped[reason] += is_new
        return is_new

    def _is_new(self, what: str, index: int) -> bool:
        """Whether a row is to be counted: a mixture may give it several times, and it counts once."""
        if not isinstance(self.source, Mixture):
            return True
        is_new = (what, index) not in self._counted
        self._counted.add((what, index))
        return is_new

    def _shares(self) -> list[str]:
        """How many rows come from each source."""
        return self.source.shares(self._kept) if isinstance(self.source, Mixture) else []

    def _hints(self) -> dict[str, str]:
        ways = "dataset.on_long_row=skip or truncate"
        if self.max_positions is None or self._longest <= self.max_positions:
            ways = f"dataset.max_length={self._longest} takes all of them, or {ways}"
        learned = "dataset.allow_empty_answers=true learns them"
        return {MALFORMED: FIX_ROWS, EMPTY: f"{FIX_ROWS}; {learned}", NOTHING_LEFT: FIX_ROWS, "long": ways}

    def _stored(self, rows: list[dict[str, Any]]) -> list[pa.RecordBatch]:
        # tokens as Python integers take ten times the memory of a column, so each batch becomes columns at once
        import pyarrow.lib as pa

        columns = {name: [row[name] for row in rows] for name in self.form.features}
        batches: list[pa.RecordBatch] = pa.Table.from_pydict(columns, self.form.features.arrow_schema).to_batches()
        return batches


def needed_columns(form: type[Form], config: DatasetConfig) -> dict[str, str]:
    """The columns (after renaming) that are read of each row, with the option that names each first."""
    columns = form.columns(config)
    if (row_format := format_of_rows(config)) is not None:
        read = row_format.source_columns(columns)
        columns = {column: columns.get(column, "dataset.format") for column in read}
    for option in ("keep", "extract"):
        for column in getattr(config, option):
            columns.setdefault(column, f"dataset.{option}")
    return columns


def _dataset(batches: Sequence[pa.RecordBatch]) -> Dataset:
    import pyarrow.lib as pa
    from datasets.arrow_dataset import Dataset

    # any fingerprint will do, since nothing is derived from it; the library would hash a copy of all rows for one
    return Dataset(pa.Table.from_batches(batches), fingerprint=secrets.token_hex(8))
