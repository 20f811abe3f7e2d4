"""Conversations as rows of a data set: one may become several examples, and what is counted are rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data import Data, load_data
from lora_ga_cli.data.store import RowStore
from lora_ga_cli.errors import DataError
from tests.data.chat_templates import FAMILIES

Write = Callable[..., str]


def say(*turns: str) -> list[dict[str, str]]:
    return [dict(zip(("role", "content"), turn.split(":", 1), strict=True)) for turn in turns]


ONE = say("user:1+1", "assistant:2")
TWO = say("user:1+1", "assistant:2", "user:2+2", "assistant:4")
LONG = say("user:1+1", "assistant:2", f"user:{'long ' * 60}", "assistant:4")


@pytest.fixture
def forgetful() -> Any:
    return FAMILIES["forgets reasoning"].tokenizer()


def load(tokenizer: Any, file: str, store: RowStore | None = None, **options: Any) -> Data:
    config = DatasetConfig(**{"train_file": file, "messages": "messages", "shuffle": False, **options})
    return load_data(config, task="causal_lm", tokenizer=tokenizer, seed=1, splits=("train",), store=store)


@pytest.fixture
def mixed(jsonl: Write) -> str:
    return jsonl("d.jsonl", [{"messages": messages} for messages in (ONE, TWO, ONE, TWO)])


def test_a_row_becomes_several_examples_and_this_is_said(forgetful: Any, mixed: str) -> None:
    split = load(forgetful, mixed).train
    assert split is not None
    assert list(split.rows["reference"]) == ["2", "2", "4", "2", "2", "4"]
    assert split.summary().startswith("train: 6 examples of 4 rows, ")
    assert list(split.notes) == [
        "2 rows trained turn by turn, as several examples: the chat template writes earlier turns differently "
        f"(first: {mixed}:2)"
    ]


def test_max_rows_counts_rows(forgetful: Any, mixed: str) -> None:
    split = load(forgetful, mixed, max_rows=2).train
    assert split is not None
    assert list(split.rows["reference"]) == ["2", "2", "4"]
    assert split.read_rows == 2


def test_stored_rows_say_the_same(forgetful: Any, mixed: str, tmp_path: Path) -> None:
    store = RowStore(tmp_path / "store")
    made, stored = (load(forgetful, mixed, store).train for _ in range(2))
    assert made is not None
    assert stored is not None
    assert stored.reused
    assert stored.summary() == f"{made.summary()}; tokenized before"
    assert list(stored.notes) == list(made.notes)


class TestARowOfWhichOneExampleIsTooLong:
    """Its second turn has a long question, its first one is short."""

    @pytest.fixture
    def file(self, jsonl: Write) -> str:
        return jsonl("d.jsonl", [{"messages": messages} for messages in (LONG, ONE)])

    def test_is_reported_once(self, forgetful: Any, file: str) -> None:
        with pytest.raises(DataError) as error:
            load(forgetful, file, max_length=64)
        (fault,) = error.value.faults
        assert str(fault).startswith(f"{file}:1: ")

    def test_is_skipped_as_a_whole(self, forgetful: Any, file: str) -> None:
        split = load(forgetful, file, max_length=64, on_long_row="skip").train
        assert split is not None
        assert list(split.rows["reference"]) == ["2"]
        assert split.skipped == {"longer than 64 tokens": 1}

    def test_keeps_the_examples_that_have_something_to_learn_when_truncated(self, forgetful: Any, file: str) -> None:
        split = load(forgetful, file, max_length=64, on_long_row="truncate").train
        assert split is not None
        assert list(split.rows["reference"]) == ["2", "2"]
        assert split.truncated == 1
        assert f"1 example left out of rows that are kept: no token left to learn from (first: {file}:1)" in split.notes


class TestTools:
    TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}  # noqa: RUF012
    TEMPLATE = (
        "{{ tools | map(attribute='function.name') | join(',') if tools else 'none' }};"
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )

    def test_the_column_is_read_where_there_is_one(self, make_tokenizer: Callable[..., Any], jsonl: Write) -> None:
        file = jsonl("d.jsonl", [{"messages": ONE, "tools": [self.TOOL]}, {"messages": ONE}])
        split = load(make_tokenizer(chat=self.TEMPLATE), file).train
        assert split is not None
        assert [prompt.split(";")[0] for prompt in split.rows["prompt"]] == ["add", "none"]

    def test_another_column_is_named(self, make_tokenizer: Callable[..., Any], jsonl: Write) -> None:
        file = jsonl("d.jsonl", [{"messages": ONE, "functions": [self.TOOL]}])
        split = load(make_tokenizer(chat=self.TEMPLATE), file, tools="functions").train
        assert split is not None
        assert split.rows["prompt"][0].startswith("add;")

    def test_a_named_column_has_to_be_there(self, chatty: Any, jsonl: Write) -> None:
        with pytest.raises(DataError, match=r"dataset.tools: .* has no column 'functions'"):
            load(chatty, jsonl("d.jsonl", [{"messages": ONE}]), tools="functions")


def test_the_text_of_a_users_template_decides_the_rows_and_not_its_path(
    chatty: Any, mixed: str, write: Write, tmp_path: Path
) -> None:
    store, template = RowStore(tmp_path / "store"), FAMILIES["llama 2"].template
    one, other = write("one.jinja", template), write("other.jinja", template)
    changed = write("changed.jinja", template.replace("[INST]", "[ASK]"))
    splits = [load(chatty, mixed, store, chat_template=file).train for file in (one, other, changed)]
    assert [split is not None and split.reused for split in splits] == [False, True, False]
    assert splits[2] is not None
    assert splits[2].rows["prompt"][0].startswith("<s>[ASK]")


class TestATokenThatTheEmbeddingLacks:
    def test_is_named_with_its_row(self, forgetful: Any, mixed: str) -> None:
        number = forgetful.convert_tokens_to_ids("<|im_end|>")
        config = DatasetConfig(train_file=mixed, messages="messages", shuffle=False)
        with pytest.raises(DataError) as error:
            load_data(config, task="causal_lm", tokenizer=forgetful, seed=1, splits=("train",), vocabulary=number)
        assert str(error.value) == (
            f"model.tokenizer: the tokenizer's token '<|im_end|>' has number {number}, and the model's embedding "
            f"{number} rows (numbers 0 to {number - 1}); {mixed}:1 holds it (take the tokenizer that the model was "
            "trained with)"
        )

    def test_is_found_in_the_labels_of_an_encoder_decoder(self, ended: Any, jsonl: Write) -> None:
        config = DatasetConfig(train_file=jsonl("d.jsonl", [{"p": "a", "a": "z"}]), prompt="{p}", answer="{a}")
        number = ended.convert_tokens_to_ids("z")
        with pytest.raises(DataError, match="the tokenizer's token 'z'"):
            load_data(config, task="seq2seq_lm", tokenizer=ended, seed=1, splits=("train",), vocabulary=number)

    def test_no_token_is_missing_in_an_embedding_that_is_large_enough(self, forgetful: Any, mixed: str) -> None:
        config = DatasetConfig(train_file=mixed, messages="messages")
        data = load_data(
            config, task="causal_lm", tokenizer=forgetful, seed=1, splits=("train",), vocabulary=len(forgetful)
        )
        assert data.train is not None
