"""Chats: messages rendered by the tokenizer's template, with loss on the assistant's turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_ga_cli.data.examples.base import Example, Form
from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.data.template import as_text
from lora_ga_cli.data.tokens import MASKED, common_prefix_length, plain_tokens
from lora_ga_cli.errors import DataError, Fault, suggest
from lora_ga_cli.registry import EXAMPLES

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import DatasetConfig
    from lora_ga_cli.data.source import Row

Message = dict[str, Any]
ROLES = ("system", "developer", "user", "tool", "assistant")


@dataclass(frozen=True)
class Turn:
    """An assistant's turn.

    Args:
        start: the number of tokens before it.
        prompt: the text before it, as for generation.
        reference: what the assistant says.
    """

    start: int
    prompt: str
    reference: str


@EXAMPLES.register("chat")
class Chat(Form):
    """A column of messages (``role``, ``content``); every turn of the assistant is learned.

    Where a turn starts is found by rendering the chat up to there as for generation, and again with the turn: the first
    must be the beginning of the second. What comes after the last turn of the assistant is left out. ``prompt`` and
    ``reference`` are those of the last turn.
    """

    tasks = ("causal_lm",)
    required = ("messages",)
    optional = ("label_names",)

    def __init__(self, config: DatasetConfig, tokenizer: Any, label_names: Sequence[str] | None = None):
        assert config.messages is not None
        super().__init__(config, tokenizer, label_names)
        self._column = config.messages

    @classmethod
    def faults(cls, config: DatasetConfig, tokenizer: Any) -> list[Fault]:
        if tokenizer.chat_template:
            return []
        hint = "take a chat model, or its tokenizer by model.tokenizer=NAME, or give dataset.prompt and dataset.answer"
        return [Fault("dataset.messages", "the tokenizer has no chat template", hint)]

    def read(self, row: Row) -> Example:
        # tokenized here already: only rendering shows whether the template takes these messages
        return self._example(checked_messages(row, self._column))

    def tokenize(self, parts: Sequence[Example]) -> list[Example]:
        return list(parts)

    def _example(self, messages: list[Message]) -> Example:
        ids: list[int] = []
        labels: list[int] = []
        turns: list[Turn] = []
        done = ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:index], for_generation=True)
            ids = self._longer(ids, done, prompt)
            labels += [MASKED] * (len(ids) - len(labels))
            turns.append(Turn(len(ids), prompt, message["content"]))
            done = self._render(messages[: index + 1], for_generation=False)
            ids = self._longer(ids, prompt, done)
            labels += ids[len(labels) :]
        return self._with_last_turn(Example({"input_ids": ids, "labels": labels, "length": len(ids)}, keep=turns))

    def _with_last_turn(self, example: Example) -> Example:
        # of a row that was truncated, the last turn that has a token left
        turn = [turn for turn in example.keep if turn.start < example.row["length"]] or example.keep[:1]
        last = {"prompt_length": turn[-1].start, "prompt": turn[-1].prompt, "reference": turn[-1].reference}
        return Example({**example.row, **last}, keep=example.keep)

    def _render(self, messages: list[Message], *, for_generation: bool) -> str:
        from jinja2 import TemplateError

        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=for_generation
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise BadRow(f"the chat template refuses these messages: {error}") from error
        return text

    def _longer(self, ids: list[int], text: str, longer: str) -> list[int]:
        """Tokens of ``longer``, a text that begins with ``text``. They begin with ``ids``, the tokens of ``text``."""
        if not longer.startswith(text):
            raise DataError([_no_prefix(text, longer)])
        (all_ids,) = plain_tokens(self.tokenizer, [longer])
        if all_ids[: len(ids)] == ids:
            return all_ids
        # characters on both sides of the border merge into one token: keep them apart, as generation does
        (rest,) = plain_tokens(self.tokenizer, [longer[len(text) :]])
        return ids + rest

    def truncate(self, example: Example, max_length: int) -> Example:
        """The first tokens; ``prompt`` and ``reference`` are those of the last turn that has a token left."""
        return self._with_last_turn(super().truncate(example, max_length))


def _no_prefix(text: str, longer: str) -> Fault:
    same = common_prefix_length(text, longer)
    what = (
        "the tokenizer's chat template writes earlier messages differently once a message follows, so that the "
        f"assistant's turns cannot be told apart: {text[same : same + 40]!r} becomes {longer[same : same + 40]!r}"
    )
    ways = "keep one assistant turn a row, take another tokenizer by model.tokenizer=NAME"
    hint = f"{ways}, or give dataset.prompt and dataset.answer"
    return Fault("dataset.messages", what, hint)


def checked_messages(row: Row, column: str) -> list[Message]:
    """The messages of a row up to the assistant's last turn, each with a known role and a text.

    Raises:
        BadRow: anything else.
    """
    messages = row.get(column)
    if not isinstance(messages, list) or not messages:
        value = "an empty list" if messages == [] else "null" if messages is None else f"a {type(messages).__name__}"
        raise BadRow(f"column {column!r} holds {value}, not a list of messages")
    checked = [_checked(message, number) for number, message in enumerate(messages, start=1)]
    roles = [message["role"] for message in checked]
    if "assistant" not in roles:
        raise BadRow(f"no message of the assistant in column {column!r}, so nothing to learn")
    if roles[0] == "assistant":
        raise BadRow("message 1 is the assistant's, and nothing was said before it")
    return checked[: len(roles) - roles[::-1].index("assistant")]


def _checked(message: object, number: int) -> Message:
    if not isinstance(message, Mapping):
        raise BadRow(f"message {number} is a {type(message).__name__}, not an object with role and content")
    for key in ("role", "content"):
        if key not in message:
            raise BadRow(f"message {number} has no {key!r} (it has: {', '.join(map(str, message)) or 'nothing'})")
        if not isinstance(message[key], str):
            raise BadRow(f"message {number} has {_described(message[key])} as its {key}, not a text")
    if message["role"] not in ROLES:
        raise BadRow(f"message {number} has the unknown role {message['role']!r} ({suggest(message['role'], ROLES)})")
    as_text(message, "content")
    # the template may use what else a message has (a name, calls of tools); in a table, null means absent
    return {str(key): value for key, value in message.items() if value is not None}


def _described(value: object) -> str:
    return "null" if value is None else f"a value of type {type(value).__name__}"
