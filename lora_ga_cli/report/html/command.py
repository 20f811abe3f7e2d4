"""The command that began a run, as a person would type it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

SWEEP = ("-m", "--multirun")


def command_of(manifest: Mapping[str, Any]) -> str:
    """The command, quoted for a shell; empty where the run does not say.

    The interpreter before ``loraga`` is left out. What it has before other programs' code is kept as it is.
    """
    words = [str(word) for word in manifest.get("provenance", {}).get("command") or ()]
    return shlex.join(["loraga", *after]) if (after := words_after_program(words)) is not None else shlex.join(words)


def is_sweep(manifest: Mapping[str, Any]) -> bool:
    """Whether the command is that of a sweep, which makes other runs too."""
    words = [str(word) for word in manifest.get("provenance", {}).get("command") or ()]
    return any(word in SWEEP for word in words_after_program(words) or ())


def words_after_program(words: Sequence[str]) -> list[str] | None:
    """The words after the program; None if it is another one."""
    for number, word in enumerate(words[:8]):
        path = PurePath(word)
        if path.name in ("loraga", "loraga.exe") or (word == "lora_ga_cli" and words[number - 1] == "-m"):
            return list(words[number + 1 :])
        if path.name == "__main__.py" and path.parent.name == "lora_ga_cli":
            return list(words[number + 1 :])
    return None
