"""A method is one file: nothing outside `methods` names one."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_ga_cli
from lora_ga_cli.config.aliases import MOVED_SECTIONS, RENAMED, REPLACED
from lora_ga_cli.config.schema import MethodOptions
from lora_ga_cli.methods.base import Method
from lora_ga_cli.registry import METHODS
from tests.evaluation.test_one_file import names_in

PACKAGE = Path(str(lora_ga_cli.__file__)).parent
METHODS_FOLDER = PACKAGE / "methods"
SHIPPED = [name for name in METHODS.names() if METHODS[name].__module__.startswith("lora_ga_cli.methods.")]
GENERAL_WORDS = {"full", "lora", "chain"}
"""Types whose names are ordinary words: `lora` is a folder of the package, too."""
GENERAL_CLASSES = {"Method"}
EXCEPTIONS = {
    "__init__.py": {"lora_ga_cli.methods.lora_ga"},  # the home of `initialize`
    "config/schema.py": {"lora_ga"},  # the default of method.type
    "config/aliases.py": {*RENAMED, *RENAMED.values(), *REPLACED, *REPLACED.values(), *MOVED_SECTIONS},
    "reproduce/table.py": {"full"},  # a scale
}
"""By file, names that are allowed there. The aliases are hints that answer names of other libraries and versions."""


def named(name: str, words: set[str]) -> bool:
    """Whether a name is one of the words, or has one among its parts."""
    text = name.replace("lora_ga_cli", "").replace("-", "_")
    return any(re.search(rf"(?<![A-Za-z]){re.escape(word)}(?![A-Za-z])", text) for word in words)


def words() -> set[str]:
    """The types of all shipped methods, and the names of their classes."""
    classes = {METHODS[name].__name__ for name in SHIPPED}
    return (set(SHIPPED) | classes) - GENERAL_WORDS


def uses(file: Path) -> Iterator[str]:
    allowed = EXCEPTIONS.get(str(file.relative_to(PACKAGE)), set())
    for line, name in names_in(file.read_text(encoding="utf-8")):
        if name not in allowed and named(name, words()):
            yield f"{file.relative_to(PACKAGE)}:{line}: {name}"


def test_nothing_outside_the_folder_of_methods_names_a_method() -> None:
    assert {"lora_ga", "LoraGA", "adalora", "AdaLora", "ZeroInitLora", "pissa", "chain_lora_ga"} <= words()
    files = [file for file in sorted(PACKAGE.rglob("*.py")) if METHODS_FOLDER not in file.parents]
    assert [use for file in files for use in uses(file)] == []


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
    of one ordinary word, like ``scale``, are left out."""
    options = {option for name in SHIPPED for option in METHODS[name].Options.model_fields if "_" in option}
    options = {option for option in options if not hasattr(Method, option)} - set(MethodOptions.model_fields)
    options |= {"direction", "gamma", "orthogonality"}
    found = [
        f"{file.relative_to(PACKAGE)}:{line}: {name}"
        for folder in ("cli", "config", "report", "reproduce", "stages", "training")
        for file in sorted((PACKAGE / folder).rglob("*.py"))
        for line, name in names_in(file.read_text(encoding="utf-8"))
        if (name.removeprefix("method.") in options if "." in name else name in options)
        and name not in EXCEPTIONS.get(str(file.relative_to(PACKAGE)), set())
    ]
    assert found == []
