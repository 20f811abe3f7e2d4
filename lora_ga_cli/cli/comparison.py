"""The table that `loraga eval` ends on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_ga_cli.stages.candidates import Candidate


def compare(folders: Sequence[str], options: Sequence[str]) -> None:
    """Scores every folder, prints one table, and draws one picture when there are several.

    Among several, what cannot be scored is left out and said.

    Raises:
        UserError: none can be scored, or scoring fails.
    """
    from lora_ga_cli.report.console import say, step
    from lora_ga_cli.report.tables import print_comparison
    from lora_ga_cli.stages.evaluate import compare_curves, evaluate

    candidates = _scorable(folders, options)
    rows = [_row(candidate) | evaluate(candidate)["values"] for candidate in candidates]
    say()
    print_comparison(rows)
    runs = [candidate.run for candidate in candidates if candidate.run is not None]
    if len(runs) > 1:
        picture = Path(runs[0].path.parent) / "comparison.png"
        compare_curves(runs, picture)
        say()
        step("figure", str(picture))


def _row(candidate: Candidate) -> dict[str, Any]:
    """What a table says of a candidate beside its scores."""
    from lora_ga_cli.methods.forms import FORMS

    config, run = candidate.config, candidate.run
    if run is None:
        return {"run": candidate.name, "method": "–", "rank": "–", "learning rate": "–", "steps": "–", "seed": "–"}
    return {
        "run": candidate.name,
        "method": config.method.name,
        "rank": str(config.rank) if FORMS[config.method.adapter].ranked else "–",
        "learning rate": f"{config.trainer.learning_rate:g}",
        "steps": str(run.manifest["steps"]),
        "seed": str(config.seed),
    }


def _scorable(folders: Sequence[str], options: Sequence[str]) -> list[Candidate]:
    from lora_ga_cli.errors import RunError
    from lora_ga_cli.report.console import warn
    from lora_ga_cli.stages.candidates import find_candidate

    candidates, problems = [], []
    for folder in folders:
        try:
            candidates.append(find_candidate(folder, options))
        except RunError as error:
            problems.append(error)
    if not candidates:
        raise problems[0]
    for problem in problems:
        warn(f"left out: {problem}")
    return candidates
