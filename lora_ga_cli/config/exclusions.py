"""Options that exclude one another: one that is given in a higher place switches off those of a lower one.

A person who gives ``dataset.validation_file`` wants it in place of the share that the chosen data set holds out, and
need not know that there is one. Sections declare which of their options are such; options that stand in one place, or
that the command line gives together, stay as they are, and are a fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_ga_cli.config.origins import Sources

UNSET = (None, "???", False, 0, "", [], {})
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


def switch_off(
    values: dict[str, Any], sources: Sources, exclusions: Iterable[Exclusion], default: Callable[[str], Any]
) -> list[str]:
    """Sets what is excluded by an option in a higher place to its default, in place.

    Args:
        values: a composed configuration.
        default: the default of an option.

    Returns:
        A line for the user about every option that was switched off.
    """
    notes = []
    for exclusion in exclusions:
        path = tuple(exclusion.option.split("."))
        place, value = sources.place(path), _get(values, path)
        if place is None or not exclusion.holds(value):
            continue
        if exclusion.if_changed and _get(sources.values_below(place), path) == value:
            continue
        for other in exclusion.others:
            other_path = tuple(other.split("."))
            lower, before = sources.place(other_path), _get(values, other_path)
            if lower is None or lower.order <= place.order or before in UNSET or before == default(other):
                continue
            _set(values, other_path, default(other))
            notes.append(f"{exclusion.option}={_shown(value)} replaces {other}={_shown(before)} of {lower.where}")
    return notes


def _get(values: Mapping[str, Any], path: Sequence[str]) -> Any:
    for name in path:
        if not isinstance(values, Mapping) or name not in values:
            return None
        values = values[name]
    return values


def _set(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *around, last = path
    for name in around:
        values = values[name]
    values[last] = value


def _shown(value: object) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value).strip("'")
    return text if len(text) <= 40 else f"{text[:37]}..."
