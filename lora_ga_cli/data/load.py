"""Loading: from the configuration's sources to tokenized splits. Everything that is wrong is reported at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from lora_ga_cli.config.row_forms import row_form
from lora_ga_cli.data.build import Builder, needed_columns
from lora_ga_cli.data.examples.base import Form
from lora_ga_cli.data.hub import read_hub
from lora_ga_cli.data.labels import class_names, label_names_faults
from lora_ga_cli.data.local import files_faults, listed, read_files
from lora_ga_cli.data.patterns import pattern_faults
from lora_ga_cli.data.source import Source, near_column, renamed, renames_faults
from lora_ga_cli.data.split import Data, Split
from lora_ga_cli.errors import DataError, Fault, InvalidInput

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import DatasetConfig, Task

T = TypeVar("T")
TRAIN = "train"
VALIDATION = "validation"


def load_data(
    config: DatasetConfig,
    *,
    task: Task,
    tokenizer: Any,
    seed: int,
    max_positions: int | None = None,
    splits: Sequence[str] = (TRAIN, VALIDATION),
    num_labels: int | None = None,
) -> Data:
    """The tokenized splits that a configuration describes.

    The training rows are shuffled by ``seed``. ``max_rows`` counts from the beginning of that order, and
    ``validation_fraction`` of all of them (at least one) is held out from its end, so that neither changes the other.
    Rows that are skipped do not count for ``max_rows`` and ``max_validation_rows`` as long as there are more.

    Args:
        tokenizer: a tokenizer of transformers; it is not changed.
        max_positions: the longest input the model takes, in tokens, if there is a limit.
        splits: which of ``train`` and ``validation`` to make.
        num_labels: classes of a classifier, where the model sets their number; otherwise they are named in the
            configuration, or by the hub's data set, or counted in the training data.

    Raises:
        DataError: everything that is wrong with options, files, columns or rows.
    """
    loader = Loader(config, task, tokenizer, max_positions, num_labels, config.label_names)
    options = {"dataset.train_file": config.train_file, "dataset.validation_file": config.validation_file}
    loader.check_options({option: listed(files) for option, files in options.items() if files is not None})

    holds_out = VALIDATION in splits and config.validation_fraction > 0
    reading: dict[str, Callable[[], Source]] = {}
    if TRAIN in splits or holds_out or loader.counts_classes:
        reading[TRAIN] = partial(loader.read, config.train_file, config.train_split, "dataset.train_split")
    if VALIDATION in splits and (config.validation_file is not None or config.validation_split is not None):
        option = "dataset.validation_split"
        reading[VALIDATION] = partial(loader.read, config.validation_file, config.validation_split, option)
    sources = _all_of(reading)
    loader.check_columns(list(sources.values()))
    for source in list(sources.values())[:1]:  # the training rows, if they were read
        loader.name_classes(source)

    building: dict[str, Callable[[], Split]] = {}
    if TRAIN in sources:
        source = sources[TRAIN]
        order = _order(len(source), config.shuffle, seed)
        trained, held_out = _held_out(order, config.validation_fraction, source.name)
        if TRAIN in splits:
            building[TRAIN] = partial(loader.build, TRAIN, source, trained, config.max_rows, source.malformed)
        if holds_out:
            building[VALIDATION] = partial(loader.build, VALIDATION, source, held_out, config.max_validation_rows)
    if VALIDATION in sources:
        source = sources[VALIDATION]
        in_order, limit = range(len(source)), config.max_validation_rows
        building[VALIDATION] = partial(loader.build, VALIDATION, source, in_order, limit, source.malformed)
    built = _all_of(building)
    return Data(built.get(TRAIN), built.get(VALIDATION), loader.label_names)


def load_file_split(
    config: DatasetConfig,
    files: str | Sequence[str],
    *,
    task: Task,
    tokenizer: Any,
    max_positions: int | None = None,
    name: str = "file",
    label_names: Sequence[str] | None = None,
    max_rows: int | None = None,
) -> Split:
    """Local files read as the configuration's rows are, in their order.

    Args:
        files: path or paths; formats as for ``dataset.train_file``.
        name: the name that the split gets.
        label_names: names of a classifier's classes; otherwise as configured, otherwise counted in these files.
        max_rows: take the first this many rows.

    Raises:
        DataError: as `load_data`.
    """
    names = list(label_names) if label_names is not None else config.label_names
    loader = Loader(config, task, tokenizer, max_positions, None, names)
    loader.check_options({name: listed(files)})
    source = loader.read(files, None, "")
    loader.check_columns([source])
    loader.name_classes(source)
    return loader.build(name, source, range(len(source)), max_rows, source.malformed)


class Loader:
    """The steps of loading, in their order, and what they share.

    Args:
        label_names: names of the classes, where they are given before any row is read.

    Raises:
        InvalidInput: the data set has no form that serves the task.
    """

    def __init__(
        self,
        config: DatasetConfig,
        task: Task,
        tokenizer: Any,
        max_positions: int | None,
        num_labels: int | None,
        label_names: list[str] | None,
    ):
        self.config = config
        self.form: type[Form] = row_form(config, task)
        self.tokenizer = tokenizer
        self.max_positions = max_positions
        self.num_labels = num_labels
        self.label_names = label_names if self.form.has_classes else None

    @property
    def counts_classes(self) -> bool:
        """Whether the classes are to be counted in the training rows."""
        return self.form.has_classes and self.label_names is None and self.num_labels is None

    def check_options(self, files: Mapping[str, Sequence[str]]) -> None:
        """Checks all that can be wrong before anything is read.

        Args:
            files: the local files, by option.
        """
        config = self.config
        faults = [*pattern_faults(config), *self.form.faults(config, self.tokenizer)]
        if self.max_positions is not None and config.max_length > self.max_positions:
            what = f"{config.max_length} tokens are more than the model's {self.max_positions} positions"
            faults.append(Fault("dataset.max_length", what, f"dataset.max_length={self.max_positions}"))
        if self.label_names is not None:
            faults += label_names_faults(self.label_names, self.num_labels)
        elif config.label_names is not None:
            faults += label_names_faults(config.label_names, None)
        faults += [
            Fault(option, "an empty list", "name at least one file") for option, some in files.items() if not some
        ]
        if files:
            faults += files_faults([file for some in files.values() for file in some], config.column_names)
        elif config.column_names is not None:
            hint = "dataset.columns={new: old} renames"
            faults.append(
                Fault("dataset.column_names", "names the columns of local files, and the hub's have theirs", hint)
            )
        if faults:
            raise DataError(faults)

    def read(self, files: str | Sequence[str] | None, split: str | None, option: str) -> Source:
        """The rows of local files, or of a split of the hub's data set.

        Args:
            option: the option that names the split, for messages.
        """
        config = self.config
        if files is not None:
            return read_files(listed(files), column_names=config.column_names, on_bad_row=config.on_bad_row)
        assert config.path is not None
        assert split is not None
        return read_hub(config.path, subset=config.subset, revision=config.revision, split=split, option=option)

    def check_columns(self, sources: Sequence[Source]) -> None:
        """Checks that every column that the configuration names is there."""
        faults = [fault for source in sources for fault in renames_faults(source, self.config.columns)]
        for source in sources:
            columns = list(renamed(source, self.config.columns))
            for name, option in needed_columns(self.form, self.config).items():
                if name not in columns:
                    faults.append(Fault(option, f"{source.name} has no column {name!r}", near_column(name, columns)))
        if faults:
            raise DataError(faults)

    def name_classes(self, source: Source) -> None:
        """Settles the names of the classes, from these rows where nothing else gives them."""
        if self.form.has_classes and self.label_names is None:
            assert self.config.label is not None
            column = renamed(source, self.config.columns)[self.config.label]
            self.label_names = class_names(source, column, shown_as=self.config.label, count=self.num_labels)

    def build(self, name: str, source: Source, order: Sequence[int], limit: int | None, malformed: int = 0) -> Split:
        """A split of the rows in ``order``; ``malformed`` rows were left out on reading."""
        form = self.form(self.config, self.tokenizer, self.label_names)
        lookup = renamed(source, self.config.columns)
        return Builder(name, source, form, lookup, self.config, self.max_positions).build(order, limit, malformed)


def _order(count: int, shuffle: bool, seed: int) -> list[int]:
    order = list(range(count))
    if shuffle:
        random.Random(seed).shuffle(order)
    return order


def _held_out(order: list[int], fraction: float, name: str) -> tuple[list[int], list[int]]:
    """Rows to train on, and rows held out for validation."""
    if fraction == 0:
        return order, []
    if len(order) < 2:
        what = f"{name} has one row, of which none can be held out"
        raise DataError([Fault("dataset.validation_fraction", what, "dataset.validation_fraction=0")])
    count = min(max(1, round(fraction * len(order))), len(order) - 1)
    return order[:-count], order[-count:]


def _all_of(steps: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """The result of every step; if any fail, the faults of all of them together."""
    faults: list[Fault] = []
    results: dict[str, T] = {}
    for name, step in steps.items():
        try:
            results[name] = step()
        except InvalidInput as error:
            faults += error.faults
    if faults:
        raise DataError(faults)
    return results
