"""A form of a row is one file: a user's own is trained on and scored, and nothing else is changed for it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_ga_cli.registry import CODE_VARIABLE, EXAMPLES
from tests.helpers import Arguments, Loraga, only_run, points

FILE = Path(__file__).with_name("toy_form.py")
FORM = ["dataset.form=joined_lines", "dataset.prompt=null", "dataset.answer=null"]


@pytest.fixture(autouse=True)
def code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Names the file as a process does that starts another one. Afterwards the form is not registered any more."""
    shipped = {name: EXAMPLES[name] for name in EXAMPLES.names()}
    monkeypatch.setenv(CODE_VARIABLE, str(FILE))
    yield
    EXAMPLES._classes = shipped
    sys.modules.pop(f"loraga_code_{FILE.stem}", None)


@pytest.fixture
def lines_file(tmp_path: Path) -> Path:
    rows = [{"question": [f"{a} and {b}?", "sum:"], "reply": [str(a), str(a + b)]} for a in range(10) for b in range(6)]
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def command(arguments: Arguments, lines_file: Path) -> Callable[..., list[str]]:
    return lambda *overrides: arguments("llama", f"dataset.train_file={lines_file}", *FORM, *overrides)


def test_it_is_trained_on_and_scored(loraga: Loraga, command: Arguments) -> None:
    loraga("train", *command("dataset.options.separator=' / '"))
    losses = [point["loss"] for point in points(only_run()) if "loss" in point]
    assert losses
    assert losses[-1] < losses[0]
    loraga("eval", str(only_run()), "eval.metrics=[loss,exact_match]", "eval.answer_pattern='(.+)'")
    values = json.loads((only_run() / "eval.json").read_text())["values"]
    assert math.isfinite(values["loss"])


def test_its_options_reach_it(loraga: Loraga, command: Arguments) -> None:
    shown = loraga("train", *command("dataset.options.separator=' / '", "dataset.shuffle=false"), "--preview")
    assert "0 and 0? / sum: / ⟦0 / 0⟧" in shown


def test_an_option_that_it_does_not_have_is_refused(loraga: Loraga, command: Arguments) -> None:
    refused = loraga("train", *command("dataset.options.seperator=x"), code=2)
    assert "dataset.options.seperator is not read with dataset.form=joined_lines (did you mean separator?)" in refused


def test_an_option_of_another_form_is_refused(loraga: Loraga, command: Arguments) -> None:
    refused = loraga("train", *command("dataset.messages=question"), code=2)
    assert "dataset.messages is not read with dataset.form=joined_lines: dataset.messages=null" in refused


def test_it_serves_its_own_task_only(loraga: Loraga, lines_file: Path, arguments: Arguments) -> None:
    refused = loraga("train", *arguments("t5", f"dataset.train_file={lines_file}", *FORM), code=2)
    assert "model.task=seq2seq_lm wants dataset.prompt and dataset.answer; the dataset has another form" in refused


def test_a_row_that_it_cannot_read_is_named_by_its_line(loraga: Loraga, command: Arguments, lines_file: Path) -> None:
    with lines_file.open("a") as file:
        file.write('{"question": "one line", "reply": ["x"]}\n')
    assert "lines.jsonl:61: column 'question' holds no list of lines" in loraga("train", *command(), code=2)


def test_it_is_listed_where_no_form_is_chosen(loraga: Loraga, command: Arguments) -> None:
    listed = loraga("train", *command("dataset.form=null"), code=2)
    assert "dataset.form=joined_lines" in listed
    misspelled = loraga("train", *command("dataset.form=joined_line"), code=2)
    assert "dataset.form=joined_line is no form of a row (did you mean joined_lines?)" in misspelled
