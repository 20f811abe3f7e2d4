"""Shows the progress of long work: a bar on a terminal, lines of text in a pipe."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psutil
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from lora_ga_cli.report.console import duration, out, say, size
from lora_ga_cli.report.sparkline import loss_curve

BAR_WIDTH = 12
WIDTH_WITH_BAR = 110
"""Characters of a terminal from which the line of training has a bar beside the number of steps."""
LINE_WIDTH = 26
"""Characters of the line of training, without the bar, the digits of steps, the values and the curve of the loss."""
MIN_CURVE, MAX_CURVE = 4, 32
"""The fewest and the most characters of the curve of the loss."""
PLAIN_INTERVAL = 10.0
"""Seconds between two lines of progress in a pipe."""


@dataclass(frozen=True)
class Point:
    """What is logged at a step of training.

    Args:
        loss, eval_loss: means per label (or per row for classification), in nats.
        rate: tokens per second, without padding.
    """

    step: int
    loss: float | None
    eval_loss: float | None
    learning_rate: float | None
    rate: float


def memory() -> float:
    """Peak memory of the GPU so far, in bytes; without a GPU, the memory that this process uses now."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    return float(psutil.Process().memory_info().rss)


class LossColumn(ProgressColumn):
    """The curve of the loss and the last values, as many as fit into the line, in which the curve gets what is left.

    Args:
        losses: the list to which later losses are added.
    """

    def __init__(self, losses: Sequence[float]):
        super().__init__()
        self.losses = losses

    def render(self, task: Task) -> Text:
        room = out.width - LINE_WIDTH - 2 * len(str(task.total)) - (BAR_WIDTH if _has_bar() else 0)
        values = ""
        for value in task.fields["values"]:
            if len(values) + len(value) + 2 > room:
                break
            values += f"  {value}" if values else value
        width = room - len(values) - 2
        curve = loss_curve(self.losses, min(width, MAX_CURVE)) if values and width >= MIN_CURVE else ""
        return Text.assemble((f"{curve}  " if curve else "", "cyan"), values)


def _has_bar() -> bool:
    return out.width >= WIDTH_WITH_BAR


class TrainingDisplay:
    """Shows loss, learning rate, remaining time, tokens per second and memory during training."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._total = self._done = 0
        self._losses: list[float] = []
        self._began = 0.0

    def start(self, total: int, done: int, losses: Sequence[float] = ()) -> None:
        """Begins the display.

        Args:
            total: steps of the training.
            done: steps that were done before a resumed run stopped.
            losses: those that were logged in these steps.
        """
        self._losses = list(losses)
        self._total, self._done, self._began = total, done, time.perf_counter()
        if out.is_terminal:
            self._bar = Progress(
                TextColumn("[bold cyan]    train[/] "),
                *([BarColumn(bar_width=BAR_WIDTH)] if _has_bar() else []),
                MofNCompleteColumn(),
                LossColumn(self._losses),
                TextColumn("eta"),
                TimeRemainingColumn(compact=True),
                console=out,
                transient=True,
            )
            self._task = self._bar.add_task("train", total=total, completed=done, values=())
            self._bar.start()

    def advance(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def show(self, point: Point) -> None:
        """Shows a logged point: in the bar on a terminal, as a line in a pipe. Evaluations are always lines."""
        if point.eval_loss is not None:
            say(f"           step {point.step}: validation loss {point.eval_loss:.4f}")
        elif point.loss is not None:
            self._losses.append(point.loss)
            values = [
                f"loss {point.loss:.4f}",
                f"lr {point.learning_rate or 0:.1e}",
                f"{point.rate:,.0f} tok/s",
                size(memory()),
            ]
            if self._bar is not None:
                self._bar.update(self._task, values=values)
            else:
                shown = "  ".join([f"step {point.step}/{self._total}", *values, f"eta {self._remaining(point.step)}"])
                say(f"    train  {shown}")

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _remaining(self, step: int) -> str:
        steps = max(step - self._done, 1)
        return duration((time.perf_counter() - self._began) / steps * (self._total - step))


@contextlib.contextmanager
def counting(stage: str, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how many of ``total`` items are done: a bar on a terminal, a line every few seconds in a pipe.

    Yields:
        A function that takes the number of items done.
    """
    if not out.is_terminal:
        last = time.perf_counter()

        def plain(done: int) -> None:
            nonlocal last
            if time.perf_counter() - last > PLAIN_INTERVAL:
                say(f"{stage:>9}  {what} {done}/{total}")
                last = time.perf_counter()

        yield plain
        return
    columns = (TextColumn(f"[bold cyan]{stage:>9}[/]  {what}"), BarColumn(bar_width=24), MofNCompleteColumn())
    with Progress(*columns, TextColumn("eta"), TimeRemainingColumn(compact=True), console=out, transient=True) as bar:
        task = bar.add_task(stage, total=total)
        yield lambda done: bar.update(task, completed=done)
