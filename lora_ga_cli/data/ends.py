"""What ends an answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ends:
    """What training puts after an answer, so that a model which generates stops there.

    Args:
        tokens: the numbers of the tokens that end it.
        text: a text that ends it and is no token of its own; empty if there is none.
    """

    tokens: tuple[int, ...] = ()
    text: str = ""
