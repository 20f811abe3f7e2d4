"""Which form the rows of a data set have."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lora_ga_cli.config.row_forms import row_form, task_problems
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
        ({}, r"how a row is read: dataset.messages, or .*, exactly one \(given: none\)"),
        ({"prompt": "{q}"}, r"exactly one \(given: none\)"),
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
        (TEXT, "causal_lm", "dataset.messages, or dataset.prompt and dataset.answer"),
        (MESSAGES, "seq2seq_lm", "dataset.prompt and dataset.answer"),
        (PROMPT, "sequence_classification", "dataset.text and dataset.label"),
        (PROMPT | {"form": "text_to_text"}, "causal_lm", "dataset.messages, or dataset.prompt and dataset.answer"),
    ],
)
def test_a_form_that_does_not_serve_the_task_is_refused(options: dict[str, Any], task: str, wanted: str) -> None:
    message = f"model.task={task} wants {wanted}; the dataset has another form"
    assert [*task_problems(dataset(**options), task)] == [message]
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
