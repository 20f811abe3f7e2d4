"""The table that `loraga eval` ends on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from lora_ga_cli.stages.candidates import Candidate

Item = TypeVar("Item")
Done = TypeVar("Done")


def compare(folders: Sequence[str], options: Sequence[str]) -> None:
    """Scores every folder, prints one table, and draws one picture when there are several.

    Among several, what cannot be scored is left out and said.

    Raises:
        UserError: none can be scored, or options are wrong.
    """
    from lora_ga_cli.report.console import say, step
    from lora_ga_cli.report.tables import print_comparison
    from lora_ga_cli.stages.candidates import find_candidate
    from lora_ga_cli.stages.evaluate import compare_curves, evaluate

    candidates = _each(folders, lambda folder: find_candidate(folder, options))
    scored = _each(candidates, lambda candidate: (candidate, evaluate(candidate)["values"]))
    say()
    print_comparison([_row(candidate) | values for candidate, values in scored])
    runs = [candidate.run for candidate, _ in scored if candidate.run is not None]
    if len(runs) > 1:
        picture = Path(runs[0].path.parent) / "comparison.png"
        compare_curves(runs, picture)
        say()
        step("figure", str(picture))


def _row(candidate: Candidate) -> dict[str, Any]:
    """What a table says of a candidate beside its scores."""
    from lora_ga_cli.methods.base import method_of

    config, run = candidate.config, candidate.run
    if run is None:
        return {"run": candidate.name, "method": "–", "rank": "–", "learning rate": "–", "steps": "–", "seed": "–"}
    return {
        "run": candidate.name,
        "method": config.method.name,
        "rank": str(config.rank) if method_of(config).output.size else "–",
        "learning rate": f"{config.trainer.learning_rate:g}",
        "steps": str(run.manifest["steps"]),
        "seed": str(config.seed),
    }


def _each(items: Iterable[Item], do: Callable[[Item], Done]) -> list[Done]:
    """What was done with the items, without those whose run or model stood in the way, if there are others.

    Raises:
        UserError: it could be done with none, or the trouble is nobody's own, as with wrong options.
    """
    from lora_ga_cli.errors import ModelError, RunError
    from lora_ga_cli.report.console import warn

    done: list[Done] = []
    problems: list[ModelError | RunError] = []
    for item in items:
        try:
            done.append(do(item))
        except (ModelError, RunError) as error:
            problems.append(error)
    if not done:
        raise problems[0]
    for problem in problems:
        warn(f"left out: {problem}")
    return done
