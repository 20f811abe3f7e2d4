"""Which format the rows of a data set have: recognized by the columns and by what the first rows hold in them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_ga_cli.config.row_forms import is_complete, ways_to_read
from lora_ga_cli.data.formats import Unreadable
from lora_ga_cli.data.hub import HubSplit, read_hub, stream_hub
from lora_ga_cli.data.local import files_faults, listed, read_files, read_first_rows
from lora_ga_cli.data.row_formats.base import RowFormat
from lora_ga_cli.data.source import FileRows, Row, renames_faults
from lora_ga_cli.data.source_store import SourceStore
from lora_ga_cli.data.template import Template, TemplateError, with_sections
from lora_ga_cli.errors import DataError, Fault
from lora_ga_cli.registry import ROW_FORMATS

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import DatasetConfig, MixSource

FIRST_ROWS = 50
"""How many rows are looked at."""
AUTO = "auto"
COLUMNS = ("messages", "label", "tools")
TEMPLATES = ("prompt", "answer", "text", "text_pair")


def with_row_format(
    config: DatasetConfig, task: str, *, validation: bool = False, store: SourceStore | None = None
) -> tuple[DatasetConfig, list[str]]:
    """The data set with all options that say how a row is read, and lines for the user about those that were found.

    Options that the user gives are kept. Of a data set whose options are complete, no row is read.

    Args:
        validation: look at the rows to evaluate on, instead of those to train on.
        store: as for `first_rows`.

    Raises:
        DataError: no format is recognized, or the rows cannot be read.
    """
    if is_complete(config):
        return _with_optional_columns(config, task)
    source = first_rows(config, validation=validation, store=store)
    if faults := renames_faults(source, config.columns):
        raise DataError(faults)
    rows = [_renamed(row, config.columns) for row in source.rows]
    columns = list(dict.fromkeys([*(name for row in rows for name in row), *_renamed_names(source, config)]))
    if config.format != AUTO:
        name, others = config.format, list[str]()
    else:
        fitting = [name for name in _formats(task) if columns and _fits(name, config, rows)]
        if not fitting:
            raise DataError([_not_recognized(source.name, config, task, columns, rows)])
        name, *others = fitting
    chosen = config.model_copy(update={"format": name, **_open_options(name, config, rows)})
    chosen, notes = _with_optional_columns(chosen, task)
    return chosen, [_described(name, config, chosen, columns, others), *notes]


def format_of_rows(config: DatasetConfig) -> type[RowFormat] | None:
    """The format that was recognized or named; None where other options say how a row is read."""
    return None if config.format == AUTO else ROW_FORMATS[config.format]


def first_rows(config: DatasetConfig, *, validation: bool = False, store: SourceStore | None = None) -> FileRows:
    """The first rows of a data set that can be read; of several sources, those of the first.

    Args:
        store: where rows of a stream are looked up, and kept if they are not there.

    Raises:
        DataError: there are none.
    """
    if faults := files_faults([file for files in config.files.values() for file in listed(files)], config.column_names):
        raise DataError(faults)
    source = config if config.mix is None else config.mix[0]
    files = config.validation_file if validation and config.validation_file is not None else source.train_file
    if files is None:
        return _first_of_hub(config, source, validation, store)
    try:
        rows = read_first_rows(listed(files), config.column_names, FIRST_ROWS)
    except (Unreadable, OSError):
        rows = []
    if not rows:  # says what is wrong with them
        return read_files(listed(files), column_names=config.column_names, on_bad_row=config.on_bad_row)
    return FileRows(listed(files)[0], rows, [], None, list(dict.fromkeys(name for row in rows for name in row)))


def _first_of_hub(
    config: DatasetConfig, source: DatasetConfig | MixSource, validation: bool, store: SourceStore | None
) -> FileRows:
    assert source.path is not None
    split, option = source.train_split, "dataset.train_split"
    if validation and config.validation_split is not None:
        split, option = config.validation_split, "dataset.validation_split"
    where = HubSplit(source.path, split, option, source.subset, source.revision, source.data_files)
    if config.streaming:
        return stream_hub(where, FIRST_ROWS, buffer=0, seed=0, store=store)
    hub = read_hub(where)
    known = {column for name in ROW_FORMATS.names() for column in _all_columns(ROW_FORMATS[name])}
    wanted = [column for column in hub.columns if column in known or column in config.columns.values()]
    rows = hub.take(range(min(FIRST_ROWS, len(hub))), wanted)
    return FileRows(hub.name, rows, [], None, hub.columns)


def _formats(task: str) -> list[str]:
    """The formats that serve a task, the more specific ones first."""
    serving = [name for name in ROW_FORMATS.names() if task in ROW_FORMATS[name].tasks]
    return sorted(serving, key=lambda name: -ROW_FORMATS[name].precedence)


def _all_columns(row_format: type[RowFormat]) -> list[str]:
    return [*row_format.columns, *row_format.optional]


def _open_options(name: str, config: DatasetConfig, rows: Sequence[Row]) -> dict[str, str]:
    """The options of a format that the user does not give."""
    options: dict[str, str] = ROW_FORMATS[name].options(rows)
    return {option: value for option, value in options.items() if getattr(config, option) is None}


def _needed(name: str, config: DatasetConfig, rows: Sequence[Row]) -> list[str]:
    """The columns of a format that rows have to have: those that only an option of the user's reads are not needed."""
    row_format = ROW_FORMATS[name]
    given = [option for option in row_format.options(rows) if getattr(config, option) is not None]
    replaced = {column for option in given for column in _columns_of(row_format.options(rows), option)}
    still = {
        column
        for option in _open_options(name, config, rows)
        for column in _columns_of(row_format.options(rows), option)
    }
    return [column for column in row_format.columns if column not in replaced or column in still]


