"""The names of the data sets on the Hugging Face hub that a configuration reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lora_ga_cli.config.schema import DatasetConfig, MixSource
from lora_ga_cli.data.remote import repository_of
from lora_ga_cli.paths import resolve_path


def hub_names(config: DatasetConfig) -> list[str]:
    """Each data set on the hub that rows are read from, once: named itself, in a mixture, or by a single file.

    Whether a name is a folder of this machine can be told only where and when the rows are read.
    """
    return sorted(set(_names(config)))


def _names(config: DatasetConfig) -> Iterator[str]:
    sources: list[DatasetConfig | MixSource] = [config, *(config.mix or [])]
    for source in sources:
        files = list(_texts([source.train_file, source.data_files]))
        yield from _repositories(files)
        if _is_on_hub(source):
            yield str(source.path)
    yield from _repositories(_texts(config.validation_file))


def _is_on_hub(source: DatasetConfig | MixSource) -> bool:
    path = source.path
    if path is None or resolve_path(path).exists():
        return False
    # with files, a name without an organization is a format of the library's own, such as `json`
    return "://" not in path and ("/" in path or source.data_files is None)


def _repositories(files: Any) -> Iterator[str]:
    return (name for file in files if (name := repository_of(file)) is not None)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif value is not None:
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)
