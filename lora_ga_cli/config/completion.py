"""Shell completion of what follows a command: groups, recipes, options and their values."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from lora_ga_cli.config.listing import options_at_hand
from lora_ga_cli.config.locations import Locations


def candidates(arguments: Sequence[str], incomplete: str) -> list[str]:
    """Completions of ``incomplete``, given the words before it.

    Bash ends words at ``=``, so that ``recipe=qu`` arrives as the words ``recipe``, ``=`` and ``qu``; zsh and fish
    keep it as one word. Either way the values are completed.
    """
    words = [word for word in arguments if word]
    locations = Locations(_user_dir(words))
    if incomplete == "=" and words:
        return _values(words[-1], locations)
    if words and words[-1] == "=" and len(words) > 1:
        return [value for value in _values(words[-2], locations) if value.startswith(incomplete)]
    if "=" in incomplete:
        name, _, prefix = incomplete.partition("=")
        return [f"{name}={value}" for value in _values(name, locations) if value.startswith(prefix)]
    names = ["recipe", *locations.groups(), *(option.path for option in options_at_hand())]
    return [f"{name}=" for name in dict.fromkeys(names) if name.startswith(incomplete)]


def _values(name: str, locations: Locations) -> list[str]:
    if name == "recipe" or name in locations.groups():
        return sorted(locations.choices(name))
    return list(dict.fromkeys(value for option in options_at_hand() if option.path == name for value in option.values))


def _user_dir(words: Sequence[str]) -> Path | None:
    for flag, value in itertools.pairwise(words):
        if flag in ("--config-dir", "-cd") and os.path.isdir(value):  # noqa: PTH112
            return Path(value).resolve()
    return None
