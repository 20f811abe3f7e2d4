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


def test_lines_that_are_no_points_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n{"stfp": 2}\n\xff\n[]\n{"step": 3}\n')
    assert metrics.read(file) == [{"step": 1}, {"step": 3}]


def test_points_that_were_added_do_no_harm_and_lost_or_changed_ones_are_told(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    for point in POINTS[:2]:
        metrics.append(file, point)
    before = metrics.state(file)
    metrics.append(file, POINTS[2])
    assert metrics.damage(file, before) == ""
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0])
    assert "lost 1 of its 2 lines" in metrics.damage(file, before)
    file.write_text(lines[0].replace("2.5", "3.5") + lines[1])
    assert "has 2 lines, some of which are not what was written" in metrics.damage(file, before)
    file.unlink()
    assert "lost 2 of its 2 lines" in metrics.damage(file, before)
