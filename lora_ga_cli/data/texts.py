"""Small helps with text."""

from __future__ import annotations


def same_start(one: str, two: str) -> int:
    """How many characters two texts begin with in common."""
    pairs = enumerate(zip(one, two, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(one), len(two)))
