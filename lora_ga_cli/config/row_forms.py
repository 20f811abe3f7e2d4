"""Which form the rows of a data set have: the options that are given select it, or ``dataset.form`` names it.

The forms are the classes of `registry.EXAMPLES`; `data.examples.base.Form` says what each states about itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lora_ga_cli.errors import Fault, InvalidInput, suggest
from lora_ga_cli.registry import EXAMPLES

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


def row_form(dataset: Any, task: str) -> Any:
    """The class of the form that a data set's rows have for a task.

    Raises:
        InvalidInput: there is none, or more than one.
    """
    if problems := [*form_problems(dataset), *task_problems(dataset, task)]:
        raise InvalidInput([Fault("configuration", problem) for problem in problems])
    (form,) = _serving(dataset, task)
    return EXAMPLES[form]


def form_problems(dataset: Any) -> list[str]:
    """What is wrong with the options that say how a row is read, whatever the task."""
    if dataset.form is not None and EXAMPLES.find(dataset.form) is None:
        return [f"dataset.form={dataset.form} is no form of a row ({EXAMPLES.hint_for(dataset.form)})"]
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
    forms = _serving(dataset, task)
    if not forms:
        serving = [name for name in EXAMPLES.names() if task in EXAMPLES[name].tasks]
        yield f"model.task={task} wants {_listed(serving)}; the dataset has another form"
    elif len(forms) > 1:
        yield f"rows can be read in the forms {' and '.join(forms)}: say which by dataset.form"


def _selected(dataset: Any) -> list[str]:
    """The forms that the given options select, whatever the task."""
    if dataset.form is not None:
        return [dataset.form]
    return [
        name
        for name in EXAMPLES.names()
        if EXAMPLES[name].required and all(getattr(dataset, option) is not None for option in EXAMPLES[name].required)
    ]


def _serving(dataset: Any, task: str) -> list[str]:
    return [name for name in _selected(dataset) if task in EXAMPLES[name].tasks]


def _selection(name: str) -> str:
    """What a person gives to select a form."""
    return _named(EXAMPLES[name].required) or f"dataset.form={name}"


def _listed(forms: Iterable[str]) -> str:
    return ", or ".join(dict.fromkeys(_selection(name) for name in forms))


def _named(options: Iterable[str]) -> str:
    return " and ".join(f"dataset.{option}" for option in options)


def _missing(dataset: Any, forms: list[str]) -> Iterator[str]:
    for name in forms:
        if missing := [option for option in EXAMPLES[name].required if getattr(dataset, option) is None]:
            yield f"dataset.form={name} needs {_named(missing)}"


def _unused(dataset: Any, forms: list[str]) -> Iterator[str]:
    """Options that are given, and that the form does not read: a mistake, which would else go unnoticed."""
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
