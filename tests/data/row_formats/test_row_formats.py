"""What is learned of rows in each format: the file as it is found elsewhere, and the texts as the model sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data import load_data
from lora_ga_cli.data.load import load_file_split
from lora_ga_cli.data.split import Data, Split
from lora_ga_cli.errors import DataError

Jsonl = Callable[..., str]
USER = {"role": "user", "content": "1+2?"}
ASSISTANT = {"role": "assistant", "content": "3"}
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n"
    "### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nSay hi.\n\n### Response:\n"
)


def load(tokenizer: Any, file: str, task: str = "causal_lm", **options: Any) -> Data:
    config = DatasetConfig(train_file=file, shuffle=False, **options)
    return load_data(config, task=task, tokenizer=tokenizer, seed=0, splits=("train",))  # type: ignore[arg-type]


def train_of(data: Data) -> Split:
    assert data.train is not None
    return data.train


def pairs(data: Data) -> list[tuple[str, str]]:
    rows = train_of(data).rows
    return list(zip(rows["prompt"], rows["reference"], strict=True))


def learned(tokenizer: Any, data: Data, row: int = 0) -> str:
    """The text of the tokens that have a loss."""
    return str(tokenizer.decode([label for label in train_of(data).rows[row]["labels"] if label != -100]))


def test_prompt_and_answer(tokenizer: Any, jsonl: Jsonl) -> None:
    data = load(tokenizer, jsonl("d.jsonl", [{"prompt": "1+2=", "answer": 3}]))
    assert pairs(data) == [("1+2=", "3")]
    assert data.notes == ["format prompt_answer (columns prompt, answer)"]


@pytest.mark.parametrize("empty", [{}, {"input": None}, {"input": ""}, {"input": "  "}])
def test_alpaca_has_a_prompt_without_input_for_rows_without_one(
    tokenizer: Any, jsonl: Jsonl, empty: dict[str, Any]
) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Say hi.", "output": "hi", **empty},
    ]
    data = load(tokenizer, jsonl("d.jsonl", rows))
    assert pairs(data) == [(WITH_INPUT, "3"), (WITHOUT_INPUT, "hi")]
    assert data.notes == ["format alpaca (columns instruction, input, output)"]


def test_alpaca_needs_no_column_for_inputs(ended: Any, jsonl: Jsonl) -> None:
    data = load(ended, jsonl("d.jsonl", [{"instruction": "Say hi.", "output": "hi"}]), "seq2seq_lm")
    assert pairs(data) == [(WITHOUT_INPUT, "hi")]


def test_messages(chatty: Any, jsonl: Jsonl) -> None:
    data = load(chatty, jsonl("d.jsonl", [{"messages": [USER, ASSISTANT], "id": 7}]))
    assert learned(chatty, data) == "3<|end|>"
    assert data.notes == ["format messages (columns messages; not read: id)"]


def test_sharegpt(chatty: Any, jsonl: Jsonl) -> None:
    turns = [{"from": "human", "value": "1+2?"}, {"from": "gpt", "value": "3"}]
    data = load(chatty, jsonl("d.jsonl", [{"conversations": turns}]))
    assert learned(chatty, data) == "3<|end|>"
    assert data.notes[0] == "format sharegpt (columns conversations)"


def test_prompt_and_completion_as_texts(tokenizer: Any, jsonl: Jsonl) -> None:
    data = load(tokenizer, jsonl("d.jsonl", [{"prompt": "1+2=", "completion": "3"}]))
    assert pairs(data) == [("1+2=", "3")]
    assert data.notes == ["format prompt_completion (columns prompt, completion)"]


def test_prompt_and_completion_as_messages_learn_only_the_completion(chatty: Any, jsonl: Jsonl) -> None:
    greeting = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    rows = [{"prompt": [*greeting, USER], "completion": [ASSISTANT]}]
    data = load(chatty, jsonl("d.jsonl", rows))
    assert learned(chatty, data) == "3<|end|>"
    assert "Hello." in chatty.decode(train_of(data).rows[0]["input_ids"])


def test_text_is_learned_completely_with_its_end(tokenizer: Any, jsonl: Jsonl) -> None:
    data = load(tokenizer, jsonl("d.jsonl", [{"text": "1+2=3"}]))
    row = train_of(data).rows[0]
    assert tokenizer.decode(row["input_ids"]) == "<s>1+2=3</s>"
    assert row["labels"] == row["input_ids"]
    assert (row["prompt_length"], row["reference"]) == (1, "1+2=3")


def test_an_empty_text_is_malformed(tokenizer: Any, jsonl: Jsonl) -> None:
    data = load(tokenizer, jsonl("d.jsonl", [{"text": "a"}, {"text": " "}]), on_bad_row="skip")
    assert train_of(data).skipped == {"malformed": 1}


def test_text_and_label_are_for_a_classifier(paired: Any, jsonl: Jsonl) -> None:
    rows = [{"text": "good", "label": "pos"}, {"text": "bad", "label": "neg"}]
    data = load(paired, jsonl("d.jsonl", rows), "sequence_classification")
    assert train_of(data).rows["labels"][:] == [1, 0]
    assert data.notes == [
        "format text_label (columns text, label)",
        "2 classes: 0 neg, 1 pos (found in column label; dataset.label_names orders)",
    ]


@pytest.mark.parametrize("column", ["conversations", "messages", "dialog"])
def test_the_choice_for_conversations_recognizes_them(column: str, jsonl: Jsonl, loraga: Callable[..., str]) -> None:
    """A column with another name is named by an option."""
    turns = [{"from": "human", "value": "1+2?"}, {"from": "gpt", "value": "3"}]
    file = jsonl("d.jsonl", [{column: turns}] * 2)
    named = ["dataset.messages=dialog"] if column == "dialog" else []
    out = loraga("train", "model=tiny", "dataset=chat", f"dataset.train_file={file}", *named, "--preview")
    assert "row 1" in out


CONVERSATIONS = {"prompt": [USER], "completion": [ASSISTANT]}


def test_one_malformed_row_does_not_decide_whether_prompts_are_messages(chatty: Any, jsonl: Jsonl) -> None:
    rows = [{"prompt": None, "completion": [ASSISTANT]}, CONVERSATIONS, CONVERSATIONS]
    data = load(chatty, jsonl("d.jsonl", rows), on_bad_row="skip")
    assert learned(chatty, data) == "3<|end|>"
    assert train_of(data).skipped == {"malformed": 1}


def test_a_text_among_messages_is_named_by_its_column(chatty: Any, jsonl: Jsonl) -> None:
    file = jsonl("d.jsonl", [CONVERSATIONS, CONVERSATIONS, {"prompt": "1+2?", "completion": "3"}])
    with pytest.raises(DataError, match=r"d.jsonl:3.*column 'prompt' holds no list of messages, as the other rows do"):
        load(chatty, file)


@pytest.mark.parametrize("option", ["keep", "extract"])
def test_patterns_are_for_texts_and_not_for_messages(chatty: Any, jsonl: Jsonl, option: str) -> None:
    file = jsonl("d.jsonl", [CONVERSATIONS])
    options: dict[str, Any] = {option: {"prompt": "(a)"}}
    with pytest.raises(DataError, match=rf"dataset.{option}.prompt: the column holds lists of messages"):
        load(chatty, file, **options)


def test_a_source_may_lack_a_renamed_column_that_is_optional(tokenizer: Any, jsonl: Jsonl) -> None:
    rows = [{"instruction": "Add.", "context": "1 and 2", "output": "3"}]
    other = jsonl("v.jsonl", [{"instruction": "Say hi.", "output": "hi"}])
    config = DatasetConfig(train_file=jsonl("d.jsonl", rows), columns={"input": "context"}, validation_file=other)
    data = load_data(config, task="causal_lm", tokenizer=tokenizer, seed=0)
    assert pairs(data) == [(WITH_INPUT, "3")]
    assert data.validation is not None
    assert data.validation.rows["prompt"][:] == [WITHOUT_INPUT]
    split = load_file_split(config, other, task="causal_lm", tokenizer=tokenizer)
    assert split.rows["prompt"][:] == [WITHOUT_INPUT]


def test_a_renamed_column_that_comes_after_the_first_rows_is_read(tokenizer: Any, jsonl: Jsonl) -> None:
    rows = [*[{"instruction": "Say hi.", "output": "hi"}] * 60, {"instruction": "Add.", "it": "1 and 2", "output": "3"}]
    assert pairs(load(tokenizer, jsonl("d.jsonl", rows), columns={"input": "it"}))[60] == (WITH_INPUT, "3")


def test_a_renamed_column_that_no_row_has_is_a_fault(tokenizer: Any, jsonl: Jsonl) -> None:
    file = jsonl("d.jsonl", [{"instruction": "Say hi.", "output": "hi"}])
    with pytest.raises(DataError, match=r"dataset.columns.input: .* has no column 'contxt'"):
        load(tokenizer, file, columns={"input": "contxt"})
