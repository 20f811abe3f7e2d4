"""Switches off what an option in a higher place excludes, see `config.exclusions`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lora_ga_cli.config.exclusions import UNSET, Exclusion
from lora_ga_cli.config.origins import Sources


def switch_off(
    values: dict[str, Any], sources: Sources, exclusions: Iterable[Exclusion], default: Callable[[str], Any]
) -> list[str]:
    """Sets what is excluded by an option in a higher place to its default, in place.

    Args:
        values: a composed configuration.
        default: the default of an option.

    Returns:
        A line for the user about every option that switched others off.
    """
    replaced: dict[str, list[str]] = {}
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
            given = f"{exclusion.option}={_shown(value)}"
            replaced.setdefault(given, []).append(f"{other}={_shown(before)} ({lower.where})")
    return [f"{given} replaces {', '.join(others)}" for given, others in replaced.items()]


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
