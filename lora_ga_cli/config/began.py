"""Paths of a stored configuration, found from the folder where its run began."""

from __future__ import annotations

import copy
import glob
from pathlib import Path
from typing import Any

from lora_ga_cli.config.safety import READ_PATHS
from lora_ga_cli.paths import BUNDLED, PACKAGE

NAMES = (("model", "path"), ("model", "tokenizer"), ("dataset", "path"))
"""Options that name something on the hub, unless there is such a folder."""
ELSEWHERE = (BUNDLED, PACKAGE, "~", "/")
"""Beginnings of paths that do not depend on the current folder."""


def located(stored: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A copy of a stored configuration whose relative paths of what is read are absolute.

    Args:
        folder: the working folder of the command that stored it.
    """
    found = copy.deepcopy(stored)
    for path in (*READ_PATHS, ("cache_dir",)):
        *around, last = path
        section: Any = found
        for name in around:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict):
            _locate(section, last, folder, is_name=path in NAMES)
    return found


def _locate(section: dict[str, Any], option: str, folder: Path, *, is_name: bool) -> None:
    value = section.get(option)
    if value is None:
        return
    if option == "mix":
        for source in value:
            _locate(source, "path", folder, is_name=True)
            _locate(source, "train_file", folder, is_name=False)
            _locate(source, "data_files", folder, is_name=False)
    elif option == "data_files":
        section[option] = _files_from(folder, value, str(section.get("path")))
    else:
        section[option] = _from(folder, value, is_name=is_name)


def _from(folder: Path, value: Any, *, is_name: bool) -> Any:
    if isinstance(value, list):
        return [_from(folder, item, is_name=is_name) for item in value]
    if not _depends_on_folder(value):
        return value
    there = folder / value
    return value if is_name and not there.is_dir() else str(there)


def _files_from(folder: Path, value: Any, path: str) -> Any:
    """The files of a data set. They lie in the data set itself, unless its path names a format of the library
    `datasets`, such as ``json``: no data set of an organization, and no folder."""
    if isinstance(value, dict):
        return {split: _files_from(folder, files, path) for split, files in value.items()}
    if isinstance(value, list):
        return [_files_from(folder, item, path) for item in value]
    if "/" in path or not _depends_on_folder(value):
        return value
    # a method of Path refuses some patterns that `datasets` takes, such as **.jsonl
    found = glob.glob(value, root_dir=folder, recursive=True)  # noqa: PTH207
    there = folder / value
    return str(there) if found or there.exists() else value


def _depends_on_folder(value: Any) -> bool:
    return isinstance(value, str) and not value.startswith(ELSEWHERE) and "://" not in value
