"""What a configuration is composed from: who gives an option its value, and which of several wins.

The order, from the lowest to the highest: the defaults of the schema, the primary configuration, one file of every
group, the recipe, and the command line. A file stands above those that it builds on.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from lora_ga_cli.config.documents import Document, KeyPath, merge, nested, read_document
from lora_ga_cli.config.locations import PRIMARY, Locations
from lora_ga_cli.config.options import default_values, defaults_of_type, mapping_around
from lora_ga_cli.config.overrides import COMMAND_LINE, is_hydras, values_of
from lora_ga_cli.config.safety import FOR_THE_COMMAND_LINE
from lora_ga_cli.config.schema import TYPED_SECTIONS, TypedSection


class Place(NamedTuple):
    """Where a value was written.

    Args:
        order: of several places, the one of the lowest order wins; the command line has 0.
        in_group: it is in the file of a group, and not in a recipe.
    """

    order: int
    where: str
    in_group: bool = False


@dataclass
class Sources:
    """What a configuration is composed from, and where each of its values was written.

    Args:
        flags: Hydra's own, as they are handed to it.
        documents: every file that was chosen, each before those that it builds on. No other file is read.
        swept: the options and groups to which a sweep gives several values.
    """

    locations: Locations
    flags: list[str] = field(default_factory=list)
    overrides: list[Override] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)
    swept: frozenset[str] = frozenset()
    _files: dict[str, dict[str, Path]] = field(default_factory=dict)

    @property
    def arguments(self) -> list[str]:
        """The command line for Hydra: options first, because its parser wants them together."""
        return [*(self._for_hydra(override) for override in self.overrides), *self.flags]

    @property
    def sweeps(self) -> bool:
        """Whether an option may have several values, one for each job."""
        mode = any(override.input_line == "hydra.mode=MULTIRUN" for override in self.overrides)
        return mode or "--multirun" in self.flags

    @property
    def needs_hydra(self) -> bool:
        """Whether the command line concerns Hydra itself: flags, sweeps, its options or its resolvers."""
        texts = [str(override.input_line) for override in self.overrides]
        own = any(is_hydras(override.key_or_group) for override in self.overrides)
        return bool(self.flags) or self.sweeps or own or any(re.search(r"\$\{[^}]*:", text) for text in texts)

    def for_job(self, overrides: list[Override]) -> Sources:
        """The sources of one job of a sweep, which has these overrides."""
        swept = frozenset(override.key_or_group for override in self.overrides if override.is_sweep_override())
        return replace(self, flags=[], overrides=overrides, swept=swept)

    def is_choice(self, key: str) -> bool:
        """Whether an override's key chooses a file."""
        return key == "recipe" or key in self.locations.groups()

    def choices(self, group: str) -> dict[str, Path]:
        """The files of a group by choice."""
        if group not in self._files:
            self._files[group] = self.locations.choices(group)
        return self._files[group]

    @cached_property
    def primary(self) -> Document:
        """The primary configuration, which chooses a file for most groups."""
        return read_document(self.locations.primary, PRIMARY)[0]

    @cached_property
    def layers(self) -> list[Document]:
        """The chosen files, from the one of the lowest precedence to the one that wins over all others.

        Where a sweep chooses several files for a group, all of them.
        """
        chosen = self._choices
        names = [(group, name) for group in self.locations.groups() for name in chosen.get(group, ())]
        names += [("recipe", name) for name in chosen["recipe"]]
        return list(dict.fromkeys(document for group, name in names for document in self._chain(group, name)))

    @cached_property
    def _choices(self) -> dict[str, list[str]]:
        """The names of the chosen files by group; several only where a sweep chooses them."""
        given: dict[str, list[str]] = {}
        for override in self.overrides:
            if self.is_choice(override.key_or_group):
                choices = self.choices(override.key_or_group)
                values = [value for value in values_of(override, choices) if value is not None]
                given[override.key_or_group] = [str(value) for value in values]
        by_recipes: dict[str, list[str]] = {}
        for recipe in given.setdefault("recipe", []):
            for group, name in self._chosen_by(recipe).items():
                by_recipes.setdefault(group, []).append(name)
        by_default = {
            group: [str(name)]
            for entry in self.primary.defaults
            if isinstance(entry, dict)
            for group, name in entry.items()
        }
        return by_default | by_recipes | given

    def _chosen_by(self, recipe: str) -> dict[str, str]:
        """The choices of a recipe by group. Its own win over those of the recipes that it builds on."""
        document, chosen = self.document("recipe", recipe), dict[str, str]()
        named = groups_named(document, self.locations) if document is not None else {}
        for base in named.pop("recipe", []):
            chosen |= self._chosen_by(base)
        return chosen | {group: names[-1] for group, names in named.items()}

    def document(self, group: str, choice: str) -> Document | None:
        """The file of a choice, if it was read."""
        found = (document for document in self.documents if (document.group, document.choice) == (group, choice))
        return next(found, None)

    def _chain(self, group: str, name: str) -> Iterator[Document]:
        """A file and those it builds on, the winning one last."""
        document = self.document(group, name)
        for entry in document.order if document is not None else ():
            if entry == "_self_" and document is not None:
                yield document
            elif not isinstance(entry, dict):
                yield from self._chain(group, str(entry))

    def where(self, *paths: KeyPath) -> str:
        """Where the values at ``paths`` were written; of several, the place that wins over the others.

        What nobody has written can be written on the command line.
        """
        places = [place for path in paths if (place := self.place(path)) is not None]
        return min(places).where if places else COMMAND_LINE

    def place(self, path: KeyPath) -> Place | None:
        """Where the value at ``path``, or something in it, was written; None if nobody has."""
        return min(self._places(path), default=None)

    def decided_at(self, path: KeyPath) -> float:
        """The order of the place that gives an option of a group its value, or chooses the group's file."""
        group = path[0]
        orders: list[float] = [place.order for place in self._places(path) if not place.in_group]
        orders += [0 for override in self.overrides if override.key_or_group == group]
        for order, document in self._by_precedence():
            if document.group == "recipe" and group in groups_named(document, self.locations):
                orders.append(order)
        return min(orders, default=math.inf)

    def varies(self, path: KeyPath) -> bool:
        """Whether a sweep gives an option of a group several values, or chooses several files that may."""
        return bool(self.swept & {"recipe", path[0], ".".join(path)})

    def options_of(self, group: str, choice: str) -> dict[str, Any]:
        """What the file of a choice, and those it builds on, set for their group."""
        return dict(self.content_of_choice(group, choice).get(group, {}))

    def content_of_choice(self, group: str, choice: str) -> dict[str, Any]:
        """What the file of a choice, and those it builds on, set; by the sections of a configuration."""
        content: dict[str, Any] = {}
        for document in self._chain(group, choice):
            merge(content, content_of(document))
        return content

    def values(self, *, with_types: bool = True) -> dict[str, Any]:
        """The composed configuration, its interpolations not filled in. For sources without several values.

        Args:
            with_types: with the defaults of the types of methods and tasks, whose classes are imported for it.

        Raises:
            OmegaConfBaseException: a type is interpolated from nothing.
        """
        values = copy.deepcopy(_merged(self.primary, tuple(self.layers)))
        recipe = self._choices["recipe"]
        values["recipe"] = recipe[-1] if recipe else None
        for override in self.overrides:
            key = override.key_or_group
            if not self.is_choice(key) and not is_hydras(key):
                merge(values, nested(tuple(key.split(".")), override.value()))
        for section in TYPED_SECTIONS.values() if with_types else ():
            options = values.get(section.name)
            if isinstance(options, dict):
                type_name = _filled_in(values, section)
                values[section.name] = {section.key: type_name, **defaults_of_type(section, type_name)}
                merge(values[section.name], options)
        return values

    def values_below(self, place: Place) -> dict[str, Any]:
        """What the places below one give, without types' defaults. It is not to be changed."""
        return _merged(self.primary, tuple(self.layers[: len(self.layers) - place.order]))

    @property
    def types(self) -> dict[str, object]:
        """The types of the sections whose options depend on one."""
        values = self.values(with_types=False)
        return {section.name: _filled_in(values, section) for section in TYPED_SECTIONS.values()}

    def _places(self, path: KeyPath) -> Iterator[Place]:
        for override in self.overrides:
            given = tuple(override.key_or_group.split("."))
            shared = min(len(path), len(given))
            if path == given or (path[:shared] == given[:shared] and not self.is_choice(override.key_or_group)):
                yield Place(0, COMMAND_LINE)
        for order, document in self._by_precedence():
            inside = path[len(document.package) :]
            if path[: len(document.package)] != document.package or document.values.get(inside) == "???":
                continue
            if inside in document.lines or inside in document.values:
                yield Place(order, document.where(inside), document.group != "recipe")

    def _by_precedence(self) -> Iterator[tuple[int, Document]]:
        """The chosen files with their order as places, the winning one first."""
        return enumerate(reversed(self.layers), 1)

    def _for_hydra(self, override: Override) -> str:
        """An override as Hydra takes it, where loraga is more lenient."""
        text, key = str(override.input_line), override.key_or_group
        if is_hydras(key):
            return text
        values = values_of(override)
        if self.is_choice(key):
            if any(isinstance(value, int | float) for value in values):
                return f"{key}={','.join(repr(str(value)) for value in values)}"  # of a file called 12.yaml
            return text.lstrip("+")
        path = tuple(key.split("."))
        may_be_new = path[0] in TYPED_SECTIONS or mapping_around(path) is not None
        return ("++" if may_be_new else "") + text.lstrip("+")


