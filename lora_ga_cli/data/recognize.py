"""Which format the rows of a data set have: recognized by the columns and by what the first rows hold in them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_ga_cli.config.row_forms import ROW_OPTIONS, forms_for, forms_of, is_complete, task_problems, ways_to_read
from lora_ga_cli.data.formats import Unreadable
from lora_ga_cli.data.hub import HubSplit, read_hub, stream_hub
from lora_ga_cli.data.local import files_faults, listed, read_files, read_first_rows
from lora_ga_cli.data.row_formats.base import RowFormat
from lora_ga_cli.data.source import FileRows, Row, headerless_hint, renames_faults
from lora_ga_cli.data.source_store import SourceStore
from lora_ga_cli.data.template import Template, TemplateError, with_sections
from lora_ga_cli.errors import DataError, Fault
from lora_ga_cli.registry import ROW_FORMATS

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import DatasetConfig, MixSource
    from lora_ga_cli.data.examples.base import Form

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
    own_source = config.validation_file is not None or config.validation_split is not None
    count = 1 if config.mix is None or (validation and own_source) else len(config.mix)
    sources = [first_rows(config, part, validation=validation, store=store) for part in range(count)]
    rows_of = [[_renamed(row, config.columns) for row in source.rows] for source in sources]
    rows = [row for some in rows_of for row in some]
    names = [name for source in sources for name in _renamed_names(source, config)]
    columns = list(dict.fromkeys([*(name for row in rows for name in row), *names]))
    if config.format != AUTO:
        name, others = config.format, list[str]()
    else:
        name, *others = _common_formats(sources, rows_of, config, task)
    refused = [ROW_FORMATS[name].refused(some, config.keep) for some in rows_of]
    if any(refused):
        raise DataError([Fault(source.name, what) for source, what in zip(sources, refused, strict=True) if what])
    chosen = config.model_copy(update={"format": name, **_open_options(name, config, rows)})
    chosen, notes = _with_optional_columns(chosen, task)
    if chosen.messages is not None and any(task_problems(chosen, task)):
        what = f"{sources[0].name} holds lists of messages (format {name}), which are for model.task=causal_lm"
        raise DataError([Fault("model.task", what, f"model=causal_lm, or give {ways_to_read(task)}")])
    unread = [column for column in columns if column not in _read_columns(name, chosen)]
    if config.format == AUTO:
        notes = [*notes, *_unread_of_others(name, task, unread)]
    return chosen, [
        _described(name, config, [column for column in columns if column not in unread], unread, others),
        *notes,
    ]


def _common_formats(
    sources: Sequence[FileRows], rows_of: Sequence[Sequence[Row]], config: DatasetConfig, task: str
) -> list[str]:
    """The formats that the rows of all sources fit, the more specific ones first.

    Raises:
        DataError: there are none.
    """
    fitting = []
    for source, rows in zip(sources, rows_of, strict=True):
        columns = list(dict.fromkeys([*(name for row in rows for name in row), *_renamed_names(source, config)]))
        fitting.append([name for name in _formats(task) if columns and _fits(name, config, rows)])
        if not fitting[-1]:
            # a wrong old name may be the reason
            raise DataError(
                renames_faults(source, config.columns) or [_not_recognized(source.name, config, task, columns, rows)]
            )
    common = [name for name in fitting[0] if all(name in names for names in fitting)]
    if not common:
        found = ", ".join(f"{source.name} of {names[0]}" for source, names in zip(sources, fitting, strict=True))
        hint = "write the rows of all sources in one format, or train on the sources one after another"
        raise DataError([Fault("dataset.mix", f"its sources are of different formats: {found}", hint)])
    return common


def format_of_rows(config: DatasetConfig) -> type[RowFormat] | None:
    """The format that was recognized or named; None where other options say how a row is read."""
    return None if config.format == AUTO else ROW_FORMATS[config.format]


def first_rows(
    config: DatasetConfig, part: int = 0, *, validation: bool = False, store: SourceStore | None = None
) -> FileRows:
    """The first rows of a data set that can be read.

    Args:
        part: the number of the source, of several ones.
        store: where rows of a stream are looked up, and kept if they are not there.

    Raises:
        DataError: there are none.
    """
    if faults := files_faults([file for files in config.files.values() for file in listed(files)], config.column_names):
        raise DataError(faults)
    source = config if config.mix is None else config.mix[part]
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
            name
            for name in names
            if ROW_FORMATS[name].optional
            and inserted >= {*_all_columns(ROW_FORMATS[name])}
            and _row_options(config) <= set(ROW_FORMATS[name].fields)
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
    name: str, config: DatasetConfig, read: Sequence[str], unread: Sequence[str], others: Sequence[str]
) -> str:
    """The line that says how rows are read."""
    given = [f"dataset.{option}" for option in ROW_FORMATS[name].fields if getattr(config, option) is not None]
    line = f"format {name} (columns {', '.join(read)}"
    line += f"; not read: {_some(unread)})" if unread else ")"
    line += f", with your {' and '.join(given)}" if given else ""
    if others:
        line += f"; {' and '.join(others)} would fit too, and the more specific format is taken (dataset.format=NAME)"
    return line


def _read_columns(name: str, chosen: DatasetConfig) -> set[str]:
    """The columns that are read, those that rows may lack included."""
    given = {option: getattr(chosen, option) for option in (*TEMPLATES, *COLUMNS)}
    given = {option: value for option, value in given.items() if value is not None}
    read = {column for option in given for column in _columns_or_none(given, option)}
    if_present = {column for form in forms_of(chosen) for column in form.columns_if_present(chosen)}
    return {*ROW_FORMATS[name].source_columns(read), *if_present}


def _unread_of_others(name: str, task: str, unread: Sequence[str]) -> list[str]:
    """Lines about columns that are not read and that a more specific format has, whose other columns are missing."""
    lines = []
    for column in unread:
        others = [other for other in _formats(task) if column in ROW_FORMATS[other].columns]
        others = [other for other in others if ROW_FORMATS[other].precedence > ROW_FORMATS[name].precedence]
        if others:
            formats = " and ".join(f"{other} ({_shown_columns(ROW_FORMATS[other])})" for other in others)
            lines.append(
                f"column {column} is not read, and is one of the columns of {formats}: dataset.columns={{new: old}} "
                f"names the others, dataset.format={name} says that this is right"
            )
    return lines


def _columns_or_none(options: Mapping[str, Any], option: str) -> list[str]:
    try:
        return _columns_of(options, option)
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
            (
                f"column {column!r} holds {_kind(row.get(column))}, not {kind.name}"
                for row in rows
                for column, kind in ROW_FORMATS[nearest].columns.items()
                if not kind.fits(row.get(column))
            ),
            None,
        )
        if held is None:
            return _incomplete(source, config, nearest, task)
        hint = f"dataset.format={nearest} names every row that does not fit"
        return Fault("dataset.format", f"{source} is not of the format {nearest}, whose columns it has: {held}", hint)
    if share == 0 and (hint := headerless_hint(source, columns)):
        return Fault("dataset.format", what, hint)
    changed = ", ".join(f"{new}: {old or 'COLUMN'}" for new, old in renames.items() if new != old)
    near = f"the nearest is {nearest}: dataset.columns={{{changed}}}" if share else "dataset.columns={new: old} renames"
    hint = f"{near}; or say how a row is read: {ways_to_read(task)}"
    return Fault("dataset.format", what, hint)


def _incomplete(source: str, config: DatasetConfig, fitting: str, task: str) -> Fault:
    """Rows fit a format, and options are given that do not go with it."""
    given = [option for option in ROW_OPTIONS if option in _row_options(config)]
    options = " and ".join(f"dataset.{option}" for option in given)
    what = f"{source} is of the format {fitting}, and {options} {'are' if len(given) > 1 else 'is'} not read with it"
    ways = [missing for form in forms_for(task) if (missing := _missing(form, given)) is not None]
    wanted = ", or ".join(" and ".join(f"dataset.{option}" for option in missing) for missing in ways)
    hint = f"leave {options} out"
    return Fault(f"dataset.{given[0]}", what, f"give {wanted} too, or {hint}" if wanted else hint)


def _missing(form: type[Form], given: Sequence[str]) -> list[str] | None:
    """The options that a form needs besides those that are given; None where it does not read these."""
    if not {*given} <= {*form.required, *form.optional}:
        return None
    return [option for option in form.required if option not in given]


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
