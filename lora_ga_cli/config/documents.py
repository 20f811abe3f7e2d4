"""YAML files of the configuration, with the line of every key."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import yaml

from lora_ga_cli.config.locations import shown
from lora_ga_cli.errors import Fault

KeyPath = tuple[str, ...]
PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")
)
_PACKAGE_HEADER = re.compile(r"^\s*#\s*@package\s+(\S+)", re.MULTILINE)
MAX_LINES = 10_000
"""The largest number of keys and list items in a file; what an anchor repeats counts each time."""


class _Loader(yaml.SafeLoader):
    """YAML as OmegaConf reads it: ``1e-4`` is a number, dates are texts, and no key may stand twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value}", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


@dataclass(eq=False)
class Document:
    """One file: a recipe, or a choice of a group. It is shared by all who read the file, and stays as it is.

    Args:
        file: where it was read.
        group: ``recipe``, or the group whose options the file sets.
        data: its content without ``defaults``.
        defaults: its defaults list.
        lines: the line of every key by its path within the file.
    """

    file: Path
    group: str
    text: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    defaults: list[Any] = field(default_factory=list)
    lines: dict[KeyPath, int] = field(default_factory=dict)

    @cached_property
    def values(self) -> dict[KeyPath, Any]:
        """Every key with its value, by its path within the file."""
        return dict(leaves(self.data))

    @property
    def choice(self) -> str:
        """What chooses the file within its group."""
        return self.file.stem

    @property
    def package(self) -> KeyPath:
        """Where the file's keys go in the configuration: its group's section, or everywhere for a recipe and for a
        method that needs other sections too."""
        return () if self.group == "recipe" or self.header == "_global_" else (self.group,)

    @property
    def order(self) -> list[Any]:
        """The defaults list with ``_self_``: a file wins over those it builds on, unless it says so itself."""
        if "_self_" in self.defaults:
            return self.defaults
        overrides = [entry for entry in self.defaults if _is_override(entry)]
        return [*(entry for entry in self.defaults if not _is_override(entry)), "_self_", *overrides]

    @property
    def header(self) -> str | None:
        """The package that the file's ``# @package`` line names."""
        match = _PACKAGE_HEADER.search(self.text)
        return match.group(1) if match else None

    def where(self, path: KeyPath) -> str:
        """``file:line`` of a key, given by its path within the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{shown(self.file)}:{self.lines.get(path, 1)}"


def read_document(file: Path, group: str) -> tuple[Document, list[Fault]]:
    """Reads one YAML file; a file that is not plain YAML gives faults with their lines and an empty document."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return Document(file, group), [Fault(shown(file), "not UTF-8 text")]
    except OSError as error:
        return Document(file, group), [Fault(shown(file), f"cannot be read: {error.strerror}")]
    document, faults = _parsed(file, group, text, Path.cwd())
    return document, list(faults)


@lru_cache(maxsize=512)
def _parsed(file: Path, group: str, text: str, here: Path) -> tuple[Document, list[Fault]]:
    """
    Args:
        here: the folder that faults show paths from.
    """
    document = Document(file, group, text)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return document, []
        if not isinstance(node, yaml.MappingNode):
            return document, [Fault(f"{shown(file)}:1", "not a mapping of options", "write `option: value` lines")]
        faults = [
            Fault(f"{shown(file)}:{line}", f"{'.'.join(path)}: {what}")
            for path, line, what in _examine(node, (), document.lines, frozenset())
        ]
        if faults:
            return document, faults
        content = loader.construct_document(node)
    except RecursionError:
        return document, [Fault(shown(file), "nested too deep")]
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = str(getattr(error, "problem", error)).splitlines()[0]
        return document, [Fault(f"{shown(file)}:{line}", f"not YAML: {problem}")]
    document.data = {str(key): value for key, value in content.items()}
    defaults = document.data.pop("defaults", [])
    if not isinstance(defaults, list):
        return document, [
            Fault(document.where(("defaults",)), f"defaults: {defaults!r}: a list is wanted", "defaults: [...]")
        ]
    document.defaults = defaults
    return document, []


def leaves(data: Any, path: KeyPath = ()) -> list[tuple[KeyPath, Any]]:
    """Every key of nested mappings with its value, parents before children."""
    items: list[tuple[KeyPath, Any]] = []
    if isinstance(data, dict):
        for key, value in data.items():
            items.append(((*path, str(key)), value))
            items.extend(leaves(value, (*path, str(key))))
    return items


def nested(path: Sequence[str], value: Any) -> Any:
    """``value`` inside a mapping for every name of ``path``."""
    return {path[0]: nested(path[1:], value)} if path else value


def merge(target: dict[str, Any], added: dict[str, Any]) -> None:
    """Sets in ``target`` what ``added`` has; mappings in both are merged, and ``???`` (missing) replaces nothing."""
    for name, value in added.items():
        if isinstance(value, dict) and isinstance(target.get(name), dict):
            merge(target[name], value)
        elif value != "???" or name not in target:
            target[name] = copy.deepcopy(value) if isinstance(value, dict | list) else value


def _examine(
    node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], around: frozenset[int]
) -> Iterator[tuple[KeyPath, int, str]]:
    """Notes the line of every key and list item; yields path, line and reason of what is no plain data.

    Args:
        around: the nodes that ``node`` lies in: with YAML's anchors it may be one of them.
    """
    line = node.start_mark.line + 1
    if node.tag not in PLAIN_TAGS:
        yield path, line, f"{node.tag.replace('tag:yaml.org,2002:', '!!')} is refused; write a plain value"
    elif id(node) in around:
        yield path, line, "contains itself"
    elif len(lines) > MAX_LINES:
        raise yaml.YAMLError("too long")
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            lines[here] = key.start_mark.line + 1
            yield from _examine(value, here, lines, around | {id(node)})
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = (*path, str(index))
            lines[here] = value.start_mark.line + 1
            yield from _examine(value, here, lines, around | {id(node)})


def _is_override(entry: Any) -> bool:
    return isinstance(entry, dict) and any(str(key).startswith("override") for key in entry)
