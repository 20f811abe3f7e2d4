"""Data sets of the Hugging Face hub as a source of rows."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from lora_ga_cli.data.arrow import ArrowRows, Spool, json_batches
from lora_ga_cli.data.identity import KEY_LENGTH, code_hash
from lora_ga_cli.data.source import FileRows, Row
from lora_ga_cli.data.source_store import ReadRows, SourceStore
from lora_ga_cli.errors import DataError, Fault, InvalidInput, suggest
from lora_ga_cli.json_files import sha256_json
from lora_ga_cli.paths import resolve_path
from lora_ga_cli.reachable import ask_hub_once

if TYPE_CHECKING:
    from datasets.arrow_dataset import Dataset

    from lora_ga_cli.config.schema import DataFiles

STREAM_BATCH = 100
"""Rows of a stream that are read at once."""


class HubRows:
    """Rows of one split of a hub data set; fetched from its memory-mapped files as they are needed."""

    malformed = 0
    notes: Sequence[str] = ()

    def __init__(self, dataset: Dataset, name: str):
        from datasets.features import ClassLabel

        self.name = name
        self.columns = list(dataset.column_names)
        self.class_names = {
            column: list(feature.names)
            for column, feature in dataset.features.items()
            if isinstance(feature, ClassLabel) and feature.names
        }
        self.fingerprint: str = dataset._fingerprint
        """The library's identity of the data set's files, revision, subset and split."""
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def take(self, indices: Sequence[int], columns: Sequence[str]) -> list[Row]:
        wanted = [column for column in self.columns if column in set(columns)]
        if not wanted:
            return [{} for _ in indices]
        # only these columns: a data set may have images beside its text, which would be decoded
        values: dict[str, list[Any]] = self._dataset.select_columns(wanted)[list(indices)]
        return [dict(zip(wanted, row, strict=True)) for row in zip(*(values[name] for name in wanted), strict=True)]

    def where(self, index: int) -> str:
        return f"{self.name}:row {index + 1}"


@dataclass(frozen=True)
class HubSplit:
    """One split of a data set on the hub.

    Args:
        path: ``org/name``, or another name that ``datasets.load_dataset`` takes.
        option: the option that names the split (``dataset.train_split``), for messages.
    """

    path: str
    split: str
    option: str
    subset: str | None = None
    revision: str | None = None
    data_files: DataFiles | None = None

    @property
    def name(self) -> str:
        """The split for people."""
        return f"{self.path} ({self.split})"

    @property
    def arguments(self) -> dict[str, Any]:
        """What functions of `datasets` take besides the path."""
        files = {} if self.data_files is None else {"data_files": self.data_files}
        return {"name": self.subset, "revision": self.revision, **files}


def read_hub(where: HubSplit) -> HubRows:
    """All rows of a split.

    Raises:
        DataError: no such data set, subset, revision or split; no network and not in the cache; no rows.
    """
    import datasets

    ask_hub_once()
    try:
        with _quiet():
            dataset = datasets.load_dataset(where.path, split=where.split, **where.arguments)  # type: ignore[attr-defined]
    except Exception as error:  # the library raises many unrelated types
        raise DataError([_explained(error, where)]) from error
    if not len(dataset):
        raise DataError([_empty(where)])
    return HubRows(dataset, where.name)


def stream_hub(where: HubSplit, rows: int, *, buffer: int, seed: int, store: SourceStore | None) -> FileRows:
    """The first rows of a split, without the rest of its files.

    Args:
        rows: how many; there may be fewer.
        buffer: if not 0, the rows are drawn from a shuffled buffer of this size, and files are read in random order.
        seed: of that.
        store: where the rows are looked up, and kept if they are not there.

    Raises:
        DataError: as `read_hub`.
    """
    draw = [rows, buffer, seed if buffer else None]
    try:
        with _quiet():
            made = _StreamedSplit(where)
            key = sha256_json([made.identity, where.split, draw, code_hash()])[:KEY_LENGTH]
            read = partial(made.read, rows, buffer, seed)
            found = store.rows(key, where.name, read) if store is not None else read(Spool(None))
    except InvalidInput:
        raise
    except Exception as error:
        raise DataError([_explained(error, where)]) from error
    if not len(found):
        raise DataError([_empty(where)])
    return FileRows(
        where.name,
        ArrowRows([found.batches]),
        [(where.name, 0, "row ")],
        None,
        found.columns,
        class_names=found.class_names,
        notes=[f"{where.name} {note}" for note in found.notes],
        fingerprint=key,
    )


class _StreamedSplit:
    def __init__(self, where: HubSplit):
        self._where = where

    @cached_property
    def _builder(self) -> Any:
        import datasets

        ask_hub_once()
        return datasets.load_dataset_builder(self._where.path, **self._where.arguments)  # type: ignore[attr-defined]

    @property
    def identity(self) -> Any:
        """The content of the data set as JSON. A commit says it alone, so that no network is needed."""
        where = self._where
        if re.fullmatch(r"[0-9a-f]{40}", where.revision or ""):
            return [where.path, where.subset, where.revision, where.data_files]
        return [where.path, self._builder.hash, self._builder.config_id]

    def read(self, rows: int, buffer: int, seed: int, spool: Spool) -> ReadRows:
        from datasets.features import ClassLabel

        stream = self._builder.as_streaming_dataset(split=self._where.split)
        if buffer:
            stream = stream.shuffle(seed=seed, buffer_size=buffer)
        names = {
            column: list(feature.names)
            for column, feature in (stream.features or {}).items()
            if isinstance(feature, ClassLabel) and feature.names
        }
        columns: dict[str, None] = {}
        notes: dict[str, None] = {}

        def placed() -> Iterator[tuple[int, Row]]:
            # as Arrow, so that no image or sound is decoded; `take` would read ahead into the next file
            tables = stream.with_format("arrow").iter(batch_size=min(rows, STREAM_BATCH))
            for place, row in enumerate((row for table in tables for row in table.to_pylist()), start=1):
                columns.update(dict.fromkeys(row))
                yield place, row
                if place == rows:
                    return

        spool.add(json_batches(placed(), partial(_as_json, notes)))
        return ReadRows(spool.finish(), list(columns), notes=list(notes), class_names=names)


def _as_json(notes: dict[str, None], value: object) -> str | None:
    """A cell's value that JSON does not have: dates and decimals as templates write them, others as null."""
    if isinstance(value, (decimal.Decimal, datetime.date, datetime.time)):
        return str(value)
    notes[f"holds values of type {type(value).__name__}, which a stream reads as null"] = None
    return None


