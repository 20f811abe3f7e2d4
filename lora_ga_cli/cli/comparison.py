"""The table at the end of `loraga eval`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lora_ga_cli.cli.output import Outcome

if TYPE_CHECKING:
    from lora_ga_cli.errors import DamagedFile, ModelError, RunError
    from lora_ga_cli.stages.eval_targets import EvalTarget

    Problem = ModelError | RunError | DamagedFile

VALUE_KINDS = ("lower_is_better", "unranked", "shares")
"""Entries of a result that tell a table how to show its values."""
Item = TypeVar("Item")
Done = TypeVar("Done")


def compare(folders: Sequence[str], options: Sequence[str], adapters: Sequence[str] = ()) -> Outcome:
    """Scores every folder, prints one table, and draws one picture when there are several.

    Those on the same base follow one another, and the base is loaded once for them.

    If there are several, those that cannot be scored are left out with a warning, and the exit code is 1, unless they
    are only other files and folders that a pattern such as ``runs/*`` named.

    Args:
        adapters: adapters on the only folder, which is their base.

    Returns:
        ``results``, what was scored with its settings and its result's file; ``left_out``, the folders that could not
        be scored, with the reason; ``figure``, the picture's path or None.

    Raises:
        UserError: none can be scored, or options are wrong.
    """
    from lora_ga_cli.report.console import say
    from lora_ga_cli.stages.eval_targets import NothingToScore, told_apart
    from lora_ga_cli.stages.evaluate import evaluate
    from lora_ga_cli.stages.shared_base import SharedBases

    named, missing = _find_targets(folders, options, adapters)
    targets = told_apart([target for _, target in named])
    _check_one_endpoint(targets)
    bases = SharedBases(targets)
    names = {id(target): name for (name, _), target in zip(named, targets, strict=True)}
    by_base, failed = _each(bases.in_order(), lambda item: names[id(item)], lambda item: (item, evaluate(item, bases)))
    places = {id(target): number for number, target in enumerate(targets)}
    scored = sorted(by_base, key=lambda item: places[id(item[0])])
    say()
    _print_table(scored)
    results = [
        {"name": target.name, "folder": target.folder, **_settings(target), **result} for target, result in scored
    ]
    problems = {**missing, **failed}
    left_out = [{"folder": folder, "reason": str(problem)} for folder, problem in problems.items()]
    failures = [problem for problem in problems.values() if not isinstance(problem, NothingToScore)]
    figure = _draw([target for target, _ in scored])
    return Outcome({"results": results, "left_out": left_out, "figure": figure}, 1 if failures else 0)


def _find_targets(
    folders: Sequence[str], options: Sequence[str], adapters: Sequence[str]
) -> tuple[list[tuple[str, EvalTarget]], dict[str, Problem]]:
    """What is scored, each with its name on the command line, and why other folders are not."""
    from lora_ga_cli.stages.eval_on_base import targets_on_base
    from lora_ga_cli.stages.eval_targets import find_among, find_target, options_for_each
    from lora_ga_cli.training.own_outputs import without_own_outputs

    if adapters:
        return [(target.name, target) for target in targets_on_base(folders[0], adapters, options)], {}
    chosen = without_own_outputs(folders)
    given = options_for_each(chosen, options)
    find = find_among if len(chosen) > 1 else find_target
    return _each(chosen, str, lambda folder: (folder, find(folder, given[folder])))


def _check_one_endpoint(targets: Sequence[EvalTarget]) -> None:
    """Refuses the name of one served model for several.

    Raises:
        InvalidInput
    """
    from lora_ga_cli.errors import Fault, InvalidInput

    endpoints = [target.config.eval.endpoint for target in targets]
    if len(targets) > 1 and any(endpoint.base_url and endpoint.model for endpoint in endpoints):
        what = "several models are scored, and all answers would be those of one"
        hint = "leave it out: each is asked for by its own name"
        raise InvalidInput([Fault("eval.endpoint.model", what, hint)])


def _print_table(scored: Sequence[tuple[EvalTarget, Mapping[str, Any]]]) -> None:
    from lora_ga_cli.report.tables import print_comparison

    kinds = {kind: {name for _, result in scored for name in result[kind]} for kind in VALUE_KINDS}
    rows = [{**_row(target), "run": target.label} | result["values"] for target, result in scored]
    print_comparison(rows, **kinds)


def _draw(targets: Sequence[EvalTarget]) -> Path | None:
    """Draws the loss curves of several runs in one picture. Returns its path; None if there is none."""
    from lora_ga_cli.report.console import say
    from lora_ga_cli.report.drawn import drawn
    from lora_ga_cli.stages.evaluate import compare_curves

    runs = [target.run for target in targets if target.run is not None]
    if len(runs) < 2:
        return None
    picture = Path(runs[0].path.parent) / "comparison.png"
    say()
    return drawn(picture, functools.partial(compare_curves, runs, picture))


def _settings(target: EvalTarget) -> dict[str, Any]:
    """What a target was trained with: texts and numbers, None where there is none."""
    from lora_ga_cli.methods.base import method_of

    config, run = target.config, target.run
    if run is None:
        return {"run": target.name, **dict.fromkeys(("method", "rank", "learning_rate", "steps", "seed"))}
    return {
        "run": target.name,
        "method": config.method.name,
        "rank": config.rank if method_of(config).output.size and "rank" in config.shared_uses else None,
        "learning_rate": run.manifest["learning_rate"],
        "steps": run.manifest["steps"],
        "seed": config.seed,
    }


def _row(target: EvalTarget) -> dict[str, Any]:
    """The columns of a target before its scores."""
    shown = {None: "–"}
    return {
        name.replace("_", " "): f"{value:g}" if isinstance(value, float) else shown.get(value, str(value))
        for name, value in _settings(target).items()
    }


def _each(
    items: Iterable[Item], name: Callable[[Item], str], do: Callable[[Item], Done]
) -> tuple[list[Done], dict[str, Problem]]:
    """The results for all items, and why others have none, by name. Each item whose run or model fails is warned of.

    Raises:
        UserError: every item fails, and the error says why of each; or it concerns all of them, such as a wrong option.
    """
    from lora_ga_cli.errors import DamagedFile, ModelError, RunError, together
    from lora_ga_cli.report.console import warn

    done: list[Done] = []
    problems: dict[str, Problem] = {}
    for item in items:
        try:
            done.append(do(item))
        except (ModelError, RunError, DamagedFile) as error:
            problems[name(item)] = error
    if not done:
        raise together(list(problems.values()))
    for problem in problems.values():
        warn(f"left out: {problem}")
    return done, problems
