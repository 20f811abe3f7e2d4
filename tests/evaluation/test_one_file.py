"""A benchmark is one file: nothing outside `evaluation/tasks` names one."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_ga_cli
from lora_ga_cli.config.schema import EvalOptions
from lora_ga_cli.evaluation.tasks.base import Task
from lora_ga_cli.registry import TASKS

PACKAGE = Path(str(lora_ga_cli.__file__)).parent
TASKS_FOLDER = PACKAGE / "evaluation" / "tasks"
COMMON_WORDS = {"rows"}
"""Names of tasks that are ordinary words too."""


def names_in(source: str) -> Iterator[tuple[int, str]]:
    """The identifiers and string constants of a module with their lines, but for its documentation."""
    tree = ast.parse(source)
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.lineno, node.value
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, name) for name in (node.module or "", *(item.name for item in node.names)))
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, item.name) for item in node.names)
        for field in ("id", "attr", "arg", "name"):
            if isinstance(name := getattr(node, field, None), str):
                yield getattr(node, "lineno", 0), name


def test_nothing_outside_the_folder_of_tasks_names_a_benchmark() -> None:
    benchmarks = [name.replace("_", "") for name in TASKS.names() if name not in COMMON_WORDS]
    assert {"gsm8k", "humaneval", "mtbench", "lmeval"} <= set(benchmarks)
    found = [
        f"{file.relative_to(PACKAGE)}:{line}: {name}"
        for file in sorted(PACKAGE.rglob("*.py"))
        if TASKS_FOLDER not in file.parents
        for line, name in names_in(file.read_text())
        if any(benchmark in name.lower().replace("_", "").replace("-", "") for benchmark in benchmarks)
    ]
    assert found == []


@pytest.mark.parametrize("name", ["rows", "gsm8k", "humaneval", "mt_bench", "lm_eval"])
def test_a_task_states_its_options_in_its_own_file(name: str) -> None:
    task = TASKS[name]
    assert issubclass(task, Task)
    assert issubclass(task.Options, EvalOptions)
    assert task.Options.__module__ == task.__module__
    assert task.Options().task == name


def test_options_of_tasks_are_known_without_heavy_imports() -> None:
    code = (
        "import sys\nfrom lora_ga_cli.registry import TASKS\nTASKS.names()\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'peft', 'openai', 'lm_eval') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
