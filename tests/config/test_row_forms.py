"""Which form the rows of a data set have."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lora_ga_cli.config.row_forms import is_complete, row_form, task_problems
from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data.examples.base import Form
from lora_ga_cli.errors import InvalidInput
from lora_ga_cli.registry import EXAMPLES

PROMPT = {"prompt": "{q}", "answer": "{a}"}
MESSAGES = {"messages": "m"}
TEXT = {"text": "{t}", "label": "y"}


def dataset(**options: Any) -> DatasetConfig:
    return DatasetConfig(train_file="rows.jsonl", **options)


@pytest.mark.parametrize(
    ("options", "task", "name"),
    [
        (PROMPT, "causal_lm", "prompt_answer"),
        (PROMPT, "seq2seq_lm", "text_to_text"),
        (PROMPT | {"label": "y", "label_names": ["no", "yes"]}, "causal_lm", "prompt_answer"),
        (MESSAGES, "causal_lm", "chat"),
        ({"text": "{t}"}, "causal_lm", "plain_text"),
        (TEXT, "sequence_classification", "classification"),
        (TEXT | {"text_pair": "{u}"}, "sequence_classification", "classification"),
    ],
)
def test_the_given_options_and_the_task_select_a_form(options: dict[str, Any], task: str, name: str) -> None:
    assert row_form(dataset(**options), task) is EXAMPLES[name]
    assert row_form(dataset(**options, form=name), task) is EXAMPLES[name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"options": {"x": 1}}, "dataset.options.x is for a form of a row: dataset.form"),
        ({"format": "alpacca"}, r"dataset.format=alpacca is no row format \(did you mean alpaca\?\)"),
        ({"format": "alpaca", "form": "chat"}, "dataset.format=alpaca and dataset.form=chat both say"),
        (
            MESSAGES | {"format": "alpaca"},
            "dataset.messages is not read with dataset.format=alpaca: dataset.messages=null",
        ),
        (PROMPT | MESSAGES, r"exactly one \(given: messages, prompt and answer\)"),
        (PROMPT | {"text_pair": "{u}"}, "dataset.text_pair is not read with dataset.prompt and dataset.answer: "),
        (MESSAGES | {"label": "y"}, "dataset.label is not read with dataset.messages: dataset.label=null"),
        (PROMPT | {"tools": "t"}, "dataset.tools is not read with dataset.prompt and dataset.answer: "),
        (PROMPT | {"learn_turns": "last"}, "dataset.learn_turns is not read with dataset.prompt and dataset.answer: "),
        (PROMPT | {"chat_template": "t.jinja"}, "dataset.chat_template is not read with dataset.prompt and "),
        (PROMPT | {"options": {"x": 1}}, r"dataset.options.x is not read with dataset.prompt .*\(it has none\)"),
        (PROMPT | {"form": "chat"}, "dataset.form=chat needs dataset.messages"),
        (PROMPT | {"form": "chatt"}, r"dataset.form=chatt is no form of a row \(did you mean chat\?\)"),
    ],
)
def test_options_that_select_no_form_or_do_not_belong_to_it_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        dataset(**options)


@pytest.mark.parametrize(
    ("options", "task", "wanted"),
    [
        (TEXT, "causal_lm", "dataset.messages, or dataset.text, or dataset.prompt and dataset.answer"),
        (MESSAGES, "seq2seq_lm", "dataset.prompt and dataset.answer"),
        (PROMPT, "sequence_classification", "dataset.text and dataset.label"),
        (PROMPT | {"form": "text_to_text"}, "causal_lm", "dataset.messages, or dataset.text, or dataset.prompt and"),
    ],
)
def test_a_form_that_does_not_serve_the_task_is_refused(options: dict[str, Any], task: str, wanted: str) -> None:
    message = f"model.task={task} wants {wanted}"
    (problem,) = task_problems(dataset(**options), task)
    assert problem.startswith(message)
    assert problem.endswith("; the dataset has another form")
    with pytest.raises(InvalidInput, match=message):
        row_form(dataset(**options), task)


def test_two_forms_with_the_same_options_are_told_apart_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reversed(EXAMPLES["prompt_answer"]):  # type: ignore[misc]
        pass

    monkeypatch.setattr(EXAMPLES, "_classes", {**EXAMPLES._classes, "reversed": Reversed})
    (problem,) = task_problems(dataset(**PROMPT), "causal_lm")
    assert problem == "rows can be read in the forms prompt_answer and reversed: say which by dataset.form"
    assert row_form(dataset(**PROMPT, form="reversed"), "causal_lm") is Reversed
    assert issubclass(Reversed, Form)


@pytest.mark.parametrize("options", [{}, {"prompt": "{q}"}, {"label": "y"}, {"format": "alpaca"}])
def test_options_that_select_no_form_leave_it_to_the_rows(options: dict[str, Any]) -> None:
    assert not is_complete(dataset(**options))
    assert [*task_problems(dataset(**options), "causal_lm")] == []
    with pytest.raises(InvalidInput, match=r"say how a row is read: dataset\.messages, or dataset\.text"):
        row_form(dataset(**options), "causal_lm")


def test_a_named_format_has_to_serve_the_task() -> None:
    (problem,) = task_problems(dataset(format="messages"), "seq2seq_lm")
    assert (
        problem == "dataset.format=messages is not for model.task=seq2seq_lm: alpaca, prompt_answer, prompt_completion"
    )
