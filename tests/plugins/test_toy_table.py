"""A table is added with one file, as CONTRIBUTING says."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.helpers import Loraga

PLUGINS = Path(__file__).parent


def test_a_table_in_one_file_is_made_at_tiny_scale(loraga: Loraga) -> None:
    assert "Toy table" in loraga("reproduce", "--config-dir", str(PLUGINS))
    out = loraga("reproduce", "toy", "--config-dir", str(PLUGINS), "--scale", "tiny", "device=cpu")
    assert "Toy table (tiny scale)" in out
    lines = list(csv.DictReader(Path("reproduced/toy-tiny/table.csv").read_text().splitlines()))
    cells = {(line["row"], line["column"]): float(line["mean"]) for line in lines}
    assert set(cells) == {
        (row, column) for row in ("LoRA", "LoRA-GA") for column in ("validation loss", "minimum over layers")
    }
    assert all(value > 0 for value in cells.values())
