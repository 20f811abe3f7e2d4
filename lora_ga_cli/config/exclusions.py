"""Options that exclude one another: one that is given in a higher place switches off those of a lower one.

A person who gives ``dataset.validation_file`` wants it in place of the share that the chosen data set holds out, and
need not know that there is one. Sections declare which of their options are such. Options that stand in one place, or
that the command line gives together, stay as they are, and are a fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

UNSET: tuple[Any, ...] = (None, "???", False, 0, "", [], {})
"""Values with which an option is not in use."""


@dataclass(frozen=True)
class Exclusion:
    """An option with which others do not go together.

    Args:
        option: its complete name.
        others: the complete names of options that its value switches off: they get their defaults.
        when: for which of its values; without it, for those with which it is in use.
        if_changed: only where the value is another one than the lower places give it.
    """

    option: str
    others: tuple[str, ...]
    when: Callable[[Any], bool] | None = None
    if_changed: bool = False

    def holds(self, value: object) -> bool:
        """Whether a value of the option excludes the others."""
        return bool(value not in UNSET if self.when is None else self.when(value))


def exclusive(*options: str) -> tuple[Exclusion, ...]:
    """Options of which one at most is in use."""
    return tuple(Exclusion(option, tuple(other for other in options if other != option)) for option in options)
