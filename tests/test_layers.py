"""The layers of the package: who may import whom, read from the source of every module.

Imports inside functions and under TYPE_CHECKING count too: a function that needs a module of an upper floor belongs
there, and so does one that needs its types.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = "lora_ga_cli"
ROOT = Path(__file__).resolve().parent.parent
FLOORS = (
    {"errors", "machine"},
    {"peers"},
    {"disk"},
    {
        "files",
        "paths",
        "stores",
        "distributed",
        "garbage",
        "gpus",
        "registry",
        "interruption",
        "reachable",
        "expressions",
    },
    {"json_files"},
    {"remembered_digests"},
    {"digests"},
    {"config"},
    {"model", "data"},
    {"gradient", "evaluation"},
    {"lora"},
    {"inspection"},
    {"optimizers"},
    {"theory"},
    {"methods"},
    {"report"},
    {"training"},
    {"stages"},
    {"reproduce"},
    {"cli"},
    {"__main__"},
)
"""Folders and files of the package, from the lowest floor to the highest. Each may import itself and lower floors."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ONLY_IN = {"hydra": "config", "omegaconf": "config", "typer": "cli"}
HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate", "hydra", "pydantic"}
DATA_ONLY = {"assets"}
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((ROOT / PACKAGE).rglob("*.py"))
}


@functools.cache
def imported(module: str) -> frozenset[str]:
    """Everything that a module imports, anywhere in it: ``a.b`` for ``import a.b``, and for ``from a import b`` if b is
    a module of the package, else ``a``."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative imports are not used"
            source = str(node.module)
            parts = {f"{source}.{alias.name}" for alias in node.names}
            names |= {part if part in MODULES else source for part in parts}
    return frozenset(names)


def room(module: str) -> str:
    """The folder or file below the package that a module is in; empty for the package itself."""
    return module.removeprefix(PACKAGE).strip(".").partition(".")[0]


def of_package(module: str) -> set[str]:
    """The modules of the package that a module imports, without the package itself, which only names its exports."""
    return {name for name in imported(module) if name in MODULES and name not in (module, PACKAGE)}


def test_every_folder_and_file_has_a_floor() -> None:
    assert {room(module) for module in MODULES} - {"", *DATA_ONLY} == set(FLOOR)


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) in FLOOR])
def test_no_module_imports_from_a_higher_floor_or_from_a_neighbour(module: str) -> None:
    here = room(module)
    others = {name for name in of_package(module) if room(name) != here}
    assert {name for name in others if FLOOR[room(name)] >= FLOOR[here]} == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: of_package(module) for module in MODULES if module != PACKAGE}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


@pytest.mark.parametrize("module", MODULES)
def test_hydra_typer_and_mocks_stay_where_they_belong(module: str) -> None:
    libraries = {name.partition(".")[0] for name in imported(module)}
    assert "unittest" not in libraries
    assert {name for name in libraries if ONLY_IN.get(name, room(module)) != room(module)} == set()


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) in ("gradient", "theory")])
def test_the_gradient_and_the_theory_do_not_know_the_configuration(module: str) -> None:
    """The gradient is a library: `lora_ga_cli.estimate_gradients` takes a model and batches. So is the theory."""
    assert "config" not in {room(name) for name in of_package(module)}


def test_help_loads_nothing_heavy() -> None:
    """Only the standard library, Typer and light modules of the package."""
    code = (
        "import sys; from lora_ga_cli.cli.app import app; from typer.testing import CliRunner\n"
        "result = CliRunner().invoke(app, ['--help']); assert result.exit_code == 0, result.output\n"
        "print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert HEAVY & set(run.stdout.split()) == set()
