"""The command that inspects a gradient again with more singular vectors, to be pasted."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from lora_ga_cli.report.html.command import SWEEP, words_after_program

OF_A_RECIPE = ("estimate-grad", "init", "train", "inspect")
"""The commands whose options name the gradient of a run."""
CAPACITY = "gradient.capacity"


def with_capacity(words: Sequence[str], capacity: int) -> str:
    """A command line of loraga with another ``gradient.capacity``.

    Args:
        words: those behind ``loraga``.
    """
    others = [word for word in words if word.lstrip("+").partition("=")[0] != CAPACITY]
    return shlex.join(["loraga", *others, f"{CAPACITY}={capacity}"])


def words_again(provenance: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The words of `loraga inspect` behind ``loraga``, with the options of the command that made a gradient or a run.

    Returns:
        Empty where that command is not known, is a sweep, or has flags of its own.
    """
    words = words_after_program([str(word) for word in (provenance or {}).get("command") or ()])
    if not words or words[0] not in OF_A_RECIPE or set(SWEEP) & set(words):
        return ()
    given = [word for word in words[1:] if word not in ("--json", "--dry-run", "--debug")]
    options = [word for word in given if "=" in word and not word.startswith("-")]
    return ("inspect", *options) if len(options) == len(given) else ()
