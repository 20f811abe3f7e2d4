"""Tables show what was measured, and no text in them is read as markup."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.report import tables
from lora_ga_cli.report.tables import MAX_LAYER_LINES, gradient_table, print_comparison, print_table

ROWS: list[dict[str, Any]] = [
    {"run": "a", "method": "lora", "rank": "8", "loss": 1.5, "exact_match": 0.25},
    {"run": "b", "method": "lora_ga", "rank": "8", "loss": 1.25, "exact_match": 0.5},
]


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_every_run_has_a_line_with_its_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(ROWS, shares={"exact_match"})
    text = printed(capsys)
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert lines["a"] == ["lora", "1.5000", "25.0%"]
    assert lines["b"] == ["lora_ga", "1.2500", "50.0%"]


def test_a_setting_that_all_runs_share_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(ROWS)
    assert "all: rank 8" in printed(capsys)


def test_runs_of_one_method_are_distinguished_by_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison([row | {"method": "lora"} for row in ROWS])
    lines = printed(capsys).splitlines()
    assert any(line.split()[:1] == ["a"] for line in lines)


def test_a_metric_that_a_run_does_not_have_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [ROWS[0], {name: value for name, value in ROWS[1].items() if name != "exact_match"}]
    print_comparison(rows)
    (line,) = [line for line in printed(capsys).splitlines() if line.split()[:1] == ["b"]]
    assert line.split() == ["b", "lora_ga", "1.2500", "–"]


def test_a_base_beside_runs_has_no_settings(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison([{"run": "base", "method": "–", "rank": "–", "loss": 2.0}, *ROWS])
    text = printed(capsys)
    assert "all runs: rank 8" in text
    assert [line.split()[:3] for line in text.splitlines() if "base" in line] == [["base", "–", "2.0000"]]


def test_a_single_run_is_a_table_too(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(ROWS[:1])
    assert "1.5000" in printed(capsys)


def test_brackets_in_cells_are_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """``[loss]`` is the default of an option, not a style."""
    print_table(["option", "default"], [["eval.metrics", "[loss]"], ["x", "[/]"]])
    text = printed(capsys)
    assert "[loss]" in text
    assert "[/]" in text


def test_brackets_in_a_runs_name_are_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison([ROWS[0] | {"run": "sweep[1]", "method": "x"}, ROWS[1] | {"run": "sweep[bold]", "method": "x"}])
    text = printed(capsys)
    assert "sweep[1]" in text
    assert "sweep[bold]" in text


def test_brackets_in_headings_are_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["[bold]key", "size"], [["a", "1"]])
    print_comparison([row | {"task[1]/acc": 0.5, "rank [r]": row["loss"]} for row in ROWS])
    text = printed(capsys)
    assert [heading for heading in ("[bold]key", "task[1]/acc", "rank [r]") if heading not in text] == []


@pytest.mark.parametrize(
    ("kinds", "best"), [({}, 2.0), ({"lower_is_better": {"value"}}, 1.0), ({"unranked": {"value"}}, None)]
)
def test_the_best_value_is_the_highest_unless_the_result_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, kinds: dict[str, set[str]], best: float | None
) -> None:
    shown: list[float | None] = []
    monkeypatch.setattr(tables, "_cell", lambda value, best, is_share: shown.append(best) or str(value))
    print_comparison([{"run": run, "method": run, "value": value} for run, value in (("a", 1.0), ("b", 2.0))], **kinds)
    assert shown == [best, best]


def test_an_empty_table_has_headings(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["key", "size"], [], numeric=["size"])
    assert printed(capsys).split()[:2] == ["key", "size"]


def artifact(layers: int) -> GradientArtifact:
    """Layers with singular values 2, 1 and a norm of 3: rank 1 follows 5/9. The sketch of the last one missed much."""
    sides = torch.eye(4)[:, :2], torch.eye(3)[:, :2]
    factors = {
        f"model.layers.{number}.q_proj": Factors(sides[0], torch.tensor([2.0, 1.0]), sides[1], norm=3.0)
        for number in range(layers)
    }
    last = list(factors)[-1]
    factors[last] = dataclasses.replace(factors[last], missed=torch.tensor([1.0, 1.5]))
    return GradientArtifact(factors, 2, {"estimator": "sketch"})


def test_a_gradient_has_a_line_for_each_layer_with_coverage_and_alignment(capsys: pytest.CaptureFixture[str]) -> None:
    gradient_table(artifact(2), 1)
    lines = {line.split()[0]: line.split()[1:] for line in printed(capsys).splitlines() if line.strip()}
    assert lines["model.layers.0.q_proj"] == ["4×3", "3.0e+00", "55.6%", "100.0%"]
    assert lines["model.layers.1.q_proj"] == ["4×3", "3.0e+00", "55.6%", "70.7%"]  # sqrt(5 / (5 + 2 · 2.5))
    assert lines["minimum"] == ["55.6%", "70.7%"]


def test_a_gradient_of_many_layers_has_a_line_for_each_kind_of_layer(capsys: pytest.CaptureFixture[str]) -> None:
    gradient_table(artifact(MAX_LAYER_LINES + 1), 1)
    text = printed(capsys)
    assert "model.layers.*.q_proj" in text
    assert "model.layers.0.q_proj" not in text
    assert "70.7%" in text  # the minimum still shows the worst layer
