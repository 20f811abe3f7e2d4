"""YAML files of the configuration, with the line of every key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lora_ga_cli.config.locations import shown
from lora_ga_cli.errors import Fault

KeyPath = tuple[str, ...]


@dataclass
class Document:
    """One file: a recipe, or a choice of a group.

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

    @property
    def package(self) -> KeyPath:
        """Where the file's keys go in the whole configuration."""
        return () if self.group == "recipe" else (self.group,)

    def where(self, path: KeyPath) -> str:
        """``file:line`` of a key, given by its path within the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{shown(self.file)}:{self.lines.get(path, 1)}"


def read_document(file: Path, group: str) -> tuple[Document, list[Fault]]:
    """Reads one YAML file; a file that cannot be parsed gives a fault with its line and an empty document."""
    document = Document(file, group)
    try:
        document.text = file.read_text(encoding="utf-8")
        node = yaml.compose(document.text, Loader=yaml.SafeLoader)
        if node is None:
            return document, []
        if not isinstance(node, yaml.MappingNode):
            return document, [Fault(f"{shown(file)}:1", "not a mapping of options", "write `option: value` lines")]
        _collect_lines(node, (), document.lines)
        content = OmegaConf.to_container(OmegaConf.create(document.text), resolve=False)
        assert isinstance(content, dict)
        document.data = {str(key): value for key, value in content.items()}
    except UnicodeDecodeError:
        return document, [Fault(shown(file), "not UTF-8 text")]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        return document, [Fault(f"{shown(file)}:{line}", f"not YAML: {getattr(error, 'problem', error)}")]
    except OmegaConfBaseException as error:
        return document, [Fault(shown(file), str(error).splitlines()[0])]
    defaults = document.data.pop("defaults", [])
    document.defaults = defaults if isinstance(defaults, list) else [defaults]
    return document, []


def leaves(data: Any, path: KeyPath = ()) -> list[tuple[KeyPath, Any]]:
    """Every key of nested mappings with its value, parents before children."""
    found: list[tuple[KeyPath, Any]] = []
    if isinstance(data, dict):
        for key, value in data.items():
            found.append(((*path, str(key)), value))
            found.extend(leaves(value, (*path, str(key))))
    return found


def _collect_lines(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            lines[here] = key.start_mark.line + 1
            _collect_lines(value, here, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, str(index))] = value.start_mark.line + 1
