"""Training loss, validation loss and learning rate over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_ga_cli.registry import SECTIONS
from lora_ga_cli.report.html import chart
from lora_ga_cli.report.html.chart import Chart, Line
from lora_ga_cli.report.html.record import RunRecord
from lora_ga_cli.report.html.section import Section, SectionContent

MAX_RUNS = 30
"""Runs whose lines are drawn."""
MAX_TABLES = 4
"""With more runs than this, their losses by step are not listed."""
MAX_LINES = 60
"""Steps that the table of a run lists."""


@SECTIONS.register("loss")
class Loss(Section):
    name, title, position = "loss", "Loss", 10
    scripts, styles = chart.SCRIPTS, chart.STYLES

    def content(self, runs: Sequence[RunRecord]) -> SectionContent | None:
        logged = [run for run in runs if points_of(run, "loss") or points_of(run, "eval_loss")]
        drawn = logged[:MAX_RUNS]
        if not drawn:
            return None
        losses = [
            Line(number, kind, points_of(run, key), strong=key == "eval_loss")
            for number, run in enumerate(drawn)
            for kind, key in (("training", "loss"), ("validation", "eval_loss"))
        ]
        rates = [Line(number, "learning rate", points_of(run, "learning_rate")) for number, run in enumerate(drawn)]
        charts = [
            Chart("loss", "Loss per label (nats)", losses, logarithmic=True, height=340),
            Chart("rate", "Learning rate", rates, height=180),
        ]
        charts = [item for item in charts if item.drawn]
        kinds = {line.name: line.strong for line in losses if line.points}
        return SectionContent(
            {
                "charts": charts,
                "runs": legend_of(drawn),
                "kinds": list(kinds.items()) if len(kinds) > 1 else [],
                "not_drawn": len(logged) - len(drawn),
                "left_out": sum(item.left_out for item in charts),
                "tables": [(run.name, lines_of(run)) for run in drawn] if len(drawn) <= MAX_TABLES else [],
            },
            data={"runs": [run.name for run in drawn], "charts": [item.data for item in charts]},
        )


def points_of(run: RunRecord, key: str) -> list[tuple[float, float]]:
    """(step, value) of every logged point that has the value."""
    return [
        (point["step"], point[key])
        for point in run.points
        if isinstance(point.get(key), int | float) and isinstance(point.get("step"), int | float)
    ]


def legend_of(runs: Sequence[RunRecord]) -> list[dict[str, str]]:
    """Name and color of each run, for the macro ``legend``."""
    return [{"name": run.name, "color": chart.color_class(number)} for number, run in enumerate(runs)]


def lines_of(run: RunRecord) -> list[list[str]]:
    """A table of a run's losses: steps with a validation loss, and others as far as there is room."""
    by_step: dict[int, dict[str, Any]] = {}
    for point in run.points:
        if isinstance(point.get("step"), int):
            by_step.setdefault(point["step"], {}).update(point)
    steps = [step for step, point in by_step.items() if "loss" in point or "eval_loss" in point]
    validated = [step for step in steps if "eval_loss" in by_step[step]]
    chosen = set(_spread(validated, MAX_LINES))
    chosen |= set(_spread([step for step in steps if step not in chosen], MAX_LINES - len(chosen)))
    return [
        [f"{step:,}", *(_shown(by_step[step].get(key), form) for key, form in FORMS.items())] for step in sorted(chosen)
    ]


FORMS = {"loss": ".4f", "eval_loss": ".4f", "learning_rate": ".3g"}


def _spread(items: Sequence[int], count: int) -> list[int]:
    """At most ``count`` items at about equal distances, the first and the last among them."""
    if len(items) <= count or count < 2:
        return list(items[: max(count, 0)])
    return [items[round(number * (len(items) - 1) / (count - 1))] for number in range(count)]


def _shown(value: Any, form: str) -> str:
    return f"{value:{form}}" if isinstance(value, int | float) else "–"
