"""What a report shows of evaluations of a run: their results, and the answers that are stored beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_ga_cli.errors import DamagedFile, UserError
from lora_ga_cli.evaluation.tasks.answers import Answer
from lora_ga_cli.evaluation.tasks.base import Task
from lora_ga_cli.registry import TASKS
from lora_ga_cli.report.console import reason
from lora_ga_cli.report.html.record import Answered
from lora_ga_cli.stages.stored_results import read_lines, read_result
from lora_ga_cli.training.run_folder import RunFolder


def results_of(run: RunFolder, notify: Callable[[str], object]) -> dict[Path, dict[str, Any]]:
    """The results of evaluations of a run, by file, the newest first.

    Args:
        notify: is told which are damaged.
    """
    found = {}
    # of metrics on rows, then of other tasks
    for file in (run.path / "eval.json", *sorted((run.path / "eval").glob("*.json"))):
        try:
            content = read_result(file)
        except FileNotFoundError:
            continue
        except OSError as error:
            notify(f"a result is not shown: {file}: {reason(error)}")
            continue
        except DamagedFile as error:
            notify(f"a result is not shown: {error}")
            continue
        if content is not None:
            found[file] = content
    return dict(sorted(found.items(), key=lambda item: str(item[1].get("time", "")), reverse=True))


def answers_of(
    results: Mapping[Path, Mapping[str, Any]], notify: Callable[[str], object]
) -> tuple[list[Answered], str]:
    """The answers of a run, of each task those of the newest result that has any; and why some are not there.

    Args:
        results: of the run, as `results_of` gives them.
        notify: is told which answers are damaged.
    """
    found: dict[str, Answered] = {}
    problems = []
    for file, content in results.items():
        try:
            task = str(content["options"]["task"])
            title, answers = answers_in(file, content)
        except DamagedFile as error:
            notify(f"answers are not shown: {error}")
            problems.append(str(error))
            continue
        except UserError as error:
            problems.append(f"{file.name}: {' '.join(str(error).split())}")
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"the answers of {file.name} cannot be read ({type(error).__name__}: {error})"
            notify(f"{file.parent}: {what}")
            problems.append(what)
            continue
        if not answers:
            continue
        if task in found:
            found[task] = replace(found[task], left_out=found[task].left_out + 1)
        else:
            found[task] = Answered(task, title, answers, file.name)
    return sorted(found.values(), key=lambda one: one.task), "; ".join(problems)


def answers_in(file: Path, result: Mapping[str, Any]) -> tuple[str, list[Answer]]:
    """What a stored result is of, in a few words, and the answers beside it; none if its task keeps none in text.

    Args:
        file: where the result is stored.

    Raises:
        DamagedFile: the answers are not what was written.
        OSError, ValueError, KeyError, TypeError, AttributeError: something is not what a task writes.
        InvalidInput: no task of this name is registered.
    """
    found: type[Task] = TASKS[result["options"]["task"]]
    task = found(found.Options.model_validate(result["options"]))
    return task.summary, task.answers(read_lines(task.lines_file(file), result))
