"""The content address of a gradient: a hash of what it depends on, and of nothing else.

Nothing here reads a model's files: the caller passes the identity of the model whose gradient is taken. This is the
identity of the base model's files, and of every adapter that was merged into the weights since they were loaded
(`identity_after_merges`). Were it that of the files alone, the second link of a chain would find the gradient of the
first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_ga_cli.json_files import sha256_json

KEY_FORMAT = 1
KEY_LENGTH = 24
"""Hexadecimal digits kept (96 bits)."""


def gradient_key(
    *, model: Mapping[str, str], task: str, dtype: str, rows: str, targets: Sequence[str], estimator: Mapping[str, Any]
) -> str:
    """Hashes everything the gradient depends on.

    Tokenizer, template, maximum length, data set, shuffling and sampling enter through ``rows``, the token ids and
    labels that result from them. Rank, direction, scale, learning rate and capacity do not enter.

    Args:
        model: the identity of the weights in memory (`identity_after_merges`), with whatever else they depend on (the
            seed of a new head).
        task: ``model.task``.
        dtype: the type of the weights while the gradient is computed.
        rows: `rows_hash` of the sampled rows.
        targets: full names of the target modules.
        estimator: the estimator's name and the options that change its result.
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


def identity_after_merges(base: Mapping[str, str], merged: Sequence[str]) -> dict[str, str]:
    """The identity of a model after adapters were merged into its weights.

    Args:
        base: the identity of the base model's files (`lora_ga_cli.model.loading.identify`).
        merged: digests of the adapters, in the order in which they were merged. The order counts, since rounding
            depends on it.

    Returns:
        ``base`` as it is if nothing was merged, else with an entry ``merged``.
    """
    return dict(base) | ({"merged": sha256_json(list(merged))} if merged else {})
