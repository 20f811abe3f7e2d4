"""The identity of rows by content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from lora_ga_cli.files import sha256_json

LENGTHS = {"length", "prompt_length"}
"""Columns of a row that follow from the others."""


def rows_hash(rows: Iterable[Mapping[str, Any]]) -> str:
    """Hexadecimal SHA-256 over the model's inputs and labels of tokenized rows, in order.

    Every column counts, whatever form the rows have, except lengths and texts: a model reads no text.
    """
    digest = hashlib.sha256()
    for row in rows:
        read = {name: value for name, value in row.items() if name not in LENGTHS and not isinstance(value, str)}
        digest.update(sha256_json(read).encode())
    return digest.hexdigest()
