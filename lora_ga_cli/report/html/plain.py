"""Settings as text, and what of them differs between runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MISSING = "–"
FEW_RUNS = 4
"""With more runs than this, each has a line in place of a column."""


@dataclass(frozen=True)
class Comparison:
    """Settings of runs, side by side.

    Args:
        names: of the runs.
        same: names and values that all runs share.
        different: by name, the value of each run; `MISSING` where it has none.
    """

    names: Sequence[str]
    same: Mapping[str, str]
    different: Mapping[str, Sequence[str]]

    @property
    def by_run(self) -> bool:
        """Whether a table of the differences should have a line for each run."""
        return len(self.names) > FEW_RUNS

    @property
    def headings(self) -> list[str]:
        """Of a table of the differences."""
        return ["run", *self.different] if self.by_run else ["", *self.names]

    @property
    def lines(self) -> list[list[str]]:
        """The cells of a table of the differences."""
        lines = [[name, *values] for name, values in self.different.items()]
        if not self.by_run:
            return lines
        return [[name, *(values[number] for _, *values in lines)] for number, name in enumerate(self.names)]


def compare(names: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> Comparison:
    """What is the same in all runs, and what is not.

    Args:
        settings: nested plain data of each run.
    """
    flat = [flattened(of_run) for of_run in settings]
    keys = dict.fromkeys(key for of_run in flat for key in of_run)
    values = {key: [of_run.get(key, MISSING) for of_run in flat] for key in keys}
    return Comparison(
        names,
        {key: of_runs[0] for key, of_runs in values.items() if len(set(of_runs)) == 1},
        {key: of_runs for key, of_runs in values.items() if len(set(of_runs)) > 1},
    )


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as ``a.b`` and the value as text."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flattened(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = text_of(value)
    return found


def text_of(value: Any) -> str:
    """A value as it would be given on the command line."""
    if isinstance(value, str):
        return value or '""'
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False, default=str)
