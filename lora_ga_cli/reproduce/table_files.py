"""Where tables come from: YAML files that are shipped, that other distributions install, and of the user.

A user's tables lie in ``tables/`` of the folder that ``--config-dir`` names. A distribution adds tables by an entry
point of the group ``loraga.tables``: a package that contains the YAML files, or a variable with the path of a folder::

    [project.entry-points."loraga.tables"]
    my-tables = "my_package.tables"
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from lora_ga_cli.config.locations import Locations, shown
from lora_ga_cli.config.safety import unsafe_options
from lora_ga_cli.config.schema import Section
from lora_ga_cli.config.wording import WANTED, what_is_wrong
from lora_ga_cli.errors import Fault, InvalidInput, suggest
from lora_ga_cli.reproduce.table import Table

ENTRY_POINTS = "loraga.tables"
RENAMED = {"fair": "tune_lr", "most": "max_rates", "percent": "format: percent, or format: number for percent: false"}
"""Earlier names of keys, and the present ones."""


@dataclass(frozen=True)
class TableSummary:
    """One line of the list of tables."""

    title: str
    rows: int
    columns: list[str]
    tiny: bool
    tune_lr: bool


def all_tables(user_dir: Path | None = None) -> dict[str, Path]:
    """The files of all tables by name. A user's table replaces another of the same name.

    Args:
        user_dir: a folder whose ``tables/`` contains tables of the user.

    Raises:
        InvalidInput: an installed distribution adds a table whose name is taken, or cannot be loaded.
    """
    tables = _files_in(Locations().recipes / "tables")
    for point in entry_points(group=ENTRY_POINTS):
        for name, file in _files_in(_folder_of(point)).items():
            if tables.setdefault(name, file) != file:
                raise InvalidInput([Fault(shown(file), f"the table {name!r} exists already", "give it another name")])
    return tables | (_files_in(user_dir / "tables") if user_dir is not None else {})


def find_table(name: str, user_dir: Path | None = None) -> Table:
    """A table by name.

    Raises:
        InvalidInput: there is no such table, or its file is wrong.
    """
    tables = all_tables(user_dir)
    if name not in tables:
        raise InvalidInput([Fault("command line", f"no table {name!r}", suggest(name, tables))])
    return read_table(tables[name])


def read_table(file: Path) -> Table:
    """Reads the table that a file describes. The file is subject to the same restrictions as a recipe.

    Raises:
        InvalidInput: everything that is wrong with the file.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise InvalidInput([Fault(shown(file), f"not YAML: {str(error).splitlines()[0]}")]) from error
    try:
        table = Table.model_validate(content)
    except ValidationError as error:
        raise InvalidInput([_fault(file, item) for item in error.errors()]) from error
    is_shipped = file.is_relative_to(Locations().recipes)
    faults = unsafe_options(_options(table), shown(file), reads_anywhere=is_shipped)
    if faults:
        raise InvalidInput(faults)
    return table


def summarize(file: Path) -> TableSummary:
    """What the list of tables shows of one."""
    table = read_table(file)
    return TableSummary(
        table.title, len(table.rows), list(table.full.columns), table.tiny is not None, table.full.tune_lr is not None
    )


def _files_in(folder: Path) -> dict[str, Path]:
    return {file.stem: file for file in sorted(folder.glob("*.yaml")) if file.is_file()}


def _folder_of(point: EntryPoint) -> Path:
    """The folder that an entry point names.

    Raises:
        InvalidInput: it cannot be loaded, or names no folder.
    """
    try:
        target = point.load()
        folder = Path(target if isinstance(target, str | Path) else target.__file__)
    except Exception as error:
        what = f"cannot load {point.value}: {type(error).__name__}: {error}"
        raise InvalidInput([Fault(f"entry point {ENTRY_POINTS}: {point.name}", what)]) from error
    return folder if folder.is_dir() else folder.parent


def _fault(file: Path, error: Any) -> Fault:
    """One of pydantic's errors, with the nearest right name where it is about an unknown key."""
    *around, last = error["loc"] or ("",)
    if error["type"] == "extra_forbidden":
        where = f"{shown(file)}: {'.'.join(map(str, around))}" if around else shown(file)
        hint = f"did you mean {RENAMED[last]}?" if last in RENAMED else suggest(str(last), _keys_at(around))
        return Fault(where, f"no key {last!r}", hint)
    where = ".".join(map(str, error["loc"]))
    if not where:
        return Fault(shown(file), what_is_wrong(error))
    if error["type"] in WANTED:
        return Fault(shown(file), f"{where}={error['input']} {what_is_wrong(error)}")
    return Fault(f"{shown(file)}: {where}", what_is_wrong(error))


def _keys_at(location: list[int | str]) -> Iterator[str]:
    """The keys that a place in a table's file may have."""
    section: type[Section] = Table
    for part in location:
        if (field := section.model_fields.get(str(part))) is not None:
            section = _section_in(field.annotation) or section
    yield from section.model_fields


def _section_in(annotation: Any) -> type[Section] | None:
    """The section that a type annotation contains, as in ``dict[str, Column]`` or ``TuneLr | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)


def _options(table: Table) -> list[str]:
    """Every override in a table's file."""
    parts = [part for part in (table.full, table.tiny) if part is not None]
    options = [option for overrides in table.rows.values() for option in overrides]
    options += [option for part in parts for option in part.overrides]
    options += [option for part in parts for column in part.columns.values() for option in column.overrides]
    options += [option for part in parts if part.tune_lr is not None for option in part.tune_lr.held_out]
    return options
