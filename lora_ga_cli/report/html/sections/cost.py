"""What training cost: memory beside its forecast, time, and the speed over the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lora_ga_cli.registry import SECTIONS
from lora_ga_cli.report.console import duration, number, size
from lora_ga_cli.report.html import chart
from lora_ga_cli.report.html.chart import Chart, Line
from lora_ga_cli.report.html.plain import FEW_RUNS, MISSING
from lora_ga_cli.report.html.record import RunRecord
from lora_ga_cli.report.html.section import Section, SectionContent
from lora_ga_cli.report.html.sections.loss import MAX_RUNS, legend_of, points_of

SHOWN: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "training_seconds": ("time of training", duration),
    "seconds_per_step": ("median time of a step", lambda value: f"{value:.3g} s"),
    "trained_parameters": ("trained parameters", number),
    "optimizer_state_bytes": ("optimizer state", size),
    "peak_memory_bytes": ("peak memory, measured", size),
    "forecast_peak_memory_bytes": ("peak memory, forecast", size),
}
"""Costs by their name in a record: what they are called, and how they are written."""
UNMEASURED = "Peak memory is measured on CUDA devices only."


@SECTIONS.register("cost")
class Cost(Section):
    name, title, position = "cost", "Cost", 60
    scripts, styles = chart.SCRIPTS, chart.STYLES

    def content(self, runs: Sequence[RunRecord]) -> SectionContent | None:
        known = {
            key: [_text(run, key) for run in runs] for key in SHOWN if any(_value(run, key) is not None for run in runs)
        }
        drawn = [run for run in runs if points_of(run, "tokens_per_second")][:MAX_RUNS]
        if not known and not drawn:
            return None
        lines = [
            Line(index, "tokens per second", points_of(run, "tokens_per_second")) for index, run in enumerate(drawn)
        ]
        speed = Chart("speed", "Tokens per second", lines, height=220)
        by_run = len(runs) > FEW_RUNS
        names = [SHOWN[key][0] for key in known]
        rows = [[name, *values] for name, values in zip(names, known.values(), strict=True)]
        if by_run:
            rows = [[run.name, *(values[index] for values in known.values())] for index, run in enumerate(runs)]
        unmeasured = all(_value(run, "peak_memory_bytes") is None for run in runs)
        return SectionContent(
            {
                "headings": ["run", *names] if by_run else ["", *(run.name for run in runs)],
                "rows": rows if known else [],
                "sortable": by_run,
                "charts": [speed] if speed.drawn else [],
                "runs": legend_of(drawn),
                "note": UNMEASURED if known and unmeasured else "",
            },
            data={"runs": [run.name for run in drawn], "charts": [speed.data]} if speed.drawn else None,
        )


def _value(run: RunRecord, key: str) -> Any:
    value = run.cost.get(key, run.manifest.get(key))
    return value if isinstance(value, int | float) else None


def _text(run: RunRecord, key: str) -> str:
    value = _value(run, key)
    return MISSING if value is None else SHOWN[key][1](value)
