"""How each run ended, in one line, and the command that gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_ga_cli.registry import SECTIONS
from lora_ga_cli.report.console import duration
from lora_ga_cli.report.html.command import command_of, is_sweep
from lora_ga_cli.report.html.record import RunRecord
from lora_ga_cli.report.html.scores import evaluations, losses
from lora_ga_cli.report.html.section import Section, SectionContent

MAX_LINES = 4
"""With more runs than this, only the best one has a line here; all are in the table."""


@dataclass(frozen=True)
class Line:
    """The result of a run.

    Args:
        what: what was trained.
        values: names and values, the most important one first.
        how_long: steps and time.
        rest: what else a reader has to know; empty if nothing.
        command: empty where it is not known.
    """

    run: RunRecord
    what: str
    values: Sequence[tuple[str, str]]
    how_long: str
    rest: str
    command: str
    sweep: bool


@SECTIONS.register("result")
class Result(Section):
    name, title, position = "result", "Result", 0

    def content(self, runs: Sequence[RunRecord]) -> SectionContent:
        shown = runs if len(runs) <= MAX_LINES else [_best(runs)]
        commands = [(run.name, command_of(run.manifest)) for run in runs] if len(shown) < len(runs) else []
        return SectionContent({"lines": [_line(run) for run in shown], "runs": len(runs), "commands": commands})


def _line(run: RunRecord) -> Line:
    scores = [*evaluations([run]), *losses([run])]
    values = [(item.name, item.of_runs[0].text) for item in scores if item.of_runs[0] is not None]
    return Line(run, _what(run), values, _how_long(run), _rest(run), command_of(run.manifest), is_sweep(run.manifest))


def _what(run: RunRecord) -> str:
    config = run.config
    method = config.get("method", {}).get("name", "a run")
    rank = run.manifest.get("adapter_rank")
    size = f", an adapter of rank {rank}" if isinstance(rank, int) else ""
    return f"{method} on {config.get('model', {}).get('path', 'a model')}{size}"


def _how_long(run: RunRecord) -> str:
    steps, seconds = run.manifest.get("steps"), run.manifest.get("training_seconds")
    parts = [f"after {steps:,} steps"] if isinstance(steps, int) else []
    return " ".join(parts + ([f"in {duration(seconds)}"] if isinstance(seconds, int | float) else []))


def _rest(run: RunRecord) -> str:
    if run.finished:
        return ""
    last = max((point.get("step", 0) for point in run.points), default=0)
    reached = f"the last logged step is {last:,}" if last else "nothing is logged yet"
    return f"This run has not finished: {reached}. Its command, given again, goes on with it."


def _best(runs: Sequence[RunRecord]) -> RunRecord:
    """The run of the lowest validation loss, or else training loss."""

    def order(run: RunRecord) -> tuple[bool, float]:
        found: Mapping[str, Any] = run.manifest
        loss = found.get("validation_loss", found.get("training_loss"))
        return not isinstance(loss, int | float), loss if isinstance(loss, int | float) else 0.0

    return min(runs, key=order)
