"""Texts to tokens, and what two texts have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_ga_cli.errors import DataError, Fault

MASKED = -100
"""The label of a token without loss; PyTorch's cross entropy ignores it."""


ANCHORS = ("\n", ".", "a", "0")
"""Texts after which a continuation is tokenized, one after another: each may become one token with what follows."""


def plain_tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of each text, without any that the tokenizer adds."""
    if not texts:
        return []
    result: list[list[int]] = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
    )["input_ids"]
    return result


def leading_tokens(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts at the start of a text, found by tokenizing a short one.

    Raises:
        DataError: the text's plain tokens do not occur among the tokens with the added ones.
    """
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    for start in range(len(full) - len(plain) + 1):
        if plain and full[start : start + len(plain)] == plain:
            return full[:start]
    raise DataError(
        [Fault("model.tokenizer", "cannot tell which tokens it puts at the start of a text", "take another")]
    )


def prompt_tokens(tokenizer: Any, texts: Sequence[str], *, leading: Sequence[int] | None = None) -> list[list[int]]:
    """Tokens of prompts as a model is given them: after what the tokenizer puts at the start of a text.

    A text that begins with these tokens itself does not get them twice.

    Args:
        leading: what `leading_tokens` returned; None asks for it.

    Raises:
        DataError: as `leading_tokens`.
    """
    lead = leading_tokens(tokenizer) if leading is None else list(leading)
    return [ids if ids[: len(lead)] == lead else lead + ids for ids in plain_tokens(tokenizer, texts)]


def extended_tokens(tokenizer: Any, ids: list[int], rest: str, together: list[int]) -> list[int]:
    """Tokens of a text and its continuation, which begin with the text's own tokens.

    Where the border is also one between the tokens of both together, those are taken. Elsewhere characters on both
    sides would become one token: the two are kept apart, as generation keeps them.

    Args:
        ids: tokens of the text.
        rest: the continuation.
        together: tokens of the text and the continuation as one text.
    """
    return together if together[: len(ids)] == ids else ids + continuation_tokens(tokenizer, rest)


def continuation_tokens(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text that follows another one: without the space that some tokenizers put at a text's start."""
    (ids,) = plain_tokens(tokenizer, [text])
    if not marks_start(tokenizer):
        return ids
    for anchor in ANCHORS:
        before, both = plain_tokens(tokenizer, [anchor, anchor + text])
        if both[: len(before)] == before:
            return both[len(before) :]
    return ids


def answer_tokens(tokenizer: Any, ids: Sequence[int], prompt: str, answer: str) -> list[int]:
    """Tokens of an answer to a prompt, as a row of training data has them.

    Args:
        ids: the prompt's tokens, with those that begin a text.
        prompt: its text.
    """
    (together,) = plain_tokens(tokenizer, [prompt + answer])
    (prompt_alone,) = plain_tokens(tokenizer, [prompt])
    before = list(ids)[: len(ids) - len(prompt_alone)]
    return extended_tokens(tokenizer, list(ids), answer, before + together)[len(ids) :]


def marks_start(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a space (or its mark) at the start of a text, as those of SentencePiece often do."""
    one, other, both = plain_tokens(tokenizer, ["\n", "a", "\na"])
    two, _, pair = plain_tokens(tokenizer, [".", "a", ".a"])
    return one + other != both and two + other != pair


def truncated_tokens(tokenizer: Any, text: str, pair: str | None, max_length: int) -> Any:
    """The tokenization of a text or a pair, truncated to its first ``max_length`` tokens.

    The tokens that the tokenizer adds stay. Of a pair, the longer text is truncated first.
    """
    side = tokenizer.truncation_side
    tokenizer.truncation_side = "right"
    try:
        return tokenizer(text, pair, truncation="longest_first", max_length=max_length)
    finally:
        tokenizer.truncation_side = side


def common_prefix_length(one: str, two: str) -> int:
    """How many characters at the beginning of two texts are the same."""
    pairs = enumerate(zip(one, two, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(one), len(two)))


def end_faults(tokenizer: Any, ended: str) -> list[Fault]:
    """A fault where a tokenizer has no end-of-text token.

    Args:
        ended: what the token ends, for the message: ``answer`` or ``text``.
    """
    if tokenizer.eos_token_id is not None:
        return []
    return [
        Fault("model.tokenizer", f"the tokenizer has no end-of-text token, which ends each {ended}", "take another")
    ]
