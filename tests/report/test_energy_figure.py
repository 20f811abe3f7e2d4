"""The picture of the energy of a gradient."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from lora_ga_cli.report.energy_figure import energy_heatmaps


@pytest.mark.figures
def test_each_layer_and_rank_has_the_color_of_its_share(tmp_path: Path) -> None:
    """Six cells of one panel: as many pixels have the color of 0 as that of 1, and twice as many that of a half. Panels
    of kinds that are not there stay empty, and formulas in names are left as they are."""
    shares = {"1": 0.0, "2": 0.5}, {"1": 0.5, "2": 1.0}
    file = tmp_path / "energy.png"
    kinds = {f"kind${number}$": {f"model.layers.{block}": shares[block] for block in (0, 1)} for number in range(5)}
    energy_heatmaps(kinds, [1, 2], file, "a $title")
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    counts = []
    for share in (0.0, 0.5, 1.0):
        color = np.array(matplotlib.colormaps["viridis"](share, bytes=True)[:3])
        counts.append(int((np.abs(pixels - color).max(axis=2) <= 1).sum()))
    assert counts[0] == pytest.approx(counts[2], rel=0.1)
    assert counts[1] == pytest.approx(2 * counts[0], rel=0.1)
