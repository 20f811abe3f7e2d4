"""Heatmaps: levels of color, labels, and colors that everybody can read."""

from __future__ import annotations

import itertools
import re

import pytest

from lora_ga_cli.report.html.heatmap import LEVELS, Scale, figure, scale_of, that_fit, values_by_rank
from lora_ga_cli.report.html.page import HERE

CSS = (HERE / "static" / "heatmap.css").read_text(encoding="utf-8")


def colors(rule: str) -> list[tuple[str, str]]:
    """The color of each level on light and dark pages, out of the style sheet."""
    found = [
        re.search(rule.format(level=level) + r" \{ [\w-]+: light-dark\((#\w+), (#\w+)\); \}", CSS)
        for level in range(LEVELS)
    ]
    return [(match[1], match[2]) for match in found if match is not None]


def luminance(color: str) -> float:
    """WCAG 2.2's relative luminance."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


class TestColors:
    @pytest.mark.parametrize("page", [0, 1], ids=["light", "dark"])
    def test_every_level_is_darker_than_the_one_before_or_every_one_lighter(self, page: int) -> None:
        """So the order can be seen without colors."""
        values = [luminance(pair[page]) for pair in colors(r"\.l{level}")]
        assert len(values) == LEVELS
        assert values == sorted(values, reverse=page == 0)
        assert len(set(values)) == LEVELS

    @pytest.mark.parametrize("page", [0, 1], ids=["light", "dark"])
    def test_values_in_cells_contrast_as_text_has_to(self, page: int) -> None:
        fills, texts = colors(r"\.l{level}"), colors(r"\.heat \.l{level} \+ text")
        assert min(contrast(fill[page], text[page]) for fill, text in zip(fills, texts, strict=True)) >= 4.5


class TestScale:
    def test_levels_divide_the_range_evenly(self) -> None:
        scale = Scale(0.0, 1.0)
        assert [scale.level(number / LEVELS) for number in range(LEVELS)] == list(range(LEVELS))
        assert (scale.level(1.0), scale.level(2.0), scale.level(-1.0)) == (LEVELS - 1, LEVELS - 1, 0)

    def test_a_logarithmic_one_gives_equal_ratios_equal_steps(self) -> None:
        scale = scale_of([1e-4, 1.0])
        assert scale.log
        assert [scale.level(10.0**exponent) for exponent in (-4, -2, 0)] == [0, LEVELS // 2, LEVELS - 1]

    def test_it_does_not_make_small_differences_look_large(self) -> None:
        near = scale_of([13.1, 14.8])
        assert (near.low, near.high) == (0.0, 14.8)
        shares = scale_of([0.991, 0.999], share=True)
        assert (shares.low, shares.high) == (0.9, 1.0)
        small = scale_of([0.002, 0.01], share=True)
        assert (small.low, small.high) == (0.0, 0.01)

    def test_values_that_are_missing_or_no_numbers_do_not_count(self) -> None:
        assert scale_of([None, float("nan"), float("inf"), 2.0]) == scale_of([2.0])
        assert scale_of([]) == Scale(0.0, 0.0)

    @pytest.mark.parametrize(
        ("value", "text"),
        [(0.204, "0.20"), (3.0, "3.0"), (14.24, "14.2"), (123.4, "123"), (1.2e-5, "1e-5"), (0, "0.00")],
    )
    def test_a_value_in_a_cell_has_at_most_five_signs(self, value: float, text: str) -> None:
        assert Scale(0, 1).short(value) == text


VALUES = {
    "model.layers.0.mlp.experts.0.up_proj": 1.0,
    "model.layers.0.mlp.experts.1.up_proj": 3.0,
    "model.layers.1.self_attn.q_proj": 4.0,
    "model.layers.0.self_attn.q_proj": None,
}


def test_a_cell_has_the_mean_of_its_layers_and_says_so() -> None:
    (column,) = figure("x", "x", "", {"run": VALUES}).columns
    notes = [cell.note for cell in column.maps[0].cells]
    assert notes == ["up_proj, block 0 (mean of 2 layers): 2", "q_proj, block 0: not computed", "q_proj, block 1: 4"]
    assert [cell.level for cell in column.maps[0].cells] == [LEVELS // 2, None, LEVELS - 1]


def test_cells_are_in_the_row_of_their_kind_and_the_column_of_their_block() -> None:
    heatmap = figure("x", "x", "", {"run": VALUES}).columns[0].maps[0]
    rows, columns = dict(map(reversed, heatmap.kinds)), dict(map(reversed, heatmap.blocks))
    for cell in heatmap.cells:
        kind, block = re.match(r"(\w+), block (\d)", cell.note).groups()  # type: ignore[union-attr]
        assert (cell.x + heatmap.cell[0] // 2, cell.y + heatmap.cell[1] // 2) == (columns[block], rows[kind])


def test_runs_share_a_scale_and_one_without_values_has_no_heatmap() -> None:
    nothing = dict.fromkeys(VALUES)
    found = figure("x", "x", "", {"a": VALUES, "b": {"model.layers.0.q": 8.0}, "c": nothing})
    assert found.scale.high == 8.0
    assert [column.name for column in found.columns] == ["a", "b"]


@pytest.mark.parametrize("blocks", [1, 8, 12, 32, 80, 200])
def test_labels_of_blocks_do_not_touch(blocks: int) -> None:
    values = {f"model.layers.{number}.q_proj": float(number) for number in range(blocks)}
    heatmap = figure("x", "x", "", {"run": values}).columns[0].maps[0]
    places = [x for x, _ in heatmap.blocks]
    assert all(after - before >= 22 for before, after in itertools.pairwise(places))
    assert heatmap.cells[-1].x + heatmap.cell[0] <= heatmap.width


def test_values_of_other_ranks_are_in_the_order_of_the_cells() -> None:
    found = figure("x", "x", "", {"run": VALUES}, changes=True)
    maps = values_by_rank("x", [VALUES], [1, 2], lambda value, rank: None if value is None else value * rank)
    assert list(maps) == [map.id for column in found.columns for map in column.maps]
    assert maps["x-0-0"] == [[2000, None, 4000], [4000, None, 8000]]


class TestRoom:
    def test_small_models_have_four_runs_and_large_ones_fewer(self) -> None:
        runs = dict.fromkeys("abcdef", 42)
        assert that_fit(runs, lambda layers: layers) == list("abcd")
        assert that_fit(dict.fromkeys("abc", 224), lambda layers: layers) == list("ab")
        assert that_fit(dict.fromkeys("abc", 882), lambda layers: layers) == ["a"]

    @pytest.mark.parametrize(
        ("blocks", "runs", "room"),
        [(6, 1, "narrow"), (6, 2, "medium"), (12, 2, "wide"), (32, 1, "medium"), (32, 3, "medium"), (36, 1, "wide")],
    )
    def test_runs_stand_beside_each_other_where_they_have_room(self, blocks: int, runs: int, room: str) -> None:
        values = {f"model.layers.{number}.q_proj": float(number) for number in range(blocks)}
        assert figure("x", "x", "", {str(run): values for run in range(runs)}).room == room
