"""Rows of a causal model one after another, instead of padded to the longest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from lora_ga_cli.data.tokens import MASKED

Rows = Sequence[Mapping[str, Any]]
BOUNDARIES = "cu_seq_lens_q"
"""The entry of a flattened batch that says where each row begins, and where the last one ends."""
_PER_TOKEN = ("input_ids", "labels", "position_ids")


def flatten_tokens(rows: Rows) -> dict[str, Any]:
    """A batch of a causal model whose rows follow one another, for a forward pass with loss.

    There is no attention mask: transformers finds the rows by their positions, which begin again at 0, and kernels for
    rows of variable length by the boundaries.

    Args:
        rows: with ``input_ids`` and ``labels`` of the same length.

    Returns:
        ``input_ids``, ``labels`` and ``position_ids`` of shape (1, tokens of all rows), int64; a row's first label is
        -100, since no token before it predicts it. ``cu_seq_lens_q`` and ``cu_seq_lens_k``: where each row begins, and
        where the last one ends, of shape (rows + 1,), int32. ``max_length_q`` and ``max_length_k``: the longest row.
    """
    import torch

    lengths = [len(row["input_ids"]) for row in rows]
    ids = [token for row in rows for token in row["input_ids"]]
    labels = [label for row in rows for label in (MASKED, *row["labels"][1:])]
    positions = [position for length in lengths for position in range(length)]
    return {
        "input_ids": torch.tensor([ids], dtype=torch.long),
        "labels": torch.tensor([labels], dtype=torch.long),
        "position_ids": torch.tensor([positions], dtype=torch.long),
    } | _boundaries([0, *accumulate(lengths)])


def is_flattened(batch: Mapping[str, Any]) -> bool:
    """Whether a batch is one of `flatten_tokens`."""
    return BOUNDARIES in batch


def count_rows(batch: Mapping[str, Any]) -> int:
    """The number of rows of a batch, padded or flattened."""
    return len(batch[BOUNDARIES]) - 1 if is_flattened(batch) else len(batch["labels"])


def halves(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Two batches of half the rows, padded or flattened as they are; a batch of one row stays as it is."""
    rows = count_rows(batch)
    if rows < 2:
        return [dict(batch)]
    if is_flattened(batch):
        return split_flattened(batch, rows // 2)
    return [
        {name: item[part] if getattr(item, "shape", ())[:1] == (rows,) else item for name, item in batch.items()}
        for part in (slice(rows // 2), slice(rows // 2, None))
    ]


def split_flattened(batch: Mapping[str, Any], first: int) -> list[dict[str, Any]]:
    """Two batches: the first rows of a flattened one, and the others.

    Args:
        first: how many rows the first batch gets.
    """
    bounds = batch[BOUNDARIES].tolist()
    parts = []
    for own in (bounds[: first + 1], bounds[first:]):
        tokens = {name: batch[name][:, own[0] : own[-1]] for name in _PER_TOKEN}
        parts.append(tokens | _boundaries([bound - own[0] for bound in own]))
    return parts


def _boundaries(bounds: Sequence[int]) -> dict[str, Any]:
    import torch

    tensor = torch.tensor(bounds, dtype=torch.int32)
    longest = max(end - begin for begin, end in pairwise(bounds))
    return {BOUNDARIES: tensor, "cu_seq_lens_k": tensor, "max_length_q": longest, "max_length_k": longest}
