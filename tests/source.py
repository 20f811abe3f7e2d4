"""The package's source as tests read it: which names stand where."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import lora_ga_cli

PACKAGE = Path(str(lora_ga_cli.__file__)).parent


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


def names_outside(folder: Path) -> Iterator[tuple[str, int, str]]:
    """The identifiers and string constants of all modules of the package that are not in a folder.

    Yields:
        The module's file relative to the package, the line, and the name.
    """
    for file, names in names_by_file().items():
        if folder not in file.parents:
            yield from ((str(file.relative_to(PACKAGE)), line, name) for line, name in names)


@functools.cache
def names_by_file() -> dict[Path, list[tuple[int, str]]]:
    """The names in every module of the package."""
    return {file: list(names_in(file.read_text(encoding="utf-8"))) for file in sorted(PACKAGE.rglob("*.py"))}
