"""Chats: loss on the assistant's turns, found by rendering prefixes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lora_ga_cli.config.row_forms import row_form
from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data.examples.base import Form
from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.errors import DataError
from tests.data.examples import learned_tokens, make_form, one_example, tokens

CONFIG = DatasetConfig(train_file="d.jsonl", messages="m")


def chat_form(tokenizer: Any) -> Form:
    return make_form(CONFIG, "causal_lm", tokenizer)


def say(*turns: str) -> dict[str, Any]:
    """A row from ``user:text`` turns."""
    return {"m": [dict(zip(("role", "content"), turn.split(":", 1), strict=True)) for turn in turns]}


def test_each_turn_of_the_assistant_is_learned(chatty: Any) -> None:
    row = say("system:s", "user:a", "assistant:bc", "user:d", "assistant:e")
    example = one_example(chat_form(chatty), row)
    assert tokens(chatty, example) == (
        "<s> <|system|> s <|end|> <|user|> a <|end|> <|assistant|> b c <|end|> "
        "<|user|> d <|end|> <|assistant|> e <|end|>"
    )
    assert learned_tokens(chatty, example) == ". . . . . . . . b c <|end|> . . . . e <|end|>"
    assert example.row["prompt_length"] == 15
    assert example.row["prompt"].endswith("bc<|end|><|user|>d<|end|><|assistant|>")
    assert example.row["reference"] == "e"


def test_what_follows_the_last_answer_is_left_out(chatty: Any) -> None:
    example = one_example(chat_form(chatty), say("user:a", "assistant:b", "user:thanks"))
    assert tokens(chatty, example) == "<s> <|user|> a <|end|> <|assistant|> b <|end|>"


def test_the_prompts_tokens_are_those_of_generation_even_where_characters_merge(
    make_tokenizer: Callable[..., Any],
) -> None:
    """The template ends the prompt with a line end, the answer begins with one, and the tokenizer would join them."""
    template = (
        "{% for m in messages %}{{ m.role[0] }}\n{{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}a\n{% endif %}"
    )
    tokenizer = make_tokenizer(chat=template, merges=[("Ċ", "Ċ")])
    example = one_example(chat_form(tokenizer), say("user:q", "assistant:\nx", "user:r", "assistant:y"))
    assert tokens(tokenizer, example) == "u Ċ q ; a Ċ Ċ x ; u Ċ r ; a Ċ y ;"
    assert learned_tokens(tokenizer, example) == ". . . . . . Ċ x ; . . . . . . y ;"


def test_a_truncated_row_is_prompted_for_the_last_answer_that_has_a_token_left(chatty: Any) -> None:
    form = chat_form(chatty)
    example = one_example(form, say("user:a", "assistant:bc", "user:d", "assistant:e"))
    truncated = form.truncate(example, 10)
    assert learned_tokens(chatty, truncated) == ". . . . . b c <|end|> . ."
    assert (truncated.row["prompt_length"], truncated.row["reference"]) == (5, "bc")
    assert form.learns(truncated)
    assert not form.learns(form.truncate(example, 5))


def test_a_template_that_rewrites_earlier_messages_is_refused(make_tokenizer: Callable[..., Any]) -> None:
    """As templates do that drop the reasoning of earlier turns."""
    template = (
        "{% for m in messages %}{{ m.role }}:"
        "{% if m.role == 'assistant' and loop.last %}<think>{% endif %}{{ m.content }};"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    form = chat_form(make_tokenizer(chat=template))
    assert one_example(form, say("user:a", "assistant:b"))
    with pytest.raises(DataError) as error:
        one_example(form, say("user:a", "assistant:b", "user:c", "assistant:d"))
    assert "writes earlier messages differently once a message follows" in str(error.value)
    assert "'<think>b;' becomes 'b;user:c;assistant:'" in str(error.value)
    assert "keep one assistant turn a row" in str(error.value)


def test_the_template_may_use_other_keys_of_a_message(make_tokenizer: Callable[..., Any], chatty: Any) -> None:
    tokenizer = make_tokenizer(chat=chatty.chat_template.replace("<|{{ m.role }}|>", "<|{{ m.role }}|>{{ m.name }}"))
    row = {"m": [{"role": "user", "content": "a", "name": "N"}, {"role": "assistant", "content": "b", "name": None}]}
    example = one_example(chat_form(tokenizer), row)
    assert tokens(tokenizer, example) == "<s> <|user|> N a <|end|> <|assistant|> b <|end|>"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "column 'm' holds null, not a list of messages"),
        ("hi", "column 'm' holds a str, not a list of messages"),
        ([], "column 'm' holds an empty list, not a list of messages"),
        (["hi"], "message 1 is a str, not an object with role and content"),
        ([{"from": "human", "value": "a"}], "message 1 has no 'role' (it has: from, value)"),
        ([{"role": "user"}], "message 1 has no 'content' (it has: role)"),
        ([{"role": "user", "content": None}], "message 1 has null as its content, not a text"),
        ([{"role": 1, "content": "a"}], "message 1 has a value of type int as its role, not a text"),
        ([{"role": "asistant", "content": "a"}], "message 1 has the unknown role 'asistant' (did you mean assistant?)"),
        ([{"role": "user", "content": "\ud800"}], "column 'content' holds half of a surrogate pair, which no text has"),
        ([{"role": "user", "content": "a"}], "no message of the assistant in column 'm', so nothing to learn"),
        ([{"role": "assistant", "content": "a"}], "message 1 is the assistant's, and nothing was said before it"),
    ],
)
def test_malformed_messages_are_a_bad_row(chatty: Any, messages: object, reason: str) -> None:
    with pytest.raises(BadRow) as error:
        chat_form(chatty).read({"m": messages})
    assert str(error.value) == reason


def test_messages_that_the_template_refuses_are_a_bad_row(make_tokenizer: Callable[..., Any], chatty: Any) -> None:
    refuses = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + chatty.chat_template
    )
    with pytest.raises(BadRow, match="the chat template refuses these messages: no system role"):
        chat_form(make_tokenizer(chat=refuses)).read(say("system:s", "user:a", "assistant:b"))


def test_a_tokenizer_without_template_is_named_with_the_ways_out(tokenizer: Any) -> None:
    (fault,) = row_form(CONFIG, "causal_lm").faults(CONFIG, tokenizer)
    assert str(fault) == (
        "dataset.messages: the tokenizer has no chat template (take a chat model, or its tokenizer by "
        "model.tokenizer=NAME, or give dataset.prompt and dataset.answer)"
    )
