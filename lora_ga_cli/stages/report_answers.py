"""What a report shows of the answers that evaluations of a run have stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_ga_cli.errors import UserError
from lora_ga_cli.evaluation.tasks.answers import answers_in
from lora_ga_cli.files import read_json
from lora_ga_cli.report.html.record import Answered
from lora_ga_cli.training.run_folder import RunFolder


def results_of(run: RunFolder) -> list[tuple[Path, dict[str, Any]]]:
    """The files of a run's results and their contents, of each task the newest first. Unreadable ones are left out."""
    files = [run.path / "eval.json", *sorted((run.path / "eval").glob("*.json"))]
    found = []
    for file in files:
        try:
            content = read_json(file)
            found.append((file, dict(content), str(content["options"]["task"]), str(content["time"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    found.sort(key=lambda item: item[3], reverse=True)
    found.sort(key=lambda item: item[2])
    return [(file, content) for file, content, _, _ in found]


def answers_of(run: RunFolder) -> tuple[list[Answered], str]:
    """The answers of a run, of each task those of the newest result that has any; and why some are not there."""
    found: dict[str, Answered] = {}
    problems = []
    for file, content in results_of(run):
        task = str(content["options"]["task"])
        name = str(file.relative_to(run.path))
        try:
            title, answers = answers_in(file)
        except UserError as error:
            problems.append(f"{name}: {error}")
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{name} cannot be read ({type(error).__name__}: {error})")
            continue
        if not answers:
            continue
        if task in found:
            found[task] = replace(found[task], left_out=found[task].left_out + 1)
        else:
            found[task] = Answered(task, title, answers, name)
    return list(found.values()), " ".join(f"{problem}." for problem in problems)
