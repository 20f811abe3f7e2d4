"""Progress in a pipe is printed as lines of text."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from lora_ga_cli.report import progress
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


@pytest.mark.parametrize("width", [50, 60, 80, 100, 109, 110, 140, 200])
def test_on_a_terminal_one_line_has_the_values_that_fit_and_the_curve_of_the_loss(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    terminal = Console(force_terminal=True, width=width, file=io.StringIO(), color_system=None)
    monkeypatch.setattr(progress, "out", terminal)
    display = TrainingDisplay()
    display.start(total=1000, done=700, losses=[3.0, 2.5, 2.0, 1.7])
    bar = display._bar
    assert bar is not None
    for step in range(710, 900, 10):
        display.advance(step)
        display.show(Point(step=step, loss=1000 / step, eval_loss=None, learning_rate=1e-4, rate=12345.0))
    display.stop()
    with terminal.capture() as captured:
        terminal.print(bar.get_renderable())
    (line,) = captured.get().rstrip("\n").split("\n")
    assert len(line) <= width
    assert "890/1000" in line
    assert "loss 1.1236" in line
    curve = re.search("[▁▂▃▄▅▆▇█]+", line)
    assert bool(curve) == (width >= 80)
    if curve:
        assert curve[0][0] == "█", "the first loss of the session before is the highest one"
        assert len(curve[0]) <= 23
    assert ("MiB" in line or "GiB" in line) == (width >= 100)


def test_no_curve_is_written_into_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    display = TrainingDisplay()
    display.start(total=10, done=0, losses=[3.0, 2.0])
    display.show(Point(step=2, loss=1.25, eval_loss=None, learning_rate=1e-4, rate=1234.4))
    display.stop()
    assert not re.search("[▁▂▃▄▅▆▇█]", capsys.readouterr().out)


def test_counting_prints_at_most_one_line_for_many_reports(capsys: pytest.CaptureFixture[str]) -> None:
    with counting("estimate", "rows", 1000) as report:
        for done in range(1000):
            report(done)
    assert len(capsys.readouterr().out.splitlines()) <= 1


def test_memory_is_that_of_this_process_in_bytes() -> None:
    assert memory() > 10 * 1024**2
