"""Texts to tokens, and what two texts have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_ga_cli.errors import DataError, Fault

MASKED = -100
"""The label of a token without loss; PyTorch's cross entropy ignores it."""


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
