"""Which form the rows of a data set have: the options that are given select it, or ``dataset.form`` names it.

The forms are the classes of `registry.EXAMPLES`; `data.examples.base.Form` says what each states about itself. Where no
option says how a row is read, the rows themselves do: `data.recognize` finds their row format, a class of
`registry.ROW_FORMATS`, which gives the options.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lora_ga_cli.errors import Fault, InvalidInput, suggest
from lora_ga_cli.registry import EXAMPLES, ROW_FORMATS

ROW_OPTIONS = (
    "prompt",
    "answer",
    "text",
    "text_pair",
    "messages",
    "tools",
    "learn_turns",
    "chat_template",
    "label",
    "label_names",
)
"""The options of `dataset` that say how a row is read."""


AUTO = "auto"
"""The value of ``dataset.format`` with which the format is recognized."""


def is_complete(dataset: Any) -> bool:
    """Whether the options say how a row is read, so that no row format has to."""
    return bool(_selected(dataset))


def ways_to_read(task: str) -> str:
    """The options that say how a row is read for a task, for people."""
    return _listed(name for name in EXAMPLES.names() if task in EXAMPLES[name].tasks)


def forms_for(task: str) -> list[Any]:
    """The classes of the forms that serve a task and that options select."""
    return [EXAMPLES[name] for name in EXAMPLES.names() if task in EXAMPLES[name].tasks and EXAMPLES[name].required]


def forms_of(dataset: Any) -> list[Any]:
    """The classes of the forms that the options of a data set select, whatever the task."""
    return [EXAMPLES[name] for name in _selected(dataset)]


def row_form(dataset: Any, task: str) -> Any:
    """The class of the form that a data set's rows have for a task.

    Raises:
        InvalidInput: there is none, or more than one.
    """
    problems = [*form_problems(dataset), *task_problems(dataset, task)]
    if not problems and not is_complete(dataset):
        problems = [f"say how a row is read: {ways_to_read(task)}"]
    if problems:
        raise InvalidInput([Fault("configuration", problem) for problem in problems])
    (form,) = _serving(dataset, task)
    return EXAMPLES[form]


def form_problems(dataset: Any) -> list[str]:
    """What is wrong with the options that say how a row is read, whatever the task."""
    if dataset.form is not None and EXAMPLES.find(dataset.form) is None:
        return [f"dataset.form={dataset.form} is no form of a row ({EXAMPLES.hint_for(dataset.form)})"]
    if dataset.format != AUTO and (format_problems := [*_of_format(dataset)]):
        return format_problems
    if not is_complete(dataset):
        return [*_unused(dataset, [])]
    forms = _selected(dataset)
    selections = {_selection(name) for name in forms}
    if dataset.form is None and len(selections) != 1:
        given = ", ".join(sorted({" and ".join(EXAMPLES[name].required) for name in forms})) or "none"
        return [f"say how a row is read: {_listed(EXAMPLES.names())}, exactly one (given: {given})"]
    problems = [*_missing(dataset, forms), *_unused(dataset, forms)]
    # forms that the same options select may have rules in common
    return [*problems, *dict.fromkeys(problem for name in forms for problem in EXAMPLES[name].problems(dataset))]


def task_problems(dataset: Any, task: str) -> Iterator[str]:
    """What is wrong with the form of a data set without `form_problems`, for a task."""
    if not is_complete(dataset):
        if dataset.format != AUTO and task not in ROW_FORMATS[dataset.format].tasks:
            serving = [name for name in ROW_FORMATS.names() if task in ROW_FORMATS[name].tasks]
            yield f"dataset.format={dataset.format} is not for model.task={task}: {', '.join(serving)}"
        return
    forms = _serving(dataset, task)
    if not forms:
        yield f"model.task={task} wants {ways_to_read(task)}; the dataset has another form"
    elif len(forms) > 1:
        yield f"rows can be read in the forms {' and '.join(forms)}: say which by dataset.form"


def _selected(dataset: Any) -> list[str]:
    """The forms that the given options select, whatever the task. One that needs more of them wins over one that needs
    a part of these."""
    if dataset.form is not None:
        return [dataset.form]
    given = [
        name
        for name in EXAMPLES.names()
        if EXAMPLES[name].required and all(getattr(dataset, option) is not None for option in EXAMPLES[name].required)
    ]
    needs = {name: frozenset(EXAMPLES[name].required) for name in given}
    return [name for name in given if not any(needs[name] < needs[other] for other in given)]


def _serving(dataset: Any, task: str) -> list[str]:
    return [name for name in _selected(dataset) if task in EXAMPLES[name].tasks]


def _selection(name: str) -> str:
    """What a person gives to select a form."""
    return _named(EXAMPLES[name].required) or f"dataset.form={name}"


def _listed(forms: Iterable[str]) -> str:
    return ", or ".join(dict.fromkeys(_selection(name) for name in forms))


def _named(options: Iterable[str]) -> str:
    return " and ".join(f"dataset.{option}" for option in options)


def _of_format(dataset: Any) -> Iterator[str]:
    """What is wrong with the named format, and with options that it does not go with."""
    given = f"dataset.format={dataset.format}"
    row_format = ROW_FORMATS.find(dataset.format)
    if row_format is None:
        yield f"{given} is no row format ({ROW_FORMATS.hint_for(dataset.format)})"
        return
    if dataset.form is not None:
        yield f"{given} and dataset.form={dataset.form} both say how a row is read: give one"
    for option in ROW_OPTIONS:
        if getattr(dataset, option) is not None and option not in (*row_format.fields, "label_names"):
            yield f"dataset.{option} is not read with {given}: dataset.{option}=null"


def _missing(dataset: Any, forms: list[str]) -> Iterator[str]:
    for name in forms:
        if missing := [option for option in EXAMPLES[name].required if getattr(dataset, option) is None]:
            yield f"dataset.form={name} needs {_named(missing)}"


def _unused(dataset: Any, forms: list[str]) -> Iterator[str]:
    """Options that are given, and that the form does not read: a mistake, which would else go unnoticed."""
    if not forms:
        yield from (f"dataset.options.{option} is for a form of a row: dataset.form" for option in dataset.options)
        return
    used = {option for name in forms for option in (*EXAMPLES[name].required, *EXAMPLES[name].optional)}
    selection = f"dataset.form={dataset.form}" if dataset.form is not None else _selection(forms[0])
    for option in ROW_OPTIONS:
        if getattr(dataset, option) is not None and option not in used:
            yield f"dataset.{option} is not read with {selection}: dataset.{option}=null"
    extra = {option for name in forms for option in EXAMPLES[name].extra_options}
    for option in dataset.options:
        if option not in extra:
            hint = suggest(option, sorted(extra)) if extra else "it has none"
            yield f"dataset.options.{option} is not read with {selection} ({hint})"