@lru_cache(maxsize=64)
def _merged(primary: Document, layers: tuple[Document, ...]) -> dict[str, Any]:
    """The schema's defaults, the primary configuration and the files, merged in this order."""
    values = default_values()
    merge(values, {name: value for name, value in primary.data.items() if name not in ("hydra", "recipe")})
    for document in layers:
        merge(values, content_of(document))
    return values


def _filled_in(values: dict[str, Any], section: TypedSection) -> object:
    """The type of a section, filled in where it is an interpolation."""
    options = values.get(section.name)
    type_name = options.get(section.key, section.default) if isinstance(options, dict) else section.default
    if isinstance(type_name, str) and "${" in type_name:
        return OmegaConf.select(OmegaConf.create(values), ".".join(section.decider))
    return type_name


def content_of(document: Document) -> dict[str, Any]:
    """What a file sets, by the sections of a configuration; a method without a name is called as its file is."""
    content: dict[str, Any] = {"method": {"name": document.choice}} if document.group == "method" else {}
    merge(content, nested(document.package, document.data))
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
    """Group and choice of an entry of a defaults list; None for ``_self_``; a text that says what is wrong with it."""
    if entry == "_self_":
        return None
    if isinstance(entry, str) and re.fullmatch(r"[^/@:]+", entry):
        return document.group, entry
    key, choice = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (str(entry), None)
    match = re.fullmatch(r"override /(\w+)", str(key))
    if match and match[1] in locations.groups() and document.group == "recipe":
        return match[1], choice
    problem = f"defaults: {entry!r}"
    if "hydra" in str(key) or "@" in str(key):
        return f"{problem}: a file cannot configure Hydra ({FOR_THE_COMMAND_LINE})"
    groups = ", ".join(locations.groups())
    others = f" or `override /GROUP: CHOICE`, GROUP of {groups}" if document.group == "recipe" else ""
    return f"{problem}: write the name of a {document.group} to build on{others}"
