"""Conversations as people store them, read into one form: a list of messages with ``role`` and ``content``.

Read are OpenAI's messages (``role``, ``content``, ``tool_calls``), those of ShareGPT (``from``, ``value``), and a JSON
text of either. What a message says about its loss (``weight``, ``train``) is kept apart from what a template sees.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.data.template import as_text
from lora_ga_cli.errors import suggest

Message = dict[str, Any]
ROLES = ("system", "developer", "user", "tool", "assistant")
ASSISTANT = "assistant"
OTHER_ROLES = {
    "human": "user",
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "model": ASSISTANT,
    "function_call": ASSISTANT,
    "observation": "tool",
    "function_response": "tool",
    "function": "tool",
}
"""Names of roles in ShareGPT's files, and in OpenAI's before it had tools."""
CALLS = "tool_calls"
LEARNED = ("weight", "train")
"""Keys of a message that say whether it is learned: 0 or 1 (OpenAI, Mistral), false or true (axolotl)."""
UNREAD = {"train_detail": "parts of a message cannot be left out of the loss"}
"""Keys that other programs read and that would change what is learned, with the reason why they are refused."""


@dataclass(frozen=True)
class Conversation:
    """The messages of a row.

    Args:
        messages: each with a ``role`` of `ROLES` and a ``content``, which is a text; it is absent where an assistant
            only calls tools. Other keys are those of the row.
        learned: for every message, whether it is learned. Only the assistant's are.
        tools: descriptions of the tools that the assistant may call.
    """

    messages: list[Message]
    learned: list[bool]
    tools: list[dict[str, Any]] | None = None

    @property
    def roles(self) -> list[str]:
        return [message["role"] for message in self.messages]


def read_conversation(messages: object, column: str, tools: object = None, tools_column: str = "tools") -> Conversation:
    """The conversation of a row.

    Args:
        messages: the value of ``column``.
        tools: the value of ``tools_column``; null, an empty text and an empty list mean that there are none.

    Raises:
        BadRow: a message that cannot be read, no message of the assistant, or one before anything was said.
    """
    given = _decoded(messages)
    if not isinstance(given, list) or not given:
        raise BadRow(f"column {column!r} holds {_described_list(given)}, not a list of messages")
    read = [_read(message, number) for number, message in enumerate(given, start=1)]
    conversation = Conversation(
        [message for message, _ in read], [learned for _, learned in read], _tools(tools, tools_column)
    )
    if ASSISTANT not in conversation.roles:
        raise BadRow(f"no message of the assistant in column {column!r}, so nothing to learn")
    if conversation.roles[0] == ASSISTANT:
        raise BadRow("message 1 is the assistant's, and nothing was said before it")
    return conversation


def _read(given: object, number: int) -> tuple[Message, bool]:
    """A message, and whether it is learned."""
    if not isinstance(given, Mapping):
        raise BadRow(f"message {number} is a {type(given).__name__}, not an object with role and content")
    # in a table, null means absent
    message = {str(key): value for key, value in given.items() if value is not None}
    for key, reason in UNREAD.items():
        if key in message:
            raise BadRow(f"message {number} has {key!r}, which is not read: {reason}")
    said = _role(message, given, number)
    role = OTHER_ROLES.get(said, said)
    learned = _learned(message, role, number)
    read: Message = {"role": role}
    content = message.pop("content") if "content" in message else message.pop("value", None)
    if said == "function_call":
        read[CALLS] = _calls(_decoded(content), number)
    else:
        if calls := message.pop(CALLS, None):
            read[CALLS] = _calls(calls, number)
        elif "function_call" in message and role == ASSISTANT:
            read[CALLS] = _calls([message.pop("function_call")], number)
        if content is not None:
            read["content"] = _content(content, number)
        elif CALLS not in read or role != ASSISTANT:
            raise BadRow(_no_content(given, number))
    return {**message, **read}, learned


def _role(message: Message, given: Mapping[Any, Any], number: int) -> str:
    if "role" not in message and "from" not in message:
        has = "has null as its role, not a text" if "role" in given else f"has no 'role' ({_keys(given)})"
        raise BadRow(f"message {number} {has}")
    said = message.pop("role") if "role" in message else message.pop("from")
    if not isinstance(said, str):
        raise BadRow(f"message {number} has a value of type {type(said).__name__} as its role, not a text")
    known = (*ROLES, *OTHER_ROLES)
    if said not in known:
        raise BadRow(f"message {number} has the unknown role {said!r} ({suggest(said, known)})")
    return said


def _learned(message: Message, role: str, number: int) -> bool:
    """Whether a message is learned; the keys that say so are taken out of it."""
    learned = role == ASSISTANT
    for key in LEARNED:
        if key not in message:
            continue
        value = message.pop(key)
        if value not in (0, 1):
            raise BadRow(f"message {number} has {key!r}: {value!r}, and only 0 and 1 (or false and true) are read")
        if value and role != ASSISTANT:
            raise BadRow(f"message {number} has {key!r}: {value!r}, and only messages of the assistant are learned")
        learned &= bool(value)
    return learned


def _content(content: object, number: int) -> str:
    """The text of a message; several parts of text are joined."""
    if isinstance(content, str):
        return as_text({"content": content}, "content")
    if not isinstance(content, list):
        raise BadRow(f"message {number} has a value of type {type(content).__name__} as its content, not a text")
    return "".join(_part(part, number) for part in content)


def _part(part: object, number: int) -> str:
    if not isinstance(part, Mapping):
        raise BadRow(f"message {number} has a part that is a {type(part).__name__}, not an object with type and text")
    if part.get("type") != "text":
        raise BadRow(
            f"message {number} has a part of type {part.get('type')!r}, and only parts of type 'text' are read"
        )
    if not isinstance(part.get("text"), str):
        raise BadRow(f"message {number} has a part of type 'text' without a text")
    return as_text(part, "text")


def _calls(calls: object, number: int) -> list[dict[str, Any]]:
    """Calls of tools as templates take them: the arguments are an object, not its JSON text."""
    listed = [calls] if isinstance(calls, Mapping) else calls
    if not isinstance(listed, list) or not listed:
        raise BadRow(f"message {number} has calls of tools that are not a list of objects")
    return [_call(call, number) for call in listed]


def _call(call: object, number: int) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRow(f"message {number} has a call of a tool without the name of a function")
    arguments = _decoded(function.get("arguments"))
    read = {**_without_null(function), "arguments": {} if arguments in (None, "") else _without_null(arguments)}
    if not isinstance(call, Mapping) or "function" not in call:
        return {"type": "function", "function": read}
    return {"type": "function", **_without_null(call), "function": read}


def _tools(tools: object, column: str) -> list[dict[str, Any]] | None:
    given = _decoded(tools)
    if given is None or given in ("", []):
        return None
    if not isinstance(given, list) or not all(isinstance(tool, Mapping) for tool in given):
        raise BadRow(f"column {column!r} holds {_described_list(given)}, not a list of tools")
    return [_tool(_without_null(tool)) for tool in given]


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as templates take it; some files have the description of the function alone."""
    return tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool}


def _decoded(value: object) -> Any:
    """What a JSON text of a list or of an object holds; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _without_null(value: Any) -> Any:
    """An object without its empty entries: a table has every key in every row."""
    if isinstance(value, Mapping):
        return {str(key): _without_null(item) for key, item in value.items() if item is not None}
    return [_without_null(item) for item in value] if isinstance(value, list) else value


def _no_content(given: Mapping[Any, Any], number: int) -> str:
    key = "value" if "from" in given and "content" not in given else "content"
    if key in given:
        return f"message {number} has null as its {key}, not a text"
    return f"message {number} has no {key!r} ({_keys(given)})"


def _keys(given: Mapping[Any, Any]) -> str:
    return f"it has: {', '.join(map(str, given)) or 'nothing'}"


def _described_list(value: object) -> str:
    if isinstance(value, str):
        return "a text that is no JSON list"
    return "an empty list" if value == [] else "null" if value is None else f"a {type(value).__name__}"
