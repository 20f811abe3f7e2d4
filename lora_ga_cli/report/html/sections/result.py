"""How each run ended, in one line, and the command that gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lora_ga_cli.registry import SECTIONS
from lora_ga_cli.report import training_loss
from lora_ga_cli.report.console import duration
from lora_ga_cli.report.html.command import command_of, is_sweep
from lora_ga_cli.report.html.record import Report, RunRecord
from lora_ga_cli.report.html.scores import Scores, evaluations, last_of_each_task, losses, steps_of_training_loss
from lora_ga_cli.report.html.section import Section, SectionContent

MAX_LINES = 4
"""With more runs than this, only the best one has a line here; all are in the table."""


@dataclass(frozen=True)
class Line:
    """The result of a run.

    Args:
        name: of the run.
        what: what was trained.
        losses: names and values.
        scores: of each evaluation the task, what it is of, and names and values.
        how_long: steps and time.
        rest: what else a reader has to know; empty if nothing.
    """

    name: str
    what: str
    losses: Sequence[tuple[str, str]]
    scores: Sequence[tuple[str, str, Sequence[tuple[str, str]]]]
    how_long: str
    rest: str


@dataclass(frozen=True)
class Command:
    """A command, and what it gives.

    Args:
        folder: where it was given; empty where that is not known.
        runs: the names of the runs that it began.
        sweep: whether it may have begun others too.
    """

    text: str
    folder: str
    runs: Sequence[str]
    sweep: bool


@SECTIONS.register("result")
class Result(Section):
    name, title, position = "result", "Result", 0

    def of(self, report: Report) -> SectionContent | None:
        if report.tables:  # the table is the result
            return SectionContent({"lines": [], "runs": len(report.runs), "commands": commands_of(report.runs)})
        return super().of(report)

    def content(self, runs: Sequence[RunRecord]) -> SectionContent:
        lines = [_line(run) for run in (runs if len(runs) <= MAX_LINES else [_best(runs)])]
        return SectionContent({"lines": lines, "runs": len(runs), "commands": commands_of(runs)})


def commands_of(runs: Sequence[RunRecord]) -> list[Command]:
    """The commands that began the runs, each once."""
    found: dict[tuple[str, str], list[RunRecord]] = {}
    for run in runs:
        folder = (run.manifest.get("working_folder") or {}).get("path", "")
        found.setdefault((command_of(run.manifest), str(folder)), []).append(run)
    return [
        Command(text, folder, [run.name for run in begun], any(is_sweep(run.manifest) for run in begun))
        for (text, folder), begun in found.items()
        if text
    ]


def _line(run: RunRecord) -> Line:
    return Line(run.name, _what(run), _losses(run), _scores(run), _how_long(run), _rest(run))


def _losses(run: RunRecord) -> list[tuple[str, str]]:
    """The losses at the end. A training loss says over which steps it is the mean, which `logging_steps` may decide."""
    of = {"training loss": training_loss.mean_of(steps_of_training_loss(run))}
    return [(name + of.get(name, ""), value) for name, value in _shown(losses([run]))]


def _scores(run: RunRecord) -> list[tuple[str, str, list[tuple[str, str]]]]:
    found = []
    for task, content in last_of_each_task(run).items():
        of_task = _shown(evaluations([replace(run, evaluations=[content])]))
        values = [(name.partition(": ")[2], text) for name, text in of_task]
        rows, split = content.get("rows"), content.get("split")
        of = [str(split)] * bool(split) + [f"{rows:,} scored"] * isinstance(rows, int)
        found.append((task, ", ".join(of), values))
    return found


def _shown(found: Sequence[Scores]) -> list[tuple[str, str]]:
    """Name and value of the only run."""
    return [(item.name, item.of_runs[0].text) for item in found if item.of_runs[0] is not None]


def _what(run: RunRecord) -> str:
    method = run.config.get("method", {}).get("name", "a run")
    size = f", {run.size}" if run.size else ""
    return f"{method} on {run.config.get('model', {}).get('path', 'a model')}{size}"


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
    """The run of the lowest validation loss, or of the lowest training loss if none has one."""

    def order(run: RunRecord) -> tuple[int, float]:
        for place, name in enumerate(("validation_loss", "training_loss")):
            loss = run.manifest.get(name)
            if isinstance(loss, int | float):
                return place, loss
        return 2, 0.0

    return min(runs, key=order)