def _columns_of(options: Mapping[str, str], option: str) -> list[str]:
    return Template(options[option]).columns if option in TEMPLATES else [options[option]]


def _fits(name: str, config: DatasetConfig, rows: Sequence[Row]) -> bool:
    """Whether most rows are of a format: some of them may be malformed."""
    if any(getattr(config, option) is not None for option in _row_options(config) - set(ROW_FORMATS[name].fields)):
        return False
    needed = _needed(name, config, rows)
    fitting = sum(ROW_FORMATS[name].fits(row, needed) for row in rows)
    return bool(needed) and 2 * fitting > len(rows)


def _row_options(config: DatasetConfig) -> set[str]:
    return {
        option for option in ("prompt", "answer", "messages", "text", "text_pair", "label") if getattr(config, option)
    }


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    gone = set(columns.values())
    return {name: value for name, value in row.items() if name not in gone} | {
        new: row[old] for new, old in columns.items() if old in row
    }


def _renamed_names(source: FileRows, config: DatasetConfig) -> list[str]:
    gone = set(config.columns.values())
    return [*(name for name in source.columns if name not in gone), *config.columns]


def _with_optional_columns(config: DatasetConfig, task: str) -> tuple[DatasetConfig, list[str]]:
    """The data set whose templates leave out what belongs to a column that a row of its format may lack.

    Templates of the user's that insert all columns of a format are for rows of it.
    """
    given = {option: getattr(config, option) for option in TEMPLATES if getattr(config, option) is not None}
    try:
        inserted = {column for text in given.values() for column in Template(text).columns}
        names = _formats(task) if config.format == AUTO and config.form is None else []
        found = [
            name for name in names if ROW_FORMATS[name].optional and inserted >= {*_all_columns(ROW_FORMATS[name])}
        ]
        name = found[0] if found else config.format
        optional = ROW_FORMATS[name].optional if name != AUTO else ()
        changed = {option: with_sections(text, optional) for option, text in given.items()}
    except TemplateError:
        return config, []  # reported with everything else that is wrong with templates
    changed = {option: text for option, text in changed.items() if text != given[option]}
    if not changed:
        return config, []
    left_out = ", ".join(f"{{{column}}}" for column in optional if column in inserted)
    options = " and ".join(f"dataset.{option}" for option in changed)
    note = f"format {name}: the paragraph of {left_out} in {options} is left out of rows without a value"
    return config.model_copy(update={"format": name, **changed}), [note]


