"""Conversations in the spellings that people have, and what of them cannot be read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.data.messages import read_conversation

SAID = [{"role": "user", "content": "1+2?"}, {"role": "assistant", "content": "3"}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}


@pytest.mark.parametrize(
    "messages",
    [
        SAID,
        json.dumps(SAID),
        [{"from": "human", "value": "1+2?"}, {"from": "gpt", "value": "3"}],
        [{"from": "user", "value": "1+2?"}, {"from": "assistant", "value": "3"}],
        [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in SAID],
        [SAID[0], {"role": "assistant", "content": [{"type": "text", "text": ""}, {"type": "text", "text": "3"}]}],
        [{**message, "name": None, "tool_calls": None, "weight": None} for message in SAID],
    ],
    ids=["OpenAI", "JSON text", "ShareGPT", "from and value with OpenAI's roles", "parts", "two parts", "nulls"],
)
def test_one_conversation_in_every_spelling(messages: object) -> None:
    conversation = read_conversation(messages, "m")
    assert conversation.messages == SAID
    assert conversation.learned == [False, True]
    assert conversation.tools is None


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "3"}],
        [{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "3"}],
        [
            {"from": "function_call", "value": json.dumps(CALL["function"])},
            {"from": "observation", "value": "3"},
        ],
        [
            {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1, "b": 2}'}},
            {"role": "function", "content": "3"},
        ],
        [
            {
                "role": "assistant",
                "tool_calls": [{**CALL, "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}],
            },
            {"role": "tool", "content": "3"},
        ],
    ],
    ids=["content null", "no content", "ShareGPT", "OpenAI's functions", "arguments as a text"],
)
def test_one_call_of_a_tool_in_every_spelling(messages: list[dict[str, Any]]) -> None:
    conversation = read_conversation([SAID[0], *messages, SAID[1]], "m")
    assert conversation.messages == [
        SAID[0],
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "3"},
        SAID[1],
    ]


@pytest.mark.parametrize(
    ("marks", "learned"),
    [
        ({"weight": 0}, False),
        ({"weight": 1}, True),
        ({"train": False}, False),
        ({"train": True}, True),
        ({"weight": None}, True),
        ({}, True),
        ({"weight": 1, "train": False}, False),
    ],
)
def test_a_message_says_whether_it_is_learned(marks: dict[str, object], learned: bool) -> None:
    conversation = read_conversation([SAID[0], {**SAID[1], **marks}], "m")
    assert conversation.learned == [False, learned]
    assert conversation.messages == SAID


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("tools", "read"),
    [
        ([TOOL], [TOOL]),
        (json.dumps([TOOL]), [TOOL]),
        ([TOOL["function"]], [TOOL]),
        ([{**TOOL, "function": {**TOOL["function"], "strict": None}}], [TOOL]),  # type: ignore[dict-item]
        ([], None),
        ("", None),
        ("[]", None),
        (None, None),
    ],
)
def test_tools_are_a_list_or_its_json_text(tools: object, read: object) -> None:
    assert read_conversation(SAID, "m", tools).tools == read


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "column 'm' holds null, not a list of messages"),
        ("hi", "column 'm' holds a text that is no JSON list, not a list of messages"),
        ([], "column 'm' holds an empty list, not a list of messages"),
        (["hi"], "message 1 is a str, not an object with role and content"),
        ([{"a": "b"}], "message 1 has no 'role' (it has: a)"),
        ([{"role": None, "content": "a"}], "message 1 has null as its role, not a text"),
        ([{"role": "user"}], "message 1 has no 'content' (it has: role)"),
        ([{"from": "human"}], "message 1 has no 'value' (it has: from)"),
        ([{"role": "user", "content": None}], "message 1 has null as its content, not a text"),
        ([{"role": "user", "content": None, "tool_calls": [CALL]}], "message 1 has null as its content, not a text"),
        ([SAID[0], {"role": "assistant", "content": None}], "message 2 has null as its content, not a text"),
        ([{"role": 1, "content": "a"}], "message 1 has a value of type int as its role, not a text"),
        ([{"role": "user", "content": 3}], "message 1 has a value of type int as its content, not a text"),
        ([{"role": "asistant", "content": "a"}], "message 1 has the unknown role 'asistant' (did you mean assistant?)"),
        ([{"role": "user", "content": "\ud800"}], "column 'content' holds half of a surrogate pair, which no text has"),
        ([SAID[0]], "no message of the assistant in column 'm', so nothing to learn"),
        ([SAID[1]], "message 1 is the assistant's, and nothing was said before it"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "message 1 has a part of type 'image_url', and only parts of type 'text' are read",
        ),
        ([{"role": "user", "content": ["a"]}], "message 1 has a part that is a str, not an object with type and text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 1 has a part of type 'text' without a text"),
        (
            [SAID[0], {**SAID[1], "weight": 0.5}],
            "message 2 has 'weight': 0.5, and only 0 and 1 (or false and true) are read",
        ),
        (
            [{**SAID[0], "train": True}, SAID[1]],
            "message 1 has 'train': True, and only messages of the assistant are learned",
        ),
        (
            [SAID[0], {**SAID[1], "train_detail": []}],
            "message 2 has 'train_detail', which is not read: parts of a message cannot be left out of the loss",
        ),
        (
            [SAID[0], {"from": "function_call", "value": "add(1, 2)"}],
            "message 2 has calls of tools that are not a list of objects",
        ),
        (
            [SAID[0], {"role": "assistant", "tool_calls": [{"type": "function"}]}],
            "message 2 has a call of a tool without the name of a function",
        ),
    ],
)
def test_malformed_messages_are_a_bad_row(messages: object, reason: str) -> None:
    with pytest.raises(BadRow) as error:
        read_conversation(messages, "m")
    assert str(error.value) == reason


def test_tools_that_are_no_list_are_a_bad_row() -> None:
    with pytest.raises(BadRow, match="column 'functions' holds a text that is no JSON list, not a list of tools"):
        read_conversation(SAID, "m", "add", "functions")
