"""The best rows of a table."""

from __future__ import annotations

import pytest

from lora_ga_cli.reproduce.leaders import leading_rows
from lora_ga_cli.reproduce.table import Leaders

VALUES = {"LoRA": [1.25], "none": [], "Full": [1.0], "rsLoRA": [1.0, 1.5], "LoRA-GA": [1.125]}


@pytest.mark.parametrize(
    ("count", "better", "rows"),
    [
        (2, "lower", ["Full", "LoRA-GA"]),
        (3, "lower", ["Full", "LoRA-GA", "LoRA"]),  # of equal rows the earlier
        (2, "higher", ["LoRA", "rsLoRA"]),
        (9, "lower", ["Full", "LoRA-GA", "LoRA", "rsLoRA"]),
    ],
)
def test_the_best_rows_by_their_mean(count: int, better: str, rows: list[str]) -> None:
    leaders = Leaders.model_validate({"count": count, "seeds": [2], "better": better})
    assert leading_rows(VALUES, leaders) == rows
