"""Paths of a stored configuration, found from the folder where its run began."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from lora_ga_cli.config.safety import READ_PATHS
from lora_ga_cli.files import BUNDLED, PACKAGE

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
        if isinstance(section, dict) and section.get(last) is not None:
            section[last] = _from(folder, section[last], is_name=path in NAMES)
    return found


def _from(folder: Path, value: Any, *, is_name: bool) -> Any:
    if isinstance(value, list):
        return [_from(folder, item, is_name=is_name) for item in value]
    if not isinstance(value, str) or value.startswith(ELSEWHERE) or "://" in value:
        return value
    there = folder / value
    return value if is_name and not there.is_dir() else str(there)
