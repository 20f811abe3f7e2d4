"""Data sets of the Hugging Face hub as a source of rows."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lora_ga_cli.data.source import Row
from lora_ga_cli.errors import DataError, Fault, suggest
from lora_ga_cli.files import resolve_path

if TYPE_CHECKING:
    from datasets.arrow_dataset import Dataset


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


def read_hub(path: str, *, subset: str | None, revision: str | None, split: str, option: str) -> HubRows:
    """One split of a data set on the hub.

    Args:
        option: the option that names the split (``dataset.train_split``), for messages.

    Raises:
        DataError: no such data set, subset, revision or split; no network and not in the cache; no rows.
    """
    import datasets

    try:
        with _quiet():
            dataset = datasets.load_dataset(path, name=subset, revision=revision, split=split)  # type: ignore[attr-defined]
    except Exception as error:  # the library raises many unrelated types
        raise DataError([_explained(error, path, subset, revision, split, option)]) from error
    if not len(dataset):
        raise DataError([Fault(option, f"split {split!r} of {path} holds no rows")])
    return HubRows(dataset, f"{path} ({split})")


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


def _explained(error: Exception, path: str, subset: str | None, revision: str | None, split: str, option: str) -> Fault:
    """The library's exception as one line, with a next step."""
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
