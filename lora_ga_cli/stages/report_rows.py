"""What a report shows of a run's training rows: some of them as the model sees them, and how long all are."""

from __future__ import annotations

from typing import Any

import numpy as np
from pyarrow.types import is_nested

from lora_ga_cli.data.tokens import MASKED
from lora_ga_cli.report.html.record import ShownRow
from lora_ga_cli.stages.costs import DEFAULT_TOKENS
from lora_ga_cli.stages.inputs import Inputs
from lora_ga_cli.training.passes import Limits, divide

FIRST_ROWS = 8
"""Rows from the beginning of the data set that are shown, besides the shortest and the longest one."""
LOOKED_AT = 5_000
"""Rows whose labels are counted, evenly spaced over all."""
STEPS = 40
"""Optimizer steps, from the first one, whose padding is counted."""


def rows_seen(inputs: Inputs) -> tuple[list[ShownRow], dict[str, Any]]:
    """Some training rows, and `RunRecord.lengths`."""
    split = inputs.train
    lengths = split.rows.select_columns(["length"]).with_format("numpy")["length"][:]
    places = dict.fromkeys(range(min(FIRST_ROWS, len(lengths))), "")
    for place, which in ((int(lengths.argmin()), "the shortest"), (int(lengths.argmax()), "the longest")):
        places[place] = which
    rows = [_shown(inputs, place, which) for place, which in places.items()]
    looked_at = np.unique(np.linspace(0, len(lengths) - 1, min(LOOKED_AT, len(lengths))).astype(int))
    return rows, {
        "lengths": lengths.tolist(),
        "labelled_share": _labelled_share(inputs, looked_at.tolist()),
        "padding_share": padding_share(inputs),
        "looked_at": len(looked_at),
        "truncated": split.truncated,
        "skipped": dict(split.skipped),
    }


def padding_share(inputs: Inputs) -> float:
    """The share of padding among the tokens of the first steps' passes, if the passes are padded."""
    options, order = inputs.config.trainer, inputs.order
    tokens = options.max_tokens if isinstance(options.max_tokens, int) else None
    if tokens is None and options.micro_batch_size is None:
        tokens = DEFAULT_TOKENS
    limits = Limits(options.micro_batch_size, tokens, padded=True)
    steps = order.steps(0, min(STEPS, order.steps_per_epoch))
    passes = [rows for step in steps for share in divide(step, order.lengths, limits) for rows in share]
    computed = sum(limits.cost(rows, order.lengths) for rows in passes)
    return 1 - sum(order.lengths[row] for rows in passes for row in rows) / computed


def _shown(inputs: Inputs, place: int, which: str) -> ShownRow:
    row = inputs.train.rows[place]
    title = f"Row {place + 1}" + (f", {which}" if which else "")
    return ShownRow(inputs.train.form.parts(row), int(row["length"]), _labelled(row["labels"]), title)


def _labelled(labels: Any) -> int | None:
    """Tokens with a loss; None for a class."""
    return sum(label != MASKED for label in labels) if isinstance(labels, list) else None


def _labelled_share(inputs: Inputs, places: list[int]) -> float | None:
    """Tokens with a loss in some rows, over all tokens that the model reads or writes there; None for classes."""
    columns = inputs.train.rows.select(places).select_columns(["input_ids", "labels"]).with_format("arrow")[:]
    if not is_nested(columns["labels"].type):
        return None
    read, labels = (columns[name].combine_chunks().flatten().to_numpy() for name in ("input_ids", "labels"))
    tokens = len(read) + (len(labels) if inputs.config.model.task == "seq2seq_lm" else 0)
    return float((labels != MASKED).sum() / tokens)
