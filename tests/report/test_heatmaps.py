"""Pictures of matrices: one color bar each, values in small ones only, and empty cells."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from lora_ga_cli.report import figures
from lora_ga_cli.report.heatmaps import Heatmap, heatmaps


def test_a_grid_of_matrices_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "_save", lambda figure, file, title: drawn.append(figure))
    small = Heatmap("$small$", [[0.0, None], [0.5, 1.0]], ["a", "b"], ["c", "d"], ("i", "j"), (0.0, 1.0), ".1f")
    large = Heatmap(
        "large", [[0.1 * x for x in range(40)]] * 40, [str(y) for y in range(40)], [str(x) for x in range(40)]
    )
    heatmaps([[small, large], [small]], tmp_path / "x.png", "title")
    first, second, third, fourth = drawn[0].axes[:4]
    assert [text.get_text() for text in first.texts] == ["0.0", "0.5", "1.0"]
    assert (first.get_title(), first.get_ylabel(), first.get_xlabel()) == ("$small$", "i", "j")
    assert (first.images[0].get_clim(), bool(first.images[0].get_array().mask[0, 1])) == ((0.0, 1.0), True)
    assert [label.get_text() for label in second.get_yticklabels()] == [str(y) for y in range(0, 40, 3)]
    assert (list(second.texts), fourth.axison, third.axison) == ([], False, True)


@pytest.mark.figures
def test_the_file_is_a_png(tmp_path: Path) -> None:
    heatmaps([[Heatmap("t", [[1.0]], ["a"], ["b"])]], tmp_path / "x.png", "title")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
