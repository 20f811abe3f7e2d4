"""Chats: messages rendered by the tokenizer's template, with loss on the assistant's turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_ga_cli.data.examples.base import MASKED, Example, columns_of
from lora_ga_cli.data.examples.prompt_answer import causal_learns, cut_causal, plain_tokens
from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.data.template import as_text
from lora_ga_cli.data.texts import same_start
from lora_ga_cli.errors import DataError, Fault, suggest

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import DatasetConfig
    from lora_ga_cli.data.source import Row

Message = dict[str, Any]
ROLES = ("system", "developer", "user", "tool", "assistant")


@dataclass(frozen=True)
class Turn:
    """An assistant's turn: where its tokens start, what was shown before it, and what it says."""

    start: int
    prompt: str
    reference: str


class Chat:
    """A column of messages (``role``, ``content``); every turn of the assistant is learned.

    Where a turn starts is found by rendering the chat up to there as for generation, and again with the turn: the first
    must be how the second begins. What comes after the last turn of the assistant is left out. ``prompt`` and
    ``reference`` are those of the last turn.
    """

    def __init__(self, config: DatasetConfig, tokenizer: Any):
        assert config.messages is not None
        self.features = columns_of(
            tokens=["input_ids", "labels"], numbers=["length", "prompt_length"], texts=["prompt", "reference"]
        )
        self._column = config.messages
        self._tokenizer = tokenizer

    def read(self, row: Row) -> Example:
        # tokenized here already: only rendering tells whether the template takes these messages
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
        return self._with_last(Example({"input_ids": ids, "labels": labels, "length": len(ids)}, keep=turns))

    def _with_last(self, example: Example) -> Example:
        # of a row that was cut, the last turn that has a token left
        turn = [turn for turn in example.keep if turn.start < example.row["length"]] or example.keep[:1]
        last = {"prompt_length": turn[-1].start, "prompt": turn[-1].prompt, "reference": turn[-1].reference}
        return Example({**example.row, **last}, keep=example.keep)

    def _render(self, messages: list[Message], *, for_generation: bool) -> str:
        from jinja2 import TemplateError

        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=for_generation
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise BadRow(f"the chat template refuses these messages: {error}") from error
        return text

    def _longer(self, ids: list[int], text: str, longer: str) -> list[int]:
        """Tokens of ``longer``, which begins with ``text``, whose tokens are ``ids``: they begin with ``ids``."""
        if not longer.startswith(text):
            raise DataError([_no_prefix(text, longer)])
        (whole,) = plain_tokens(self._tokenizer, [longer])
        if whole[: len(ids)] == ids:
            return whole
        # characters on both sides of the seam merge into one token: keep the seam, as generation does
        (rest,) = plain_tokens(self._tokenizer, [longer[len(text) :]])
        return ids + rest

    def cut(self, example: Example, max_length: int) -> Example:
        return self._with_last(Example(cut_causal(example.row, max_length), keep=example.keep))

    def learns(self, example: Example) -> bool:
        return causal_learns(example.row)


def _no_prefix(text: str, longer: str) -> Fault:
    same = same_start(text, longer)
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
        held = "an empty list" if messages == [] else "null" if messages is None else f"a {type(messages).__name__}"
        raise BadRow(f"column {column!r} holds {held}, not a list of messages")
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
            raise BadRow(f"message {number} has {_held(message[key])} as its {key}, not a text")
    if message["role"] not in ROLES:
        raise BadRow(f"message {number} has the unknown role {message['role']!r} ({suggest(message['role'], ROLES)})")
    as_text(message, "content")
    # what else a message has (a name, calls of tools) is the template's to use; null is how a table says absent
    return {str(key): value for key, value in message.items() if value is not None}


def _held(value: object) -> str:
    return "null" if value is None else f"a value of type {type(value).__name__}"
