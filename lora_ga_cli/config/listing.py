"""All options of all types, listed for people and for the shell.

Collecting them imports every method, which takes seconds. The list is therefore kept in a file of the cache folder, so
that a shell completes the options of a method at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from lora_ga_cli import __version__
from lora_ga_cli.config.locations import PACKAGE
from lora_ga_cli.config.options import (
    KeyPath,
    as_typed,
    common_options,
    default_of,
    kind_of,
    literals_of,
    options_of_type,
)
from lora_ga_cli.config.schema import TYPED_SECTIONS, TypedSection
from lora_ga_cli.json_files import read_json, sha256_json, write_json
from lora_ga_cli.paths import cache_root
from lora_ga_cli.registry import CODE_VARIABLE


@dataclass(frozen=True)
class Option:
    """One option as `loraga recipes options` shows it.

    Args:
        types: the types of its section that have it, as ``lora``; empty where every configuration has it.
        values: the values it can take, where they can be listed.
    """

    path: str
    kind: str
    default: str
    doc: str
    types: tuple[str, ...] = ()
    values: tuple[str, ...] = ()


def list_options() -> list[Option]:
    """All options of all types. Read from the cache where that is up to date, else collected and written there."""
    options = cached_options()
    if options is None:
        options = list(collect_options())
        remember_options(options)
    return options


def cached_options() -> list[Option] | None:
    """The options that the cache holds, if no file that has options was changed since."""
    try:
        content = read_json(_file())
        if content["stamp"] != _stamp():
            return None
        return [
            Option(**entry | {"types": tuple(entry["types"]), "values": tuple(entry["values"])})
            for entry in content["options"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def options_at_hand() -> list[Option]:
    """All options if the cache has them, else those that need no type."""
    cached = cached_options()
    return cached if cached is not None else [_entry(path, field) for path, field in common_options().items()]


def remember_options(options: list[Option] | None = None) -> None:
    """Writes the options to the cache, unless it has them; does nothing if that fails.

    Args:
        options: None to collect them.
    """
    if options is None and cached_options() is not None:
        return
    try:
        entries = [asdict(option) for option in (collect_options() if options is None else options)]
        write_json(_file(), {"stamp": _stamp(), "options": entries}, digest=True)
    except OSError:
        return


def collect_options() -> Iterator[Option]:
    """All options of all types, in the order of the schema. Imports the classes of all types."""
    for path, field in common_options().items():
        section = TYPED_SECTIONS.get(path[0])
        if section is not None and path == section.decider:
            names = tuple(section.registry.names())
            yield Option(".".join(path), " | ".join(names), section.default, _doc(field), (), names)
        else:
            yield _entry(path, field)
        last_of_section = [name for name in common_options() if name[0] == path[0]][-1]
        if section is not None and path == last_of_section:
            yield from _of_section(section)


def _of_section(section: TypedSection) -> Iterator[Option]:
    """The options of the types of a section; one entry for types that have the same."""
    types: dict[Option, list[str]] = {}
    for type_name in section.registry.names():
        for path, field in (options_of_type(section, type_name) or {}).items():
            if path not in common_options():
                types.setdefault(_entry(path, field), []).append(type_name)
    for option, names in sorted(types.items(), key=lambda item: item[0].path):
        yield Option(**(asdict(option) | {"types": tuple(names)}))


def _entry(path: KeyPath, field: FieldInfo) -> Option:
    derived = bool(field.default_factory_takes_validated_data)
    default = "required" if field.is_required() else "derived" if derived else as_typed(default_of(field))
    return Option(".".join(path), kind_of(field.annotation), default, _doc(field), (), tuple(literals_of(field)))


def _doc(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _file() -> Path:
    return cache_root(None) / "options.json"


def _stamp() -> str:
    """Changes with the version, and with every file that may define an option."""
    named = [Path(name) for name in os.environ.get(CODE_VARIABLE, "").split(os.pathsep) if name]
    files = [*sorted((PACKAGE / "config" / "schema").glob("*.py")), *named]
    groups = []
    for section in TYPED_SECTIONS.values():
        folder = PACKAGE.joinpath(*section.registry.package.split(".")[1:])
        files += sorted(folder.glob("*.py"))
        groups += sorted(point.value for point in entry_points(group=section.registry.entry_points))
    times: list[Any] = [[str(file), file.stat().st_mtime_ns] for file in files if file.exists()]
    return sha256_json([__version__, times, groups])