def _described(
    name: str, config: DatasetConfig, chosen: DatasetConfig, columns: Sequence[str], others: Sequence[str]
) -> str:
    """The line that says how rows are read."""
    row_format = ROW_FORMATS[name]
    given = [f"dataset.{option}" for option in row_format.fields if getattr(config, option) is not None]
    values = {option: getattr(chosen, option) for option in row_format.fields if getattr(chosen, option) is not None}
    read = {column for option in values for column in _columns_or_none(values, option)}
    read = set(row_format.source_columns(read))
    line = f"format {name} (columns {', '.join(column for column in columns if column in read)}"
    unread = [column for column in columns if column not in read]
    line += f"; not read: {_some(unread)})" if unread else ")"
    line += f", with your {' and '.join(given)}" if given else ""
    if others:
        line += f"; {' and '.join(others)} would fit too, and the more specific format is taken (dataset.format=NAME)"
    return line


def _columns_or_none(options: Mapping[str, Any], option: str) -> list[str]:
    try:
        return _columns_of(options, option) if option in (*TEMPLATES, *COLUMNS) else []
    except TemplateError:
        return []


def _not_recognized(
    source: str, config: DatasetConfig, task: str, columns: Sequence[str], rows: Sequence[Row]
) -> Fault:
    names = _formats(task)
    known = "; ".join(f"{name} ({_shown_columns(ROW_FORMATS[name])})" for name in names)
    share, nearest, renames = max(
        ((_share(renames), name, renames) for name in names if (renames := _renames(ROW_FORMATS[name], columns))),
        key=lambda item: item[0],
    )
    what = f"the columns of {source} ({_some(columns)}) are those of no row format for model.task={task}: {known}"
    if all(new == old for new, old in renames.items()):
        held = next(
            f"column {column!r} holds {_kind(row.get(column))}, not {kind.name}"
            for row in rows
            for column, kind in ROW_FORMATS[nearest].columns.items()
            if not kind.fits(row.get(column))
        )
        hint = f"dataset.format={nearest} names every row that does not fit"
        return Fault("dataset.format", f"{source} is not of the format {nearest}, whose columns it has: {held}", hint)
    changed = ", ".join(f"{new}: {old or 'COLUMN'}" for new, old in renames.items() if new != old)
    near = f"the nearest is {nearest}: dataset.columns={{{changed}}}" if share else "dataset.columns={new: old} renames"
    hint = f"{near}; or say how a row is read: {ways_to_read(task)}"
    return Fault("dataset.format", what, hint)


def _renames(row_format: type[RowFormat], columns: Sequence[str]) -> dict[str, str | None]:
    """The columns of a format with the column that is likely meant; None where there is none."""
    found: dict[str, str | None] = {column: column for column in row_format.columns if column in columns}
    for column in row_format.columns:
        if column not in found:
            free = {name.lower(): name for name in columns if name not in found.values()}
            named = [free[alias] for alias in (column, *row_format.aliases.get(column, ())) if alias in free]
            near = difflib.get_close_matches(column, free, 1, 0.75)
            found[column] = next(iter(named), free[near[0]] if near else None)
    return {column: found[column] for column in row_format.columns}


def _share(renames: Mapping[str, str | None]) -> float:
    """The share of a format's columns that are there, under their name or a similar one."""
    return sum(old is not None for old in renames.values()) / len(renames)


def _shown_columns(row_format: type[RowFormat]) -> str:
    return ", ".join([*row_format.columns, *(f"perhaps {column}" for column in row_format.optional)])


def _some(names: Iterable[str], shown: int = 12) -> str:
    listed_names = list(names)
    return ", ".join(listed_names[:shown]) + (", …" if len(listed_names) > shown else "")


def _kind(value: object) -> str:
    names = {str: "a text", list: "a list", dict: "an object", type(None): "null", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")
