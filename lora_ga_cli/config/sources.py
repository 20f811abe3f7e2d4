"""What a configuration is composed from: the command line and files, with the place of every value."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hydra.core.override_parser.types import Override

from lora_ga_cli.config.command_line import COMMAND_LINE, is_hydras, values_of
from lora_ga_cli.config.documents import Document, KeyPath, merge, nested
from lora_ga_cli.config.locations import Locations
from lora_ga_cli.config.options import mapping_around
from lora_ga_cli.config.safety import FOR_THE_COMMAND_LINE
from lora_ga_cli.config.schema import TYPED_SECTIONS


class Place(NamedTuple):
    """Where a value was written.

    Args:
        order: of several places, that of the lowest order wins; the command line has 0.
        of_group: it is in a choice of a group, and in no recipe.
    """

    order: int
    where: str
    of_group: bool = False


@dataclass
class Sources:
    """What a configuration is composed from, and where each of its values was written.

    Args:
        flags: Hydra's own, as they are handed to it.
        documents: every file that was chosen, each before those that it builds on. Hydra sees no other.
    """

    locations: Locations
    flags: list[str] = field(default_factory=list)
    overrides: list[Override] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)

    @property
    def arguments(self) -> list[str]:
        """The command line for Hydra: options first, which its parser wants together."""
        return [*(self._for_hydra(override) for override in self.overrides), *self.flags]

    @property
    def sweeps(self) -> bool:
        """Whether an option may have several values, one for each job."""
        mode = any(override.input_line == "hydra.mode=MULTIRUN" for override in self.overrides)
        return mode or "--multirun" in self.flags

    def where(self, *paths: KeyPath) -> str:
        """Where the values at ``paths`` were written; of several, the place that wins over the others.

        The command line wins over recipes, a recipe over those it builds on, recipes over groups. What nobody has
        written can be written on the command line.
        """
        places = [place for path in paths if (place := self.place(path)) is not None]
        return min(places).where if places else COMMAND_LINE

    def place(self, path: KeyPath) -> Place | None:
        """Where the value at ``path`` was written; None if nobody has."""
        return min(self._places(path), default=None)

    def decided_at(self, path: KeyPath) -> float:
        """The order of the place that gives an option of a group its value, or chooses the group's file."""
        group = path[0]
        orders: list[float] = [place.order for place in self._places(path) if not place.of_group]
        orders += [0 for override in self.overrides if override.key_or_group == group]
        for number, document in enumerate(self._by_precedence(), 1):
            if group in groups_named(document, self.locations):
                orders.append(number)
        return min(orders, default=math.inf)

    def varies(self, path: KeyPath) -> bool:
        """Whether a sweep gives an option of a group several values, or chooses several files that may."""
        keys = ("recipe", path[0], ".".join(path))
        return any(override.key_or_group in keys and override.is_sweep_override() for override in self.overrides)

    def document(self, group: str, choice: str) -> Document:
        """A file that was read."""
        return next(found for found in self.documents if (found.group, found.choice) == (group, choice))

    def options_of(self, group: str, choice: str) -> dict[str, Any]:
        """What a choice of a group sets there, with the files it builds on."""
        return dict(self.content_of(group, choice).get(group, {}))

    def content_of(self, group: str, choice: str) -> dict[str, Any]:
        """What a choice of a group sets, with the files it builds on, by the sections of a configuration."""
        return content_of(self.documents, group, choice)

    def _places(self, path: KeyPath) -> Iterator[Place]:
        for override in self.overrides:
            given = tuple(override.key_or_group.split("."))
            shared = min(len(path), len(given))
            if path == given or (path[:shared] == given[:shared] and not self.is_choice(override.key_or_group)):
                yield Place(0, COMMAND_LINE)
        for number, document in enumerate(self._by_precedence(), 1):
            inside = path[len(document.package) :]
            if path[: len(document.package)] != document.package or document.values.get(inside) == "???":
                continue
            if inside in document.lines or inside in document.values:
                yield Place(number, document.where(inside), document.group != "recipe")

    def _by_precedence(self) -> list[Document]:
        return sorted(self.documents, key=lambda document: document.group != "recipe")

    def _for_hydra(self, override: Override) -> str:
        """An override as Hydra takes it, where loraga is more lenient."""
        text, key = str(override.input_line), override.key_or_group
        if is_hydras(key):
            return text
        values = values_of(override)
        if self.is_choice(key) and any(isinstance(value, int | float) for value in values):
            return f"{key}={','.join(repr(str(value)) for value in values)}"  # of a file called 12.yaml
        path = tuple(key.split("."))
        may_be_new = path[0] in TYPED_SECTIONS or mapping_around(path) is not None
        return ("++" if may_be_new and not self.is_choice(key) else "") + text.lstrip("+")

    def is_choice(self, key: str) -> bool:
        """Whether an override's key chooses a file."""
        return key == "recipe" or key in self.locations.groups()


def content_of(documents: Sequence[Document], group: str, choice: str) -> dict[str, Any]:
    """What a choice of a group sets, with the files it builds on, by the sections of a configuration."""
    document = next(found for found in documents if (found.group, found.choice) == (group, choice))
    content: dict[str, Any] = {}
    for entry in document.order:
        if entry == "_self_":
            merge(content, nested(document.package, document.data))
        else:
            merge(content, content_of(documents, group, str(entry)))
    return content


def groups_named(document: Document, locations: Locations) -> dict[str, list[str]]:
    """The choices of a file's own defaults list, by group."""
    named: dict[str, list[str]] = {}
    for entry in document.defaults:
        match choice_in(entry, document, locations):
            case (group, choice):
                named.setdefault(group, []).append(choice)
    return named


def choice_in(entry: Any, document: Document, locations: Locations) -> tuple[str, Any] | str | None:
    """Group and choice of an entry of a defaults list; None for ``_self_``; else what is wrong with it."""
    if entry == "_self_":
        return None
    if isinstance(entry, str) and re.fullmatch(r"[^/@:]+", entry):
        return document.group, entry
    key, choice = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (str(entry), None)
    found = re.fullmatch(r"override /(\w+)", str(key))
    if found and found[1] in locations.groups() and document.group == "recipe":
        return found[1], choice
    said = f"defaults: {entry!r}"
    if "hydra" in str(key) or "@" in str(key):
        return f"{said}: a file cannot configure Hydra ({FOR_THE_COMMAND_LINE})"
    groups = ", ".join(locations.groups())
    others = f" or `override /GROUP: CHOICE`, GROUP of {groups}" if document.group == "recipe" else ""
    return f"{said}: write the name of a {document.group} to build on{others}"
