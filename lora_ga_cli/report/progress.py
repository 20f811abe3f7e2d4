"""Shows the progress of long work: a bar on a terminal, lines of text in a pipe."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lora_ga_cli.report.console import duration, out, say, size

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


class TrainingDisplay:
    """Shows loss, learning rate, remaining time, tokens per second and memory during training."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._total = self._done = 0
        self._began = 0.0

    def start(self, total: int, done: int) -> None:
        """Begins the display.

        Args:
            total: steps of the training.
            done: steps that were done before a resumed run stopped.
        """
        self._total, self._done, self._began = total, done, time.perf_counter()
        if out.is_terminal:
            self._bar = Progress(
                TextColumn("[bold cyan]    train[/] "),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[values]}"),
                TextColumn("eta"),
                TimeRemainingColumn(compact=True),
                console=out,
                transient=True,
            )
            self._task = self._bar.add_task("train", total=total, completed=done, values="")
            self._bar.start()

    def advance(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def show(self, point: Point) -> None:
        """Shows a logged point: in the bar on a terminal, as a line in a pipe. Evaluations are always lines."""
        if point.eval_loss is not None:
            say(f"           step {point.step}: validation loss {point.eval_loss:.4f}")
        elif point.loss is not None:
            values = (
                f"loss {point.loss:.4f}  lr {point.learning_rate or 0:.1e}  {point.rate:,.0f} tok/s  {size(memory())}"
            )
            if self._bar is not None:
                self._bar.update(self._task, values=values)
            else:
                say(f"    train  step {point.step}/{self._total}  {values}  eta {self._remaining(point.step)}")

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
