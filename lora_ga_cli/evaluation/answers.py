"""Taking the answer out of a text, and comparing two answers."""

from __future__ import annotations

import re


def extract(text: str, pattern: str) -> str | None:
    """The first group of the last match of ``pattern`` in ``text``, normalized; None if there is no match.

    The last, since a worked solution may mention results on its way.
    """
    matches = list(re.finditer(pattern, text))
    if not matches:
        return None
    found = matches[-1]
    answer = found.group(1) if found.re.groups else found.group(0)
    return None if answer is None else normalize(answer)


def normalize(answer: str) -> str:
    """Strips what does not change an answer: outer space, a final full stop, a currency sign, thousands separators."""
    answer = " ".join(answer.split()).removesuffix(".").removeprefix("$").strip()
    return re.sub(r"(?<=\d),(?=\d{3}(\D|$))", "", answer)


def reference_answer(text: str, pattern: str) -> str:
    """The answer in a reference text: the pattern's match, or the whole text where it has none."""
    found = extract(text, pattern)
    return normalize(text) if found is None else found
