"""What a split is made of: its source, which rows of it in which order, and the key under which it is stored."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora_ga_cli.data.faults import all_of
from lora_ga_cli.data.identity import KEY_LENGTH, code_identity, files_identity, tokenizer_identity
from lora_ga_cli.data.mixture import Mixture
from lora_ga_cli.data.source import Source
from lora_ga_cli.errors import DataError, Fault
from lora_ga_cli.json_files import sha256_json

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import DatasetConfig
    from lora_ga_cli.data.examples.base import Form
    from lora_ga_cli.data.row_formats.base import RowFormat

PLACES = {
    "path",
    "subset",
    "revision",
    "train_split",
    "validation_split",
    "train_file",
    "validation_file",
    "mix",
    "data_files",
    "streaming",
    "shuffle_buffer",
    "validation_fraction",
    "max_rows",
    "max_validation_rows",
    "shuffle",
    "packing",
    "chat_template",
}
"""Options of `dataset` that say where rows are and which are taken, of which `Reading` and `Plan` have what they lead
to, how tokenized rows are put together later, and a file whose content the tokenizer has."""


class Reading:
    """Rows that are read once, when they are needed.

    Args:
        files: local files; None for other sources.
        read: reads the rows.
    """

    def __init__(self, files: Sequence[str] | None, read: Callable[[], Source]):
        self.files, self._read = files, read

    @cached_property
    def source(self) -> Source:
        """The rows.

        Raises:
            DataError: they cannot be read.
        """
        return self._read()

    def identity(self, memo: Path) -> Any:
        """The content of the rows as JSON; None if it is not known. Files are hashed, and not read as rows.

        Raises:
            DataError: the data set on the hub cannot be loaded.
        """
        if self.files is not None:
            return files_identity(self.files, memo)
        return getattr(self.source, "fingerprint", None)


class MixedReading(Reading):
    """Several sources that are read as one.

    Args:
        parts: the sources.
        weights: per source how often an epoch sees each of its rows.
    """

    def __init__(self, parts: Sequence[Reading], weights: Sequence[float]):
        super().__init__(None, self._mixed)
        self._parts, self._weights = parts, weights

    def _mixed(self) -> Mixture:
        sources = all_of({str(number): partial(source_of, part) for number, part in enumerate(self._parts)})
        return Mixture(list(sources.values()), self._weights)

    def identity(self, memo: Path) -> Any:
        identities = [part.identity(memo) for part in self._parts]
        return None if None in identities else [identities, list(self._weights)]


def source_of(reading: Reading) -> Source:
    """The rows of a reading, which are read now if they were not."""
    return reading.source


@dataclass(frozen=True)
class Plan:
    """Which rows of a source make a split.

    Args:
        reading: the source.
        part: ``all`` rows in their order, or what ``trained`` and ``held_out`` are of the order for training.
        limit: the most rows of the split.
        shuffle: the seed of the order for training; None if it is the order of the source.
        fraction: the share of the rows that is held out.
    """

    reading: Reading
    part: Literal["all", "trained", "held_out"]
    limit: int | None
    shuffle: int | None = None
    fraction: float = 0.0

    def order(self) -> Sequence[int]:
        """The numbers of the rows that may be taken, in order.

        Raises:
            DataError: there are too few rows to hold some out.
        """
        source = self.reading.source
        order = array("q", range(len(source)))
        if self.part == "all":
            return order
        if self.shuffle is not None:
            random.Random(self.shuffle).shuffle(order)
        if self.fraction == 0:
            return self._weighted(order)
        if len(order) < 2:
            what = f"{source.name} has one row, of which none can be held out"
            raise DataError([Fault("dataset.validation_fraction", what, "dataset.validation_fraction=0")])
        count = held_out(len(order), self.fraction)
        return self._weighted(order[:-count]) if self.part == "trained" else order[-count:]

    def _weighted(self, order: Sequence[int]) -> Sequence[int]:
        source = self.reading.source
        return source.weighted(order, self.shuffle) if isinstance(source, Mixture) and self.part == "trained" else order

    @property
    def malformed(self) -> int:
        """Rows that were left out on reading and count for this split; those of one source count once."""
        return 0 if self.part == "held_out" else self.reading.source.malformed


def held_out(rows: int, fraction: float) -> int:
    """How many of two rows or more are held out: at least one, and not all of them; none if the fraction is 0."""
    return min(max(1, round(fraction * rows)), rows - 1) if fraction else 0


def split_key(
    name: str,
    plan: Plan,
    *,
    naming: Reading | None,
    config: DatasetConfig,
    tokenizer: Any,
    task: str,
    form: type[Form],
    row_format: type[RowFormat] | None,
    num_labels: int | None,
    label_names: Sequence[str] | None,
    vocabulary: int | None = None,
    memo: Path,
) -> str | None:
    """The key of a tokenized split: a hash of everything that its rows depend on.

    Args:
        naming: the source whose rows name the classes, where nothing else does.
        label_names: the names of the classes, where they are known before any row is read.
        vocabulary: the number of rows of the model's embedding: tokens beyond it are refused.
        memo: where the hashes of large files are remembered.

    Returns:
        None if the content of the source, the tokenizer, the form or the format is not known, so that the split cannot
        be stored.

    Raises:
        DataError: a data set on the hub cannot be loaded.
    """
    parts = {
        "source": plan.reading.identity(memo),
        "tokenizer": tokenizer_identity(tokenizer),
        "form": code_identity(form),
        "format": code_identity(row_format) if row_format is not None else "",
        "naming": naming.identity(memo) if naming is not None else "",
    }
    if any(part is None for part in parts.values()):
        return None
    options = config.model_dump(mode="json", exclude=PLACES)
    rows = [name, plan.part, plan.limit, plan.shuffle, plan.fraction]
    labels = [num_labels, list(label_names) if label_names is not None else None]
    return sha256_json([parts, options, rows, labels, vocabulary, task])[:KEY_LENGTH]
