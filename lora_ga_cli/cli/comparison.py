"""The table that `loraga eval` ends on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_ga_cli.training.run_folder import RunFolder


def compare(folders: Sequence[str], options: Sequence[str]) -> None:
    """Scores every folder, prints one table, and draws one picture when there are several.

    Among several, what is no finished run is left out and said.

    Raises:
        UserError: none is a finished run, or scoring fails.
    """
    from lora_ga_cli.config.compose import reconfigured
    from lora_ga_cli.report.console import say, step
    from lora_ga_cli.report.tables import print_comparison
    from lora_ga_cli.stages.evaluate import compare_curves, evaluate

    runs = _finished(folders)
    configs = [reconfigured(run.read_config(), options) for run in runs]
    rows: list[dict[str, Any]] = []
    for run, config in zip(runs, configs, strict=True):
        result = evaluate(run, config)
        manifest = run.manifest
        rows.append(
            {
                "run": run.path.name,
                "method": config.method.name,
                "rank": "–" if config.method.adapter == "none" else str(config.rank),
                "learning rate": f"{config.trainer.learning_rate:g}",
                "steps": str(manifest["steps"]),
                "seed": str(config.seed),
                **result["values"],
            }
        )
    say()
    print_comparison(rows)
    if len(runs) > 1:
        picture = Path(runs[0].path.parent) / "comparison.png"
        compare_curves(runs, picture)
        say()
        step("figure", str(picture))


def _finished(folders: Sequence[str]) -> list[RunFolder]:
    from lora_ga_cli.errors import RunError
    from lora_ga_cli.report.console import warn
    from lora_ga_cli.stages.trained import folder_of, require_finished

    runs, problems = [], []
    for folder in folders:
        try:
            run = folder_of(folder)
            require_finished(run)
            runs.append(run)
        except RunError as error:
            problems.append(error)
    if not runs:
        raise problems[0]
    for problem in problems:
        warn(f"left out: {problem}")
    return runs
