"""How the values of a column are shown: as a percentage, a number, bytes, seconds or a count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lora_ga_cli.report import console

FormatName = Literal["percent", "number", "bytes", "seconds", "count"]


@dataclass(frozen=True)
class Format:
    """How values are shown.

    Args:
        text: a value (times ``factor``) as text.
        factor: what values are multiplied by in all files of the results.
        shows_zero_spread: whether a standard deviation of zero is shown.
    """

    text: Callable[[float], str]
    factor: int = 1
    shows_zero_spread: bool = True

    def cell(self, mean: float, spread: float | None) -> str:
        """A cell of a table: the mean, and the standard deviation where there is one."""
        if spread is None or (spread == 0 and not self.shows_zero_spread):
            return self.text(mean)
        return f"{self.text(mean)} ± {self.text(spread)}"


FORMATS: dict[FormatName, Format] = {
    "percent": Format(lambda value: f"{value:.2f}", factor=100),
    "number": Format(lambda value: f"{value:.3f}"),
    "bytes": Format(console.size, shows_zero_spread=False),
    "seconds": Format(lambda value: f"{value:.3g} s", shows_zero_spread=False),
    "count": Format(lambda value: console.number(round(value)), shows_zero_spread=False),
}
