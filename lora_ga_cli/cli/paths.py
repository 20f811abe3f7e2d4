"""Errors of the system about paths that options name, as lines for a person."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_ga_cli.disk import disk_room, folder_problem, with_room
from lora_ga_cli.errors import Fault, InvalidInput, system_fault
from lora_ga_cli.files import final_path

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import Config

WRITING_FAILED = ("inline_container.cc", "PytorchStreamWriter failed", "iostream error")
"""What torch says, without a reason, where it cannot write a file to its end."""
BY_NUMBER = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust say the system's error."""
FULL = {errno.ENOSPC: "No space left on device", errno.EDQUOT: "Disk quota exceeded"}
"""What the system says about a full disk. Libraries that are not written in Python put it into errors of their own."""
WITHOUT_NAME = (errno.EFBIG, errno.EIO, errno.EROFS)
"""What the system says about a file that is open already, whose name the error does not have."""


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
    from lora_ga_cli.paths import cache_root, resolve_path

    paths = {"output_dir": resolve_path(config.output_dir), "cache_dir": cache_root(config.cache_dir)}
    read = {"model.path": config.model.path, "model.tokenizer": config.model.tokenizer}
    given = {option: resolve_path(path) for option, path in read.items() if path is not None}
    return paths | given | caches_of_libraries()


def caches_of_libraries() -> dict[str, Path]:
    """The folder that Hugging Face's libraries write, by the environment variable that moves it."""
    return {"HF_HOME": Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()}


def _explained(error: Exception, paths: Mapping[str, Path]) -> Fault | None:
    text = str(error)
    full = next((code for code, said in FULL.items() if said in text), None)
    if full is not None:
        if not paths:
            return None
        option, path = _fullest(paths)
        error = with_room(full, path) if full == errno.ENOSPC else OSError(full, FULL[full])
        return system_fault(option, path, error)
    if not isinstance(error, OSError) and paths and any(said in text for said in WRITING_FAILED):
        option, path = _fullest(paths)
        why = folder_problem(path) or _limit_on_files() or OSError(errno.EIO, "A file could not be written to its end")
        return system_fault(option, path, why)
    if isinstance(error, OSError) and error.filename is None and error.errno in WITHOUT_NAME and paths:
        return system_fault(*_fullest(paths), error)
    if not isinstance(error, OSError) and paths and (numbered := BY_NUMBER.search(text)):
        code = int(numbered.group(1))
        return system_fault(*_fullest(paths), OSError(code, os.strerror(code)))
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
    return system_fault(option, final_path(error.filename), error)


def _limit_on_files() -> OSError | None:
    """The error of a file that is larger than this process may write; None if there is no such limit."""
    try:
        import resource
    except ImportError:  # on Windows
        return None
    limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
    return OSError(errno.EFBIG, os.strerror(errno.EFBIG)) if limited else None


def _fullest(paths: Mapping[str, Path]) -> tuple[str, Path]:
    """The option whose path is on the disk with the least room; the first of them if several are."""
    option = min(paths, key=lambda name: disk_room(paths[name]))
    return option, paths[option]
