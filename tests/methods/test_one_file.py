"""A method is one file: nothing outside `methods` names one."""

from __future__ import annotations

import ast
import inspect
import re

import pytest

from lora_ga_cli.config.aliases import MOVED_SECTIONS, RENAMED, REPLACED
from lora_ga_cli.config.schema import MethodOptions
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.methods.base import Method
from lora_ga_cli.registry import METHODS
from tests.source import PACKAGE, names_outside

METHODS_FOLDER = PACKAGE / "methods"
SHIPPED = [name for name in METHODS.names() if METHODS[name].__module__.startswith("lora_ga_cli.methods.")]
GENERAL_WORDS = {"full", "lora", "chain"}
"""Types whose names are ordinary words: `lora` is a folder of the package, too."""
GENERAL_CLASSES = {"Method"}
EXCEPTIONS = {
    "__init__.py": {"lora_ga_cli.methods.lora_ga"},  # the home of `initialize`
    "config/schema/typed.py": {"lora_ga"},  # the default of method.type
    "config/aliases.py": {*RENAMED, *RENAMED.values(), *REPLACED, *REPLACED.values(), *MOVED_SECTIONS},
    "reproduce/table.py": {"full"},  # a scale
}
"""By file, names that are allowed there. The aliases are hints that answer names of other libraries and versions."""


def pattern_of(words: set[str]) -> re.Pattern[str]:
    """Matches a name that is one of the words, or has one among its parts."""
    return re.compile(rf"(?<![A-Za-z])(?:{'|'.join(map(re.escape, sorted(words)))})(?![A-Za-z])")


def words() -> set[str]:
    """The types of all shipped methods, and the names of their classes."""
    classes = {METHODS[name].__name__ for name in SHIPPED}
    return (set(SHIPPED) | classes) - GENERAL_WORDS


def test_nothing_outside_the_folder_of_methods_names_a_method() -> None:
    assert {"lora_ga", "LoraGA", "adalora", "AdaLora", "ZeroInitLora", "pissa", "chain_lora_ga"} <= words()
    pattern = pattern_of(words())
    found = [
        f"{file}:{line}: {name}"
        for file, line, name in names_outside(METHODS_FOLDER)
        if name not in EXCEPTIONS.get(file, set()) and pattern.search(name.replace("lora_ga_cli", "").replace("-", "_"))
    ]
    assert found == []


def test_no_decision_depends_on_a_method_with_a_general_name() -> None:
    """Outside the folder, nothing is compared with such a type."""
    found = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}: {side.value}"
        for file in sorted(PACKAGE.rglob("*.py"))
        if METHODS_FOLDER not in file.parents
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare)
        for side in (node.left, *node.comparators)
        if isinstance(side, ast.Constant)
        and side.value in GENERAL_WORDS - EXCEPTIONS.get(str(file.relative_to(PACKAGE)), set())
    ]
    assert found == []


@pytest.mark.parametrize("name", SHIPPED)
def test_a_method_states_its_options_in_its_own_file(name: str) -> None:
    method = METHODS[name]
    assert issubclass(method, Method)
    assert issubclass(method.Options, MethodOptions)
    assert method.Options.__module__ == method.__module__
    assert method.Options().type == name
    assert inspect.getdoc(method)


def test_nothing_but_hints_names_an_option_of_a_method() -> None:
    """Folders below the methods have functions with arguments of the same names; they know no configuration. Options
    of one ordinary word, like ``scale``, are left out, and those whose name a stored gradient has for a property."""
    options = {option for name in SHIPPED for option in METHODS[name].Options.model_fields if "_" in option}
    options = {option for option in options if not hasattr(Method, option) and not hasattr(GradientArtifact, option)}
    options -= set(MethodOptions.model_fields)
    options |= {"direction", "gamma", "orthogonality"}
    found = [
        f"{file}:{line}: {name}"
        for file, line, name in names_outside(METHODS_FOLDER)
        if file.startswith(("cli/", "config/", "report/", "reproduce/", "stages/", "training/"))
        and (name.removeprefix("method.") in options if "." in name else name in options)
        and name not in EXCEPTIONS.get(file, set())
    ]
    assert found == []
