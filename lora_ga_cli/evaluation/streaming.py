"""Answers while they are generated, as text."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from transformers.generation.streamers import BaseStreamer

from lora_ga_cli.data.ends import Ends
from lora_ga_cli.evaluation.continuation import NO_ENDS, without_end

UNFINISHED = "\ufffd"
"""What decoding gives for a character of which only some bytes are there."""


class AnswerStream(BaseStreamer):  # type: ignore[misc]
    """Hands on the text of each answer of a batch as its tokens come.

    Args:
        rows: the number of answers in the batch.
        last_tokens: the tokens that end an answer.
        ends: what else ends it; what comes after is not part of its text.
        write: called with the number of the row and the text that was added.
    """

    def __init__(
        self,
        tokenizer: Any,
        rows: int,
        last_tokens: Collection[int],
        write: Callable[[int, str], None],
        ends: Ends = NO_ENDS,
    ):
        self._tokenizer = tokenizer
        self._last = frozenset(last_tokens)
        self._ends = ends
        self._write = write
        self._prompt_seen = False
        self._ids: list[list[int]] = [[] for _ in range(rows)]
        self._written = ["" for _ in range(rows)]
        self.ended = [False] * rows
        """For each answer, whether the model has ended it."""

    def put(self, value: Any) -> None:
        """Takes the prompt first, then the next token of every row."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for row, token in enumerate(value.reshape(-1).tolist()):
            if self.ended[row]:
                continue  # the padding after a shorter answer
            self._ids[row].append(token)
            text = self.text(row)
            self.ended[row] = token in self._last or (bool(self._ends.text) and self._ends.text in self._decoded(row))
            self._hand_on(row, text if self.ended[row] else text[: self._sure(text)])

    def end(self) -> None:
        """Hands on what was held back."""
        for row in range(len(self._ids)):
            self._hand_on(row, self.text(row))

    def text(self, row: int) -> str:
        """All of an answer so far."""
        return without_end(self._decoded(row), self._ends)

    def _decoded(self, row: int) -> str:
        text: str = self._tokenizer.decode(self._ids[row], skip_special_tokens=True)
        return text

    def _sure(self, text: str) -> int:
        """How many characters stay as they are, whatever comes: not a character that is incomplete, nor what may be the
        beginning of the text that ends the answer."""
        length = len(text.rstrip(UNFINISHED))
        mark = self._ends.text
        held = next((count for count in range(len(mark) - 1, 0, -1) if text[:length].endswith(mark[:count])), 0)
        return length - held

    def _hand_on(self, row: int, text: str) -> None:
        before = self._written[row]
        if len(text) > len(before):
            self._written[row] = text
            self._write(row, text[len(before) :])
