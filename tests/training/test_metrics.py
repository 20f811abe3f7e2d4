"""The metrics of a run: one JSON object on each line."""

from __future__ import annotations

import json
from pathlib import Path

from lora_ga_cli.training import metrics

POINTS = [{"step": 1, "loss": 2.5}, {"step": 1, "eval_loss": 2.25}, {"step": 2, "loss": 1 / 3}]


def test_points_are_read_as_they_were_appended(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    for point in POINTS:
        metrics.append(file, point)
    assert metrics.read(file) == POINTS
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == POINTS


def test_a_missing_file_has_no_points(tmp_path: Path) -> None:
    assert metrics.read(tmp_path / "missing") == []


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    for point in POINTS:
        metrics.append(file, point)
    file.write_bytes(file.read_bytes()[:-8])
    assert metrics.read(file) == POINTS[:2]


def test_rewinding_drops_what_a_resumed_run_logs_again(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    for point in POINTS:
        metrics.append(file, point)
    metrics.rewind(file, 1)
    assert metrics.read(file) == POINTS[:2]
    metrics.append(file, POINTS[2])
    assert metrics.read(file) == POINTS


def test_rewinding_removes_a_line_that_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    for point in POINTS:
        metrics.append(file, point)
    file.write_bytes(file.read_bytes()[:-8])
    metrics.rewind(file, 5)
    metrics.append(file, POINTS[2])
    assert metrics.read(file) == POINTS


def test_rewinding_to_the_start_leaves_an_empty_file(tmp_path: Path) -> None:
    metrics.rewind(tmp_path / "metrics.jsonl", 0)
    assert metrics.read(tmp_path / "metrics.jsonl") == []
