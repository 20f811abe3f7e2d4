"""The content address of a gradient: a hash of what it depends on, and of nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lora_ga_cli.files import sha256_json

KEY_FORMAT = 1
KEY_LENGTH = 24
"""Hexadecimal digits kept (96 bits)."""
LENGTHS = {"length", "prompt_length"}
"""Columns of a row that follow from the others."""


def gradient_key(
    *, model: Mapping[str, str], task: str, dtype: str, rows: str, targets: Sequence[str], estimator: Mapping[str, Any]
) -> str:
    """Hashes what the gradient depends on.

    Tokenizer, template, maximum length, data set, shuffling and sampling enter through ``rows``: the token ids and
    labels that they led to. Rank, direction, scale, learning rate and capacity do not enter.

    Args:
        model: identity by content (`identify`), with whatever else its weights depend on (a new head's seed).
        task: ``model.task``.
        dtype: type the weights are in while the gradient is taken.
        rows: `rows_hash` of the sampled rows.
        targets: full names of the target modules.
        estimator: the estimator's name and the settings that change its result.
    """
    content = {
        "format": KEY_FORMAT,
        "model": dict(model),
        "task": task,
        "dtype": dtype,
        "rows": rows,
        "targets": sorted(targets),
        "estimator": dict(estimator),
    }
    return sha256_json(content)[:KEY_LENGTH]


def rows_hash(rows: Iterable[Mapping[str, Any]]) -> str:
    """Hexadecimal SHA-256 over the model's inputs and labels of tokenized rows, in order.

    Every column counts, whatever form the rows have, except lengths and texts: a model reads no text.
    """
    digest = hashlib.sha256()
    for row in rows:
        read = {name: value for name, value in row.items() if name not in LENGTHS and not isinstance(value, str)}
        digest.update(sha256_json(read).encode())
    return digest.hexdigest()


def identity_after_merges(base: Mapping[str, str], merged: Sequence[str]) -> dict[str, str]:
    """The identity of a base with what was merged since it was loaded.

    Args:
        base: the identity of the base's files.
        merged: digests of what was merged, in order.
    """
    return dict(base) | ({"merged": ",".join(merged)} if merged else {})
