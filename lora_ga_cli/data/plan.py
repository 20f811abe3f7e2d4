"""The steps of loading: checking options, finding rows, checking columns, naming classes, building splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_ga_cli.data.build import Builder
from lora_ga_cli.data.examples.base import form_faults, form_for, form_needs
from lora_ga_cli.data.hub import read_hub
from lora_ga_cli.data.labels import count_labels
from lora_ga_cli.data.local import files_faults, listed, read_files
from lora_ga_cli.data.source import Source, near_column, renamed, renames_faults
from lora_ga_cli.data.split import Split
from lora_ga_cli.errors import DataError, Fault

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import DatasetConfig, Task


class Plan:
    """What the steps of one loading share."""

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
        self.task = task
        self.tokenizer = tokenizer
        self.max_positions = max_positions
        self.num_labels = num_labels
        self.label_names = label_names if task == "sequence_classification" else None

    @property
    def counts_labels(self) -> bool:
        """Whether the training rows are wanted for their classes."""
        return self.task == "sequence_classification" and self.label_names is None and self.num_labels is None

    def check(self, files: Mapping[str, Sequence[str]]) -> None:
        """All that can be wrong before anything is read. ``files`` are the local ones, by option."""
        config = self.config
        faults = form_faults(config, self.task, self.tokenizer)
        if self.max_positions is not None and config.max_length > self.max_positions:
            what = f"{config.max_length} tokens are more than the model's {self.max_positions} positions"
            faults.append(Fault("dataset.max_length", what, f"dataset.max_length={self.max_positions}"))
        if self.label_names is not None:
            faults += _names_faults(self.label_names, self.num_labels)
        elif config.label_names is not None:
            faults += _names_faults(config.label_names, None)
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

    def source_of(self, files: str | Sequence[str] | None, split: str | None, option: str) -> Source:
        config = self.config
        if files is not None:
            return read_files(listed(files), column_names=config.column_names, on_bad_row=config.on_bad_row)
        assert config.path is not None
        assert split is not None
        return read_hub(config.path, subset=config.subset, revision=config.revision, split=split, option=option)

    def check_columns(self, sources: Sequence[Source]) -> None:
        faults = [fault for source in sources for fault in renames_faults(source, self.config.columns)]
        for source in sources:
            columns = list(renamed(source, self.config.columns))
            for name, option in form_needs(self.config).items():
                if name not in columns:
                    faults.append(Fault(option, f"{source.name} has no column {name!r}", near_column(name, columns)))
        if faults:
            raise DataError(faults)

    def name_labels(self, source: Source) -> None:
        """Settles the names of the classes, by these rows where nothing else does."""
        if self.task != "sequence_classification" or self.label_names is not None:
            return
        assert self.config.label is not None
        column = renamed(source, self.config.columns)[self.config.label]
        known = source.class_names.get(column)
        if known is not None and self.num_labels in (None, len(known)):
            self.label_names = known
        elif self.num_labels is not None:
            self.label_names = [str(number) for number in range(self.num_labels)]
        else:
            counted = count_labels(source, column, shown_as=self.config.label)
            if isinstance(counted, Fault):
                raise DataError([counted])
            self.label_names = counted

    def build(self, name: str, source: Source, order: Sequence[int], limit: int | None, malformed: int = 0) -> Split:
        """A split of the rows in ``order``; ``malformed`` rows were left out on reading."""
        form = form_for(self.config, self.task, self.tokenizer, self.label_names)
        lookup = renamed(source, self.config.columns)
        return Builder(name, source, form, lookup, self.config, self.max_positions).build(order, limit, malformed)


def _names_faults(names: Sequence[str], num_labels: int | None) -> list[Fault]:
    option = "dataset.label_names"
    faults = [
        Fault(option, f"{name!r} stands there twice") for name in sorted({n for n in names if list(names).count(n) > 1})
    ]
    if not names:
        faults.append(Fault(option, "an empty list", "name every class, or leave the option out"))
    if num_labels is not None and num_labels != len(names):
        faults.append(
            Fault(option, f"{len(names)} names, and model.num_labels={num_labels}", "leave model.num_labels out")
        )
    return faults
