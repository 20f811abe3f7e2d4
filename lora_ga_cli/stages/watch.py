"""``loraga watch``: a table of runs that are in progress or have ended, which follows their folders."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lora_ga_cli.errors import Fault, InvalidInput
from lora_ga_cli.report.console import duration, out, size, warn
from lora_ga_cli.report.sparkline import loss_curve
from lora_ga_cli.report.visible import visible
from lora_ga_cli.training.own_outputs import is_own_output, without_own_outputs
from lora_ga_cli.training.run_names import is_locked, names_told_apart, run_of_lock
from lora_ga_cli.training.run_state import RunState, WatchedRun, is_run

INTERVAL = 1.0
"""Seconds between two looks at the folders."""
SPARKLINES = (32, 24, 16, 8)
"""Widths of a curve of the loss, of which the largest that fits is taken."""
STYLES = {"running": "cyan", "stopped": "yellow", "finished": "green", "failed": "red", "damaged": "red"}
ENDED = ("finished", "failed", "damaged")


class Watch:
    """The runs that a command line names.

    Args:
        targets: run folders, and folders of run folders, which are looked through again at each look.
    """

    def __init__(self, targets: Sequence[Path]):
        self.targets = list(dict.fromkeys(targets))
        self._runs: dict[Path, WatchedRun] = {}

    def empty_targets(self) -> list[Path]:
        """The targets at which there is no run."""
        return [target for target in self.targets if not any(_runs_at(target))]

    def look(self) -> list[RunState]:
        """The state of every run that is there now, and of those that were there before."""
        found = dict.fromkeys(folder for target in self.targets for folder in _runs_at(target))
        for folder, name in zip(found, names_told_apart(list(found)), strict=True):
            self._runs.setdefault(folder, WatchedRun(folder, name))
        now = time.time()
        return [run.look(now) for run in self._runs.values()]


def _runs_at(target: Path) -> Iterator[Path]:
    if is_run(target):
        yield target
        return
    with suppress(OSError):
        inside = sorted(target.iterdir())
        yield from (folder for folder in inside if _is_visible(folder) and is_run(folder))
        created = (run_of_lock(file) for file in inside if file.name.startswith(".") and file.suffix == ".lock")
        yield from (folder for folder in created if not folder.exists() and is_locked(folder))


def _is_visible(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith(".") and not is_own_output(folder)


def watch(targets: Sequence[Path], *, once: bool) -> list[RunState]:
    """Shows the runs until each of them has finished or failed, or until Ctrl-C.

    Args:
        once: show them one time. So does a pipe.

    Returns:
        What was shown last.

    Raises:
        InvalidInput: there is no run at any target.
    """
    watched = Watch([Path(word) for word in without_own_outputs([str(target) for target in targets])])
    empty = watched.empty_targets()
    if len(empty) == len(watched.targets):
        raise InvalidInput(
            [Fault(str(target), "no run there", "a run folder, or a folder of runs") for target in empty]
        )
    for target in empty:
        warn(f"{target}: no run there, so it is left out")
    states = watched.look()
    if once or not out.is_terminal:
        out.print(shown(states, out), soft_wrap=False)
        return states
    with suppress(KeyboardInterrupt), Live(shown(states, out), console=out, auto_refresh=False) as live:
        while any(state.state not in ENDED for state in states):
            time.sleep(INTERVAL)
            states = watched.look()
            live.update(shown(states, out), refresh=True)
    return states


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Args:
        cell: the text for a run, and for a width of the curve.
        kept: of columns that do not fit, those with the lowest number are left out first.
    """

    title: str
    cell: Callable[[RunState, int], str]
    kept: int
    right: bool = True


COLUMNS = (
    Column("run", lambda run, _: visible(run.name), 9, right=False),
    Column("state", lambda run, _: run.state, 8, right=False),
    Column("step", lambda run, _: _of_total(run), 7),
    Column("loss", lambda run, _: _number(run.loss, ".4f"), 6),
    Column("", lambda run, width: loss_curve(run.losses, width), 3, right=False),
    Column("validation", lambda run, _: _number(run.validation_loss, ".4f"), 4),
    Column("lr", lambda run, _: _number(run.learning_rate, ".1e"), 0),
    Column("tok/s", lambda run, _: _number(run.tokens_per_second, ",.0f"), 2),
    Column("memory", lambda run, _: "–" if run.memory_bytes is None else size(run.memory_bytes), 1),
    Column("time", lambda run, _: _time(run), 5),
)


def shown(runs: Sequence[RunState], console: Console) -> RenderableType:
    """The table, as wide as fits, and under it what failed."""
    errors = [Text(visible(f"{run.name}: {run.error}"), "red") for run in runs if run.error]
    return Group(_table_that_fits(runs, console), *errors)


def _table_that_fits(runs: Sequence[RunState], console: Console) -> Table:
    columns = list(COLUMNS)
    unlimited = console.options.update_width(10_000)  # a table that has to shrink measures no more than the screen
    while True:
        for width in SPARKLINES:
            table = _table(runs, columns, width)
            if Measurement.get(console, unlimited, table).maximum <= console.width:
                return table
        if len(columns) <= 2:
            return table
        columns.remove(min(columns, key=lambda column: column.kept))


def _table(runs: Sequence[RunState], columns: Sequence[Column], curve: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column.title, justify="right" if column.right else "left", no_wrap=True)
    for run in runs:
        cells = [Text(column.cell(run, curve)) for column in columns]
        cells[1].stylize(STYLES[run.state])
        table.add_row(*cells)
    return table


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _of_total(run: RunState) -> str:
    return f"{'–' if run.step is None else run.step}/{'–' if run.total is None else run.total}"


def _time(run: RunState) -> str:
    if run.seconds_taken is not None:
        return f"took {duration(run.seconds_taken)}"
    return "–" if run.seconds_left is None else f"{duration(run.seconds_left)} left"
