"""Loading: the configuration's sources and forms put together, with all that is wrong said at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from lora_ga_cli.data.local import listed
from lora_ga_cli.data.plan import Plan
from lora_ga_cli.data.source import Source
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
    ``validation_fraction`` of all of them (at least one) is held out from its end, so that neither moves the other.
    Rows that are skipped do not count for ``max_rows`` and ``max_validation_rows`` as long as there are more.

    Args:
        tokenizer: a tokenizer of transformers; it is not changed.
        max_positions: the longest input the model takes, in tokens, if there is a limit.
        splits: which of ``train`` and ``validation`` to make.
        num_labels: classes of a classifier, where the model sets their number; else they are named in the
            configuration, or by the hub's data set, or counted in the training data.

    Raises:
        DataError: everything that is wrong with options, files, columns or rows.
    """
    plan = Plan(config, task, tokenizer, max_positions, num_labels, config.label_names)
    options = {"dataset.train_file": config.train_file, "dataset.validation_file": config.validation_file}
    plan.check({option: listed(files) for option, files in options.items() if files is not None})

    holds_out = VALIDATION in splits and config.validation_fraction > 0
    reading: dict[str, Callable[[], Source]] = {}
    if TRAIN in splits or holds_out or plan.counts_labels:
        reading[TRAIN] = partial(plan.source_of, config.train_file, config.train_split, "dataset.train_split")
    if VALIDATION in splits and (config.validation_file is not None or config.validation_split is not None):
        option = "dataset.validation_split"
        reading[VALIDATION] = partial(plan.source_of, config.validation_file, config.validation_split, option)
    sources = _all_of(reading)
    plan.check_columns(list(sources.values()))
    for source in list(sources.values())[:1]:  # the training rows, if they were read
        plan.name_labels(source)

    building: dict[str, Callable[[], Split]] = {}
    if TRAIN in sources:
        source = sources[TRAIN]
        learned, kept_back = _held_out(
            _order(len(source), config.shuffle, seed), config.validation_fraction, source.name
        )
        if TRAIN in splits:
            building[TRAIN] = partial(plan.build, TRAIN, source, learned, config.max_rows, source.malformed)
        if holds_out:
            building[VALIDATION] = partial(plan.build, VALIDATION, source, kept_back, config.max_validation_rows)
    if VALIDATION in sources:
        source = sources[VALIDATION]
        order = range(len(source))
        limit = config.max_validation_rows
        building[VALIDATION] = partial(plan.build, VALIDATION, source, order, limit, source.malformed)
    built = _all_of(building)
    return Data(built.get(TRAIN), built.get(VALIDATION), plan.label_names)


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
        label_names: names of a classifier's classes; else as configured, else counted in these files.
        max_rows: take the first this many rows.

    Raises:
        DataError: as `load_data`.
    """
    names = list(label_names) if label_names is not None else config.label_names
    plan = Plan(config, task, tokenizer, max_positions, None, names)
    plan.check({name: listed(files)})
    source = plan.source_of(files, None, "")
    plan.check_columns([source])
    plan.name_labels(source)
    return plan.build(name, source, range(len(source)), max_rows, source.malformed)


def _order(count: int, shuffle: bool, seed: int) -> list[int]:
    order = list(range(count))
    if shuffle:
        random.Random(seed).shuffle(order)
    return order


def _held_out(order: list[int], fraction: float, name: str) -> tuple[list[int], list[int]]:
    """Rows to learn from, and rows held out for validation."""
    if fraction == 0:
        return order, []
    if len(order) < 2:
        what = f"{name} has one row, of which none can be held out"
        raise DataError([Fault("dataset.validation_fraction", what, "dataset.validation_fraction=0")])
    count = min(max(1, round(fraction * len(order))), len(order) - 1)
    return order[:-count], order[-count:]


def _all_of(steps: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """Every step's result; the faults of all of them together if any has some."""
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
