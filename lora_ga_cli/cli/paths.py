"""Errors of the system about paths that options name, as lines for a person."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_ga_cli.errors import Fault, InvalidInput, system_fault

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import Config

FULL = {errno.ENOSPC: "No space left on device", errno.EDQUOT: "Disk quota exceeded"}
"""What the system says about a full disk. Libraries that are not written in Python put it into errors of their own."""


@contextlib.contextmanager
def naming(paths: Mapping[str, Path]) -> Iterator[None]:
    """Inside the ``with`` block, the system's error about one of these paths becomes a fault of its option.

    Args:
        paths: files and folders by option. The folders that are written come first.

    Raises:
        InvalidInput: the fault.
    """
    try:
        yield
    except Exception as error:
        fault = _explained(error, paths)
        if fault is None:
            raise
        raise InvalidInput([fault]) from error


def paths_of(config: Config) -> dict[str, Path]:
    """The paths that the options of a configuration name, those that are written first."""
    from lora_ga_cli.files import cache_root, resolve_path

    paths = {"output_dir": resolve_path(config.output_dir), "cache_dir": cache_root(config.cache_dir)}
    read = {"model.path": config.model.path, "model.tokenizer": config.model.tokenizer}
    return paths | {option: resolve_path(path) for option, path in read.items() if path is not None}


def _explained(error: Exception, paths: Mapping[str, Path]) -> Fault | None:
    full = next((code for code, said in FULL.items() if said in str(error)), None)
    if full is not None:
        return system_fault(*_fullest(paths), OSError(full, FULL[full])) if paths else None
    if not isinstance(error, OSError) or not isinstance(error.filename, str):
        return None
    path = Path(error.filename).absolute()
    named = {
        option: folder.absolute()
        for option, folder in paths.items()
        if path.is_relative_to(folder.absolute()) or folder.absolute().is_relative_to(path)
    }
    if not named:
        return None
    option = max(named, key=lambda name: len(named[name].parts))
    return system_fault(option, error.filename, error)


def _fullest(paths: Mapping[str, Path]) -> tuple[str, Path]:
    """The option whose path is on the disk with the least room; the first of them if several are."""

    def room(option: str) -> int:
        existing = next((folder for folder in (paths[option], *paths[option].parents) if folder.exists()), Path())
        return shutil.disk_usage(existing).free

    option = min(paths, key=room)
    return option, paths[option]
