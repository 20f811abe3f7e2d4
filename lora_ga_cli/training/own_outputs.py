"""What loraga itself writes beside runs, which a pattern such as ``runs/*`` names too. (It imports nothing heavy.)"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

FILES = ("report.html", "comparison.png")
"""Files for several runs."""
SET_ASIDE = re.compile(r".+\.old(-\d+)?")
"""Names of runs that ``overwrite=true`` has renamed."""
CONTENTS = {
    "inspect-": re.compile(r".+\.png"),
    "eval-": re.compile(r"eval|eval\.json|predictions\.jsonl|.+\.partial\.jsonl"),
}
"""The beginnings of names of folders, and what the names of all that is in them look like."""


def is_own_output(path: Path) -> bool:
    """Whether a file or folder is one that loraga writes beside runs, and no run of its own: a report, a picture, the
    figures of an inspection, the results of a model that is no run, a run that was set aside, or what is hidden (locks
    and states of sweeps)."""
    name = path.name
    if name.startswith(".") and name.strip("."):
        return True
    if path.is_file():
        return name in FILES
    if not path.is_dir():
        return False
    if was_set_aside(path):
        return True
    patterns = [pattern for beginning, pattern in CONTENTS.items() if name.startswith(beginning)]
    with suppress(OSError):  # a folder that may not be read
        names = [item.name for item in path.iterdir()]
        return bool(names) and any(all(pattern.fullmatch(name) for name in names) for pattern in patterns)
    return False


def was_set_aside(path: Path) -> bool:
    """Whether a folder has the name of a run that ``overwrite=true`` has renamed."""
    return SET_ASIDE.fullmatch(path.name) is not None and path.is_dir()


def without_own_outputs(words: Sequence[str]) -> list[str]:
    """The words of a command line without those that name loraga's own output beside runs.

    What is named alone stays, and so does a run that was set aside where only two things are named: the user compares
    it, and gives no pattern.
    """
    if len(words) == 1:
        return list(words)
    few = len(words) == 2
    kept = [
        word for word in words if not is_own_output(path := Path(word).expanduser()) or (few and was_set_aside(path))
    ]
    return kept or list(words)
