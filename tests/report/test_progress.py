"""Progress in a pipe is printed as lines of text."""

from __future__ import annotations

import pytest

from lora_ga_cli.report.progress import Point, TrainingDisplay, counting, memory


def test_training_prints_a_line_for_each_logged_point(capsys: pytest.CaptureFixture[str]) -> None:
    display = TrainingDisplay()
    display.start(total=10, done=0)
    display.advance(1)
    display.show(Point(step=2, loss=1.25, eval_loss=None, learning_rate=1e-4, rate=1234.4))
    display.show(Point(step=2, loss=None, eval_loss=1.5, learning_rate=None, rate=0.0))
    display.stop()
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:8] == ["train", "step", "2/10", "loss", "1.2500", "lr", "1.0e-04", "1,234"]
    assert second.split() == ["step", "2:", "validation", "loss", "1.5000"]


def test_counting_prints_at_most_one_line_for_many_reports(capsys: pytest.CaptureFixture[str]) -> None:
    with counting("estimate", "rows", 1000) as report:
        for done in range(1000):
            report(done)
    assert len(capsys.readouterr().out.splitlines()) <= 1


def test_memory_is_that_of_this_process_in_bytes() -> None:
    assert memory() > 10 * 1024**2
