"""The table at the end of `loraga eval`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from lora_ga_cli.stages.eval_targets import EvalTarget

VALUE_KINDS = ("lower_is_better", "unranked", "shares")
"""Entries of a result that tell a table how to show its values."""
Item = TypeVar("Item")
Done = TypeVar("Done")


def compare(folders: Sequence[str], options: Sequence[str]) -> dict[str, Any]:
    """Scores every folder, prints one table, and draws one picture when there are several.

    If there are several, those that cannot be scored are left out with a warning.

    Returns:
        ``results``, what was scored with its settings and its result's file; ``figure``, the picture's path or None.

    Raises:
        UserError: none can be scored, or options are wrong.
    """
    from lora_ga_cli.errors import Fault, InvalidInput
    from lora_ga_cli.report.console import say, step
    from lora_ga_cli.report.tables import print_comparison
    from lora_ga_cli.stages.eval_targets import find_target
    from lora_ga_cli.stages.evaluate import compare_curves, evaluate

    targets = _each(folders, lambda folder: find_target(folder, options))
    if len(targets) > 1 and any(
        target.config.eval.endpoint.base_url and target.config.eval.endpoint.model for target in targets
    ):
        what = "several models are scored, and all answers would be those of one"
        hint = "leave it out: each is asked for by its own name"
        raise InvalidInput([Fault("eval.endpoint.model", what, hint)])
    scored = _each(targets, lambda target: (target, evaluate(target)))
    say()
    kinds = {kind: {name for _, result in scored for name in result[kind]} for kind in VALUE_KINDS}
    print_comparison([_row(target) | result["values"] for target, result in scored], **kinds)
    runs = [target.run for target, _ in scored if target.run is not None]
    picture = Path(runs[0].path.parent) / "comparison.png" if len(runs) > 1 else None
    if picture is not None:
        compare_curves(runs, picture)
        say()
        step("figure", str(picture))
    results = [{"name": target.name, "folder": target.folder, **_row(target), **result} for target, result in scored]
    return {"results": results, "figure": picture}


def _row(target: EvalTarget) -> dict[str, Any]:
    """The columns of a target before its scores."""
    from lora_ga_cli.methods.base import method_of

    config, run = target.config, target.run
    if run is None:
        return {"run": target.name, "method": "–", "rank": "–", "learning rate": "–", "steps": "–", "seed": "–"}
    return {
        "run": target.name,
        "method": config.method.name,
        "rank": str(config.rank) if method_of(config).output.size and "rank" in config.shared_uses else "–",
        "learning rate": "the method's" if (rate := config.trainer.learning_rate) is None else f"{rate:g}",
        "steps": str(run.manifest["steps"]),
        "seed": str(config.seed),
    }


def _each(items: Iterable[Item], do: Callable[[Item], Done]) -> list[Done]:
    """The results for all items, with a warning for each item whose run or model fails.

    Raises:
        UserError: every item fails, or the error concerns all of them, such as a wrong option.
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
