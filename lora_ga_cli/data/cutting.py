"""Cutting a text so that the tokenizer's own tokens around it stay."""

from __future__ import annotations

from typing import Any


def encode_cut(tokenizer: Any, text: str, pair: str | None, max_length: int) -> Any:
    """A text's or a pair's tokenization, cut to the first ``max_length`` tokens; of a pair the longer is cut first."""
    side = tokenizer.truncation_side
    tokenizer.truncation_side = "right"
    try:
        return tokenizer(text, pair, truncation="longest_first", max_length=max_length)
    finally:
        tokenizer.truncation_side = side
