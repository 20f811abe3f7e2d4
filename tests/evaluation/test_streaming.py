"""Answers as text while they are generated."""

from __future__ import annotations

import torch

from lora_ga_cli.data.ends import Ends
from lora_ga_cli.evaluation.continuation import NO_ENDS
from lora_ga_cli.evaluation.streaming import AnswerStream
from tests.conftest import byte_tokenizer


def streamed(texts: list[str], ends: Ends = NO_ENDS) -> tuple[list[list[str]], AnswerStream]:
    """The pieces of answers whose tokens come one by one, side by side; shorter ones are padded."""
    tokenizer = byte_tokenizer()
    pieces: list[list[str]] = [[] for _ in texts]
    stream = AnswerStream(
        tokenizer, len(texts), [tokenizer.eos_token_id], lambda row, text: pieces[row].append(text), ends
    )
    rows = tokenizer([text + "</s>" for text in texts], padding=True, padding_side="right")["input_ids"]
    stream.put(torch.zeros(len(texts), 5, dtype=torch.long))  # the prompt
    for tokens in torch.tensor(rows).T:
        stream.put(tokens)
    stream.end()
    return pieces, stream


def test_pieces_are_the_text_and_characters_are_whole() -> None:
    (first, second), stream = streamed(["né 漢👩", "no"])
    assert first == ["n", "é", " ", "漢", "👩"]
    assert second == ["n", "o"]
    assert stream.ended == [True, True]


def test_a_text_that_ends_an_answer_is_never_shown() -> None:
    (pieces,), stream = streamed(["a\nb\n\nmore"], Ends(text="\n\n"))
    assert "".join(pieces) == stream.text(0) == "a\nb"
    assert pieces == ["a", "\nb"]
    assert stream.ended == [True]


def test_what_was_held_back_comes_in_the_end() -> None:
    (pieces,), _ = streamed(["a\n"], Ends(text="\n\n"))
    assert "".join(pieces) == "a\n"
