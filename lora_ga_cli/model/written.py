"""What the files of a model that loraga wrote were when they were written: of a merged model, or of a run's result.

The base models of others carry no digests, and are loaded without a check.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_ga_cli.digests import Written, check_file
from lora_ga_cli.json_files import read_json

MERGED_MARK = "merged_from.json"
"""Tells of a merged model which run it is of, and what its files were."""
MERGE_AGAIN = (
    "merge the run again (loraga merge RUN --output FOLDER); if you changed this file yourself, remove the "
    f"{MERGED_MARK} beside it"
)
WEIGHTS = (".safetensors", ".bin")
"""Endings of the files that hold weights, which may be large."""
_LISTS = {
    MERGED_MARK: ("files", MERGE_AGAIN),
    "manifest.json": ("result_files", "run the run's train command again, which makes it anew"),
}
"""By the file that lists others: the entry that does, and what makes them anew."""


def check_model(folder: Path, *, weights: bool) -> None:
    """Checks the files of a model before they are loaded, if loraga wrote it.

    Args:
        weights: whether those with weights are checked, which may take seconds, or the others.

    Raises:
        DamagedFile
    """
    files, mend = _listed(folder)
    for name, entry in files.items():
        if holds_weights(name) == weights:
            check_file(folder / name, entry, mend)


def holds_weights(name: str) -> bool:
    """Whether a file holds weights, by its name."""
    return name.endswith(WEIGHTS)


def _listed(folder: Path) -> tuple[dict[str, Written], str]:
    """The files that a model consists of as they were written, and what makes them anew."""
    for file, (entry, mend) in _LISTS.items():
        if (folder / file).is_file():
            stored: Any = read_json(folder / file, mend)
            files = stored.get(entry) if isinstance(stored, dict) else None
            return (files, mend) if isinstance(files, dict) else ({}, mend)
    return {}, ""
