"""A benchmark is one file: nothing outside `evaluation/tasks` names one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lora_ga_cli.config.schema import EvalOptions
from lora_ga_cli.evaluation.tasks.base import Task
from lora_ga_cli.registry import TASKS
from tests.source import PACKAGE, names_outside

TASKS_FOLDER = PACKAGE / "evaluation" / "tasks"
COMMON_WORDS = {"rows"}
"""Names of tasks that are ordinary words too."""


def test_nothing_outside_the_folder_of_tasks_names_a_benchmark() -> None:
    benchmarks = [name.replace("_", "") for name in TASKS.names() if name not in COMMON_WORDS]
    assert {"gsm8k", "humaneval", "mtbench", "lmeval"} <= set(benchmarks)
    found = [
        f"{file}:{line}: {name}"
        for file, line, name in names_outside(TASKS_FOLDER)
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
