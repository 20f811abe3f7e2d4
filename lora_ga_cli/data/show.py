"""Tokens as text for people: what has no loss is dim, special tokens are magenta."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from lora_ga_cli.data.tokens import common_prefix_length

if TYPE_CHECKING:
    from rich.text import Text

MASKED_STYLE = "dim"
SPECIAL_STYLE = "magenta"
ARROW = "\n→ "
"""Between what a model reads and what it is to answer, where these are two texts."""
BEGIN_LEARNED, END_LEARNED = "⟦", "⟧"
"""Around text with loss, where no style can be shown."""


@dataclass(frozen=True)
class Segment:
    """A part of a shown row.

    Args:
        learned: whether the loss counts it.
        special: whether it consists of special tokens.
    """

    text: str
    learned: bool
    special: bool = False


def segments(shown: Text) -> list[Segment]:
    """The parts of a row as `Form.show` returns it, in order; together they are its text."""
    borders = sorted({0, len(shown), *(end for span in shown.spans for end in (span.start, span.end))})
    parts = []
    for start, end in pairwise(borders):
        styles = {
            word for span in shown.spans if span.start <= start and end <= span.end for word in str(span.style).split()
        }
        parts.append(Segment(shown.plain[start:end], MASKED_STYLE not in styles, SPECIAL_STYLE in styles))
    return parts


def marked(parts: Sequence[Segment]) -> str:
    """The text of a row with marks around what has a loss, for a file or a pipe."""
    text = ""
    for learned, run in groupby(parts, key=lambda part: part.learned):
        joined = "".join(part.text for part in run)
        text += f"{BEGIN_LEARNED}{joined}{END_LEARNED}" if learned else joined
    return text


def append_tokens(text: Text, tokenizer: Any, ids: Sequence[int], has_loss: Sequence[bool]) -> None:
    """Appends the decoded tokens, in runs of one style.

    A run is what decoding adds to all that comes before it: decoded alone, it could lose the space it begins with.
    """
    special = set(tokenizer.all_special_ids)
    end = 0
    before = ""
    kinds = [(token in special, learned) for token, learned in zip(ids, has_loss, strict=True)]
    for (is_special, learned), run in groupby(kinds):
        end += len(list(run))
        after = tokenizer.decode(list(ids[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # a character whose bytes lie on both sides of the border changes what was decoded before
        same = common_prefix_length(before, after)
        styles = [SPECIAL_STYLE] * is_special + [MASKED_STYLE] * (not learned)
        if same < len(before):
            text.right_crop(len(before) - same)
        text.append(after[same:], " ".join(styles))
        before = after
