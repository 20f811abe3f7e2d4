"""Loading: from the configuration's sources to tokenized splits. Everything that is wrong is reported at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lora_ga_cli.config.row_forms import is_complete, row_form
from lora_ga_cli.data.build import Builder, needed_columns
from lora_ga_cli.data.chat_template import with_chat_template
from lora_ga_cli.data.examples.base import Form
from lora_ga_cli.data.faults import all_of
from lora_ga_cli.data.hub import HubSplit, read_hub, stream_hub
from lora_ga_cli.data.labels import class_names, described, label_names_faults
from lora_ga_cli.data.local import files_faults, listed, read_files
from lora_ga_cli.data.mixture import parts
from lora_ga_cli.data.patterns import pattern_faults
from lora_ga_cli.data.plan import MixedReading, Plan, Reading, held_out, source_of, split_key
from lora_ga_cli.data.recognize import format_of_rows, with_row_format
from lora_ga_cli.data.source import FileRows, Source, headerless_hint, near_column, renamed, renames_faults
from lora_ga_cli.data.source_store import SourceStore
from lora_ga_cli.data.split import Data, Split
from lora_ga_cli.data.store import RowStore, StoredRows
from lora_ga_cli.errors import DataError, Fault

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import DatasetConfig, MixSource, Task

TRAIN = "train"
VALIDATION = "validation"
OF_SOURCES = {
    "path",
    "subset",
    "revision",
    "data_files",
    "streaming",
    "shuffle_buffer",
    "train_split",
    "validation_split",
    "validation_file",
    "validation_fraction",
    "mix",
}
"""Options of `dataset` that say where its rows are, which other files do not have."""


def load_data(
    config: DatasetConfig,
    *,
    task: Task,
    tokenizer: Any,
    seed: int,
    max_positions: int | None = None,
    vocabulary: int | None = None,
    splits: Sequence[str] = (TRAIN, VALIDATION),
    num_labels: int | None = None,
    store: RowStore | None = None,
) -> Data:
    """The tokenized splits that a configuration describes.

    The training rows are shuffled by ``seed``. ``max_rows`` counts from the beginning of that order, and
    ``validation_fraction`` of all of them (at least one) is held out from its end, so that neither changes the other.
    Rows that are skipped do not count for ``max_rows`` and ``max_validation_rows`` as long as there are more. Of a
    stream, no more rows than these and those held out are read.

    Args:
        tokenizer: a tokenizer of transformers; it is not changed.
        max_positions: the longest input the model takes, in tokens, if there is a limit.
        vocabulary: the number of rows of the model's embedding, if it is known; tokens beyond it are refused.
        splits: which of ``train`` and ``validation`` to make.
        num_labels: classes of a classifier, where the model sets their number; otherwise they are named in the
            configuration, or by the hub's data set, or counted in the training data.
        store: where tokenized rows are looked up, and stored if they are not there.

    Raises:
        DataError: everything that is wrong with options, files, columns or rows.
    """
    if not splits and task != "sequence_classification" and not is_complete(config):
        return Data(None, None, config.label_names, config)
    sources = _sources_beside(store) if store is not None else None
    config, notes = with_row_format(config, task, validation=TRAIN not in splits, store=sources)
    loader = Loader(config, task, tokenizer, max_positions, num_labels, config.label_names, vocabulary, store)
    loader.check_options({option: listed(files) for option, files in config.files.items()})

    holds_out = VALIDATION in splits and config.validation_fraction > 0
    readings: dict[str, Reading] = {}
    if TRAIN in splits or holds_out or loader.counts_classes:
        readings[TRAIN] = loader.training_rows(seed)
    if VALIDATION in splits and (config.validation_file is not None or config.validation_split is not None):
        readings[VALIDATION] = loader.validation_rows()

    plans: dict[str, Plan] = {}
    order: dict[str, Any] = {"shuffle": seed if config.shuffle else None, "fraction": config.validation_fraction}
    if TRAIN in splits:
        plans[TRAIN] = Plan(readings[TRAIN], "trained", config.max_rows, **order)
    if VALIDATION in readings:
        plans[VALIDATION] = Plan(readings[VALIDATION], "all", config.max_validation_rows)
    elif holds_out:
        plans[VALIDATION] = Plan(readings[TRAIN], "held_out", config.max_validation_rows, **order)
    made = loader.splits(plans, list(readings.values()))
    names = loader.label_names
    if names is not None and loader.named:
        found = (
            "" if config.label_names is not None else f" (found in column {config.label}; dataset.label_names orders)"
        )
        notes = [*notes, described(names) + found]
        config = config.model_copy(update={"label_names": names})
    return Data(made.get(TRAIN), made.get(VALIDATION), names if loader.form.has_classes else None, config, notes)


def load_file_split(
    config: DatasetConfig,
    files: str | Sequence[str],
    *,
    task: Task,
    tokenizer: Any,
    max_positions: int | None = None,
    vocabulary: int | None = None,
    name: str = "file",
    label_names: Sequence[str] | None = None,
    max_rows: int | None = None,
    store: RowStore | None = None,
) -> Split:
    """Local files read as the configuration's rows are, in their order.

    Args:
        files: path or paths; formats as for ``dataset.train_file``.
        name: the name that the split gets.
        label_names: names of a classifier's classes; otherwise as configured, otherwise counted in these files.
        max_rows: take the first this many rows.
        store: as for `load_data`.

    Raises:
        DataError: as `load_data`.
    """
    defaults = {name: field.get_default() for name, field in type(config).model_fields.items() if name in OF_SOURCES}
    config, _ = with_row_format(config.model_copy(update={**defaults, "train_file": listed(files)}), task)
    names = list(label_names) if label_names is not None else config.label_names
    loader = Loader(config, task, tokenizer, max_positions, None, names, vocabulary, store)
    loader.check_options({name: listed(files)})
    reading = loader.files(files)
    return loader.splits({name: Plan(reading, "all", max_rows)}, [reading])[name]


def rows_to_fetch(count: int, fraction: float) -> int:
    """How many rows there have to be, so that ``count`` are left when a fraction of all is held out."""
    rows = max(count, 2) if fraction else count
    while rows - held_out(rows, fraction) < count:
        rows += max(1, count - (rows - held_out(rows, fraction)))
    return rows


class Loader:
    """The steps of loading, in their order, and what they share.

    Args:
        label_names: names of the classes, where they are given before any row is read.
        store: as for `load_data`.

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
        vocabulary: int | None = None,
        store: RowStore | None = None,
    ):
        self.config, self.task = config, task
        self.form: type[Form] = row_form(config, task)
        self.tokenizer = with_chat_template(config, tokenizer)
        self.max_positions, self.vocabulary = max_positions, vocabulary
        self.num_labels = num_labels
        self.store = store
        self._unreadable: list[Fault] = []
        """Rows of files that cannot be read, which are reported with what is wrong with the others."""
        self.named = self.form.named_classes(config)
        self.given_names = self.label_names = label_names if self.named else None

    @property
    def counts_classes(self) -> bool:
        """Whether the classes are to be found in the training rows."""
        return self.named and self.label_names is None

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
        if config.streaming and config.max_rows is None:
            faults.append(Fault("dataset.streaming", "wants dataset.max_rows", "say how many rows to fetch"))
        if faults:
            raise DataError(faults)

    def training_rows(self, seed: int) -> Reading:
        """The rows of all sources to train on, to be read when they are needed.

        Args:
            seed: draws the rows of a stream with a buffer.
        """
        config = self.config
        if config.mix is not None:
            mixed = [
                self.files(part.train_file)
                if part.train_file is not None
                else self.hub(part, part.train_split, f"dataset.mix[{number}].train_split")
                for number, part in enumerate(config.mix)
            ]
            return MixedReading(mixed, [part.weight for part in config.mix])
        if config.train_file is not None:
            return self.files(config.train_file)
        fetch = None
        if config.streaming:
            assert config.max_rows is not None
            fetch = rows_to_fetch(config.max_rows, config.validation_fraction)
        return self.hub(config, config.train_split, "dataset.train_split", fetch=fetch, seed=seed)

    def validation_rows(self) -> Reading:
        """The rows to evaluate on, where they have a source of their own."""
        config = self.config
        if config.validation_file is not None:
            return self.files(config.validation_file)
        assert config.validation_split is not None
        fetch = config.max_validation_rows if config.streaming else None
        return self.hub(config, config.validation_split, "dataset.validation_split", fetch=fetch)

    def files(self, files: str | Sequence[str]) -> Reading:
        """The rows of files."""
        names, config = listed(files), self.config
        options: Any = {"column_names": config.column_names, "store": self._sources}

        def read() -> FileRows:
            try:
                return read_files(names, on_bad_row=config.on_bad_row, **options)
            except DataError as error:
                with contextlib.suppress(DataError):  # of a file without any row that can be read
                    rest = read_files(names, on_bad_row="skip", **options)
                    self._unreadable += error.faults
                    return rest
                raise

        return Reading(names, read)

    def hub(
        self, where: DatasetConfig | MixSource, split: str, option: str, *, fetch: int | None = None, seed: int = 0
    ) -> Reading:
        """The rows of a data set on the hub.

        Args:
            option: the option that names the split, for messages.
            fetch: stream this many rows; None for all of them.
            seed: draws the rows of a stream with a buffer; 0 where the seed is not to matter.
        """
        assert where.path is not None
        found = HubSplit(where.path, split, option, where.subset, where.revision, where.data_files)
        if fetch is None:
            return Reading(None, lambda: read_hub(found))
        buffer = self.config.shuffle_buffer if option == "dataset.train_split" else 0
        return Reading(None, lambda: stream_hub(found, fetch, buffer=buffer, seed=seed, store=self._sources))

    @property
    def _sources(self) -> SourceStore | None:
        return _sources_beside(self.store) if self.store is not None else None

    def splits(self, plans: Mapping[str, Plan], readings: Sequence[Reading]) -> dict[str, Split]:
        """The splits by name: those that are stored from the store, and the others from their sources.

        Args:
            readings: all sources that are part of the configuration; the first one names the classes.
        """
        store = self.store
        with contextlib.ExitStack() as claims:
            keys = self._keys(plans, readings)
            found = {name: store.claim(key, claims) for name, key in keys.items()} if store is not None else {}
            made = {name: self._stored(name, rows) for name, rows in found.items() if rows is not None}
            missing = {name: plan for name, plan in plans.items() if name not in made}
            needed = [
                reading
                for number, reading in enumerate(readings)
                if any(plan.reading is reading for plan in missing.values()) or (number == 0 and self.counts_classes)
            ]
            read = all_of({str(number): partial(source_of, reading) for number, reading in enumerate(needed)})
            sources = list(read.values())
            with self._unreadable_too():
                self.check_columns([part for source in sources for part in parts(source)], trained=TRAIN in missing)
                if needed and needed[0] is readings[0]:
                    self.name_classes(sources[0])
                made |= all_of({name: partial(self.build, name, plan) for name, plan in missing.items()})
            # what changed while it was read is not what its key says
            if store is not None and missing and self._keys(plans, readings) == keys:
                for name in missing.keys() & keys.keys():
                    made[name] = store.keep(keys[name], made[name], self.label_names)
        return made

    @contextlib.contextmanager
    def _unreadable_too(self) -> Iterator[None]:
        """Reports the rows of files that cannot be read, together with the faults that are found inside.

        Raises:
            DataError
        """
        faults: list[Fault] = []
        try:
            yield
        except DataError as error:
            faults = error.faults
        if faults or self._unreadable:
            raise DataError([*self._unreadable, *faults])

    def _keys(self, plans: Mapping[str, Plan], readings: Sequence[Reading]) -> dict[str, str]:
        """The key of every split that can be stored."""
        if self.store is None:
            return {}
        naming = readings[0] if self.named and self.given_names is None else None
        make = partial(
            split_key,
            naming=naming,
            config=self.config,
            tokenizer=self.tokenizer,
            task=self.task,
            form=self.form,
            row_format=format_of_rows(self.config),
            num_labels=self.num_labels,
            label_names=self.given_names,
            vocabulary=self.vocabulary,
            memo=self.store.memo,
        )
        keys = all_of({name: partial(make, name, plan) for name, plan in plans.items()})
        return {name: key for name, key in keys.items() if key is not None}

    def _stored(self, name: str, stored: StoredRows) -> Split:
        """A split that was tokenized before, which also knows the names of the classes."""
        self.label_names = stored.label_names
        form = self.form(self.config, self.tokenizer, self.label_names)
        split = Split(
            name,
            stored.rows,
            stored.skipped,
            stored.truncated,
            form,
            stored.source,
            reused=True,
            read_rows=stored.read_rows,
            notes=stored.notes,
        )
        split.remember(stored.sha256)
        return split

    def check_columns(self, sources: Sequence[Source], *, trained: bool) -> None:
        """Checks that every column that the configuration names is there. An optional one need not be in each source.

        Args:
            trained: rows to train on are among the sources, so that each new name has to have a column in one of them.
        """
        row_format, renames = format_of_rows(self.config), self.config.columns
        optional = row_format.optional if row_format is not None else ()
        somewhere = {column for source in sources for column in source.columns}
        faults = []
        for source in sources:
            may_lack = {
                new
                for new, old in renames.items()
                if new in optional and old not in source.columns and (old in somewhere or not trained)
            }
            faults += renames_faults(source, {new: old for new, old in renames.items() if new not in may_lack})
        for source in sources:
            columns = [*renamed(source, renames), *renames]
            for name, option in needed_columns(self.form, self.config).items():
                if name not in columns and name not in optional:
                    hint = headerless_hint(source.name, source.columns) or near_column(name, columns)
                    faults.append(Fault(option, f"{source.name} has no column {name!r}", hint))
        if faults:
            raise DataError(faults)
        self._check_class_names(sources)

    def _check_class_names(self, sources: Sequence[Source]) -> None:
        """Refuses sources that number their classes differently."""
        if not self.named or self.config.label is None:
            return
        first: tuple[str, list[str]] | None = None
        faults = []
        for source in sources:
            column = renamed(source, self.config.columns).get(self.config.label)
            names = source.class_names.get(column) if column is not None else None
            if names is None:
                continue
            first = first or (source.name, names)
            if names != first[1]:
                what = f"{source.name} has the classes {', '.join(names)}, and {first[0]} {', '.join(first[1])}"
                hint = "the sources of a data set have the same classes in the same order"
                faults.append(Fault("dataset.label", what, hint))
        if faults:
            raise DataError(faults)

    def name_classes(self, source: Source) -> None:
        """Settles the names of the classes, from these rows where nothing else gives them."""
        if self.counts_classes:
            assert self.config.label is not None
            column = renamed(source, self.config.columns)[self.config.label]
            names = class_names(source, column, shown_as=self.config.label, count=self.num_labels)
            if not self.form.has_classes and column not in source.class_names and names[0].isdigit():
                what = f"column {self.config.label!r} of {source.name} holds numbers, for which templates insert names"
                raise DataError([Fault("dataset.label_names", what, "name every class, in the order of their numbers")])
            self.label_names = names

    def build(self, name: str, plan: Plan) -> Split:
        """A split that is tokenized now."""
        form, source = self.form(self.config, self.tokenizer, self.label_names), plan.reading.source
        lookup = renamed(source, self.config.columns)
        folder = self.store.folder if self.store is not None else None
        limits = {"max_positions": self.max_positions, "vocabulary": self.vocabulary}
        builder = Builder(name, source, form, lookup, self.config, **limits, folder=folder)
        return builder.build(plan.order(), plan.limit, plan.malformed)


def _sources_beside(store: RowStore) -> SourceStore:
    """The store of rows as read, in the cache of a store of tokenized rows."""
    root, shared = store.cache
    return SourceStore(root, store.notify, shared)
