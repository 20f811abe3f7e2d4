"""The scores of runs as columns, each with what is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_ga_cli.report import training_loss
from lora_ga_cli.report.html.record import RunRecord


@dataclass(frozen=True)
class Score:
    """One value of a run.

    Args:
        rows: how many rows or problems it is of; None where that says nothing.
    """

    value: float
    text: str
    rows: int | None = None


@dataclass(frozen=True)
class Scores:
    """One measure of all runs.

    Args:
        of_runs: in the order of the runs; None where a run has no such score.
        lower: whether lower values are better; None where none is better than another.
    """

    name: str
    of_runs: Sequence[Score | None]
    lower: bool | None

    @property
    def best(self) -> float | None:
        """The best value, if several runs have different ones."""
        values = {score.value for score in self.of_runs if score is not None}
        if self.lower is None or len(values) < 2:
            return None
        return min(values) if self.lower else max(values)

    @property
    def rows_differ(self) -> bool:
        """Whether runs were scored on different numbers of rows, so that values cannot be compared."""
        return len({score.rows for score in self.of_runs if score is not None}) > 1


def losses(runs: Sequence[RunRecord]) -> list[Scores]:
    """The validation and training losses at the end, as far as any run has them."""
    found = [
        Scores(name.replace("_", " "), [_loss(run.manifest.get(name)) for run in runs], lower=True)
        for name in ("validation_loss", "training_loss")
    ]
    return [scores for scores in found if any(score is not None for score in scores.of_runs)]


def steps_of_training_loss(run: RunRecord) -> int | None:
    """Over how many steps the training loss at the end is the mean; None if that is not known."""
    stored = run.manifest.get(training_loss.STEPS)
    return stored if isinstance(stored, int) else training_loss.steps_of(run.points)


def evaluations(runs: Sequence[RunRecord]) -> list[Scores]:
    """Every value of every evaluation. Of several of one task, the last one of a run counts."""
    last = [last_of_each_task(run) for run in runs]
    names = dict.fromkeys(
        (task, name) for of_run in last for task, content in of_run.items() for name in content["values"]
    )
    found = []
    for task, name in names:
        contents = [of_run.get(task) for of_run in last]
        first = next(content for content in contents if content is not None and name in content["values"])
        lower = None if name in first.get("unranked", ()) else name in first.get("lower_is_better", ())
        scores = [_score(content, name) for content in contents]
        found.append(Scores(f"{task}: {name}".replace("_", " "), scores, lower))
    return found


def last_of_each_task(run: RunRecord) -> dict[str, Any]:
    """The newest result of each task, by the task's name."""
    ordered = sorted(run.evaluations, key=lambda content: str(content.get("time", "")))
    return {str(content.get("options", {}).get("task", "score")): content for content in ordered}


def _score(content: Any, name: str) -> Score | None:
    if content is None or not isinstance(value := content["values"].get(name), int | float):
        return None
    text = f"{value:.1%}" if name in content.get("shares", ()) else f"{value:.4g}"
    return Score(value, text, content.get("rows"))


def _loss(value: Any) -> Score | None:
    return Score(value, f"{value:.4f}") if isinstance(value, int | float) else None
