"""Which format is recognized, and what is said where none is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from lora_ga_cli.config.row_forms import form_problems
from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data import recognize
from lora_ga_cli.data.hub import HubRows
from lora_ga_cli.data.recognize import with_row_format
from lora_ga_cli.errors import DataError
from lora_ga_cli.registry import ROW_FORMATS

Jsonl = Callable[..., str]
ALPACA = {"instruction": "Add.", "input": "1 and 2", "output": "3"}


def settings(file: str, **options: Any) -> DatasetConfig:
    return DatasetConfig(train_file=file, **options)


def fault_of(config: DatasetConfig, task: str = "causal_lm") -> str:
    with pytest.raises(DataError) as error:
        with_row_format(config, task)
    (fault,) = error.value.faults
    return str(fault)


def test_rows_of_two_formats_have_the_more_specific_one_and_a_line_says_so(jsonl: Jsonl) -> None:
    config, (note,) = with_row_format(settings(jsonl("d.jsonl", [ALPACA | {"text": "all of it"}])), "causal_lm")
    assert config.format == "alpaca"
    assert note == (
        "format alpaca (columns instruction, input, output; not read: text); text would fit too, and the more specific "
        "format is taken (dataset.format=NAME)"
    )


def test_a_format_is_forced_by_name(jsonl: Jsonl) -> None:
    file = jsonl("d.jsonl", [ALPACA | {"text": "all of it"}])
    config, _ = with_row_format(settings(file, format="text"), "causal_lm")
    assert (config.text, config.prompt) == ("{text}", None)


def test_what_was_found_is_read_without_looking_at_the_rows_again(jsonl: Jsonl) -> None:
    file = jsonl("d.jsonl", [ALPACA])
    found, _ = with_row_format(settings(file), "causal_lm")
    Path(file).unlink()
    assert with_row_format(found, "causal_lm") == (found, [])


def test_options_that_are_given_count_before_those_of_the_format(jsonl: Jsonl) -> None:
    config, (note, *_) = with_row_format(settings(jsonl("d.jsonl", [ALPACA]), answer="{output}!"), "causal_lm")
    assert (config.format, config.answer) == ("alpaca", "{output}!")
    assert note == "format alpaca (columns instruction, input, output), with your dataset.answer"


def test_a_column_that_only_a_given_template_reads_is_not_needed(jsonl: Jsonl) -> None:
    file = jsonl("d.jsonl", [{"question": "1+2?", "answer": "3"}])
    config, _ = with_row_format(settings(file, prompt="Q: {question}\nA: "), "causal_lm")
    assert (config.format, config.prompt, config.answer) == ("prompt_answer", "Q: {question}\nA: ", "{answer}")


def test_templates_with_the_columns_of_a_format_serve_rows_without_its_optional_ones() -> None:
    given = {"prompt": "### Task:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n", "answer": "{output}"}
    config, (note,) = with_row_format(settings("never_read.jsonl", **given), "causal_lm")
    assert config.prompt == "### Task:\n{instruction}\n\n{?input}### Input:\n{input}\n\n{/input}### Response:\n"
    assert note == "format alpaca: the paragraph of {input} in dataset.prompt is left out of rows without a value"


def test_complete_options_without_optional_columns_stay_as_they_are() -> None:
    config = settings("never_read.jsonl", prompt="{question}", answer="{answer}")
    assert with_row_format(config, "causal_lm") == (config, [])


def test_columns_are_renamed_before(jsonl: Jsonl) -> None:
    file = jsonl("d.jsonl", [{"question": "1+2?", "response": "3"}])
    assert fault_of(settings(file)).endswith(
        "(the nearest is prompt_answer: dataset.columns={prompt: question, answer: response}; "
        "or say how a row is read: dataset.messages, or dataset.text, or dataset.prompt and dataset.answer)"
    )
    config, _ = with_row_format(settings(file, columns={"prompt": "question", "answer": "response"}), "causal_lm")
    assert config.format == "prompt_answer"


def test_unknown_columns_are_listed_with_those_of_every_format(jsonl: Jsonl) -> None:
    fault = fault_of(settings(jsonl("d.jsonl", [{"foo": 1, "bar": 2}])))
    assert fault.startswith("dataset.format: the columns of ")
    assert "(foo, bar) are those of no row format for model.task=causal_lm: messages (messages); sharegpt" in fault
    assert "alpaca (instruction, output, perhaps input)" in fault
    assert "(dataset.columns={new: old} renames; or say how" in fault


def test_columns_that_hold_something_else_are_no_format(jsonl: Jsonl) -> None:
    fault = fault_of(settings(jsonl("d.jsonl", [{"instruction": "Add.", "output": ["3"]}])))
    assert "is not of the format alpaca, whose columns it has: column 'output' holds a list, not a text" in fault
    assert "(dataset.format=alpaca names every row that does not fit)" in fault


def test_a_few_malformed_rows_do_not_hide_the_format(jsonl: Jsonl) -> None:
    rows = [{"prompt": None, "answer": "3"}, "not an object", *[{"prompt": "1+2=", "answer": "3"}] * 3]
    assert with_row_format(settings(jsonl("d.jsonl", rows)), "causal_lm")[0].format == "prompt_answer"


def test_a_format_serves_certain_tasks(jsonl: Jsonl) -> None:
    file = jsonl("d.jsonl", [{"text": "good", "label": "pos"}])
    assert with_row_format(settings(file), "causal_lm")[0].format == "text"
    assert with_row_format(settings(file), "sequence_classification")[0].format == "text_label"
    assert "for model.task=seq2seq_lm: prompt_completion" in fault_of(settings(file), "seq2seq_lm")


def test_rows_of_the_hub_are_recognized_too(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = HubRows(datasets.Dataset.from_dict({name: [value] for name, value in ALPACA.items()}), "org/set (train)")
    monkeypatch.setattr(recognize, "read_hub", lambda *_, **__: rows)
    config, (note,) = with_row_format(DatasetConfig(path="org/set"), "causal_lm")
    assert (config.format, note) == ("alpaca", "format alpaca (columns instruction, input, output)")


def test_files_that_cannot_be_read_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        with_row_format(settings(str(tmp_path / "a.jsonl"), validation_file=str(tmp_path / "b.doc")), "causal_lm")
    assert ["no such file" in str(fault) or "no reader" in str(fault) for fault in error.value.faults] == [True, True]


def test_no_two_formats_have_the_same_precedence() -> None:
    names = ROW_FORMATS.names()
    assert len({ROW_FORMATS[name].precedence for name in names}) == len(names)


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        (
            {"text": "a"},
            {"prompt": "{text}"},
            "dataset.prompt: {file} is of the format text, and dataset.prompt is not ",
        ),
        ({"text": "a", "label": "b"}, {"label": "label"}, "(give dataset.prompt and dataset.answer too, or leave dat"),
        ({"text": "a"}, {"prompt": "{text}"}, "(give dataset.answer too, or leave dataset.prompt out)"),
    ],
)
def test_an_option_that_needs_another_one_names_it(
    row: dict[str, Any], options: dict[str, Any], said: str, jsonl: Jsonl
) -> None:
    file = jsonl("d.jsonl", [row])
    assert said.replace("{file}", file) in fault_of(settings(file, **options))


def test_a_renamed_column_may_come_after_the_first_rows(jsonl: Jsonl) -> None:
    rows = [*[{"instruction": "Say hi.", "output": "hi"}] * 60, ALPACA | {"context": "1 and 2"}]
    file = jsonl("d.jsonl", [{key: value for key, value in row.items() if key != "input"} for row in rows])
    config, _ = with_row_format(settings(file, columns={"input": "context"}), "causal_lm")
    assert config.format == "alpaca"


def test_a_wrong_old_name_is_named_where_no_format_fits(jsonl: Jsonl) -> None:
    file = jsonl("d.jsonl", [{"question": "1+2?", "answer": "3"}])
    assert "has no column 'qestion'" in fault_of(settings(file, columns={"prompt": "qestion"}))


def test_templates_with_the_columns_of_a_format_go_with_a_label() -> None:
    templates = {"prompt": "{instruction}\n\n### Input:\n{input}\n\n", "answer": "{output}", "label": "category"}
    config, _ = with_row_format(settings("never_read.jsonl", **templates), "causal_lm")
    assert config.format == "alpaca"
    assert not [*form_problems(config)]


def test_columns_that_are_read_where_there_are_any_are_not_called_unread(jsonl: Jsonl) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    _, (note,) = with_row_format(settings(jsonl("d.jsonl", [{"messages": messages, "tools": []}])), "causal_lm")
    assert note == "format messages (columns messages, tools)"


def test_conversations_are_for_causal_models(jsonl: Jsonl) -> None:
    turn = {"role": "user", "content": "a"}
    file = jsonl("d.jsonl", [{"prompt": [turn], "completion": [turn]}])
    fault = fault_of(settings(file), "seq2seq_lm")
    assert "holds lists of messages (format prompt_completion), which are for model.task=causal_lm" in fault


def test_an_unread_column_of_a_more_specific_format_has_a_line(jsonl: Jsonl) -> None:
    file = jsonl("d.jsonl", [{"prompt": "1+2=", "text": "3"}])
    config, notes = with_row_format(settings(file), "causal_lm")
    assert config.format == "text"
    assert notes[1].startswith("column prompt is not read, and is one of the columns of prompt_completion (prompt, com")
    assert len(with_row_format(settings(file, format="text"), "causal_lm")[1]) == 1


@pytest.mark.parametrize("options", [{}, {"format": "prompt_completion"}])
def test_rated_completions_are_not_all_learned(options: dict[str, Any], jsonl: Jsonl) -> None:
    file = jsonl("d.jsonl", [{"prompt": "1+2=", "completion": "4", "label": False}])
    assert 'dataset.keep={label: "True"} learns the good ones' in fault_of(settings(file, **options))
    kept, _ = with_row_format(settings(file, keep={"label": "True"}, **options), "causal_lm")
    assert kept.format == "prompt_completion"


def mixed(*files: str) -> DatasetConfig:
    return DatasetConfig(mix=[{"train_file": file} for file in files])  # type: ignore[misc]


def test_a_mixture_has_a_format_that_all_its_sources_fit(jsonl: Jsonl) -> None:
    both = jsonl("a.jsonl", [ALPACA | {"text": "all of it"}])
    config, _ = with_row_format(mixed(both, jsonl("b.jsonl", [{"text": "one"}])), "causal_lm")
    assert config.format == "text"


def test_sources_of_different_formats_are_named(jsonl: Jsonl) -> None:
    files = jsonl("a.jsonl", [ALPACA]), jsonl("b.jsonl", [{"text": "one"}])
    said = f"dataset.mix: its sources are of different formats: {files[0]} of alpaca, {files[1]} of text"
    assert fault_of(mixed(*files)).startswith(said)
    assert f"the columns of {files[1]} (foo)" in fault_of(mixed(files[0], jsonl("b.jsonl", [{"foo": "one"}])))


@pytest.mark.parametrize(
    ("header", "has_names"),
    [
        ("1,2", False),
        ("where are you,yes", False),
        ("-1.5,no", False),
        ("Frage,Antwort", True),
        ("first name,x1", True),
    ],
)
def test_a_header_that_looks_like_a_row_is_answered_with_how_to_name_columns(
    tmp_path: Path, header: str, has_names: bool
) -> None:
    file = tmp_path / "d.csv"
    file.write_text(f"{header}\nwhat is this,no\n")
    said = "if its first line is a row and no header: dataset.column_names=[column1, column2]"
    assert (said not in fault_of(settings(str(file)))) == has_names


def test_names_that_look_like_data_are_those_of_a_file_with_names(jsonl: Jsonl) -> None:
    assert "column_names" not in fault_of(settings(jsonl("d.jsonl", [{"What is your name?": "x", "1": "y"}])))