def _empty(where: HubSplit) -> Fault:
    hint = "name another split, or another dataset.subset"
    return Fault(where.option, f"split {where.split!r} of {where.path} holds no rows", hint)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from datasets.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def _explained(error: Exception, where: HubSplit) -> Fault:
    """The library's exception as one line, with a next step."""
    path, subset, revision, split, option = where.path, where.subset, where.revision, where.split, where.option
    message = str(error)
    first_line = message.strip().splitlines()[0] if message.strip() else type(error).__name__
    # the library's messages list the choices: ... Available splits: ['train', 'test']
    lists = re.findall(r"\[('[^\[\]]*')\]", message)
    choices = re.findall(r"'([^']+)'", lists[-1]) if lists else []
    if re.match(r"(Unknown|Bad) split", message):
        return Fault(option, f"{path} has no split {split!r}", suggest(split, choices))
    if message.startswith("BuilderConfig"):
        return Fault("dataset.subset", f"{path} has no subset {subset!r}", suggest(subset or "", choices))
    if message.startswith("Config name is missing"):
        return Fault("dataset.subset", f"{path} wants a subset", f"known: {', '.join(choices)}" if choices else "")
    if isinstance(error, ConnectionError) or "Offline" in type(error).__name__:
        hint = "without a network, a data set must be in the cache already, or be a local file: dataset.train_file"
        return Fault("dataset.path", f"cannot reach the hub for {path}, and it is not in the cache", hint)
    if "Revision" in message and "doesn't exist" in message:
        return Fault("dataset.revision", f"{path} has no revision {revision!r}")
    if "scripts are no longer supported" in message:
        hint = "on the hub, look for a copy of it in Parquet, or a revision refs/convert/parquet"
        return Fault("dataset.path", f"{path} is a program (a loading script), which is not run", hint)
    if isinstance(error, FileNotFoundError):
        hint = (
            "a local file is dataset.train_file"
            if resolve_path(path).exists()
            else "spell it org/name; a private one wants `hf auth login`"
        )
        return Fault("dataset.path", f"no data set {path!r} on the hub", hint)
    return Fault("dataset.path", f"{path} cannot be loaded: {type(error).__name__}: {first_line}")
