"""A row as the model sees it, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from lora_ga_cli.data.examples.base import MASKED
from lora_ga_cli.data.texts import same_start

if TYPE_CHECKING:
    from rich.text import Text

    from lora_ga_cli.config.schema import Task

MASKED_STYLE = "dim"
SPECIAL_STYLE = "magenta"
ARROW = "\n→ "


def render(row: Mapping[str, Any], tokenizer: Any, task: Task, *, label_names: Sequence[str] | None = None) -> Text:
    """The row's tokens, decoded.

    What has no loss is dim; special tokens are magenta. For seq2seq_lm the input is followed by an arrow and the
    labels, for a classifier by an arrow and the class: its name from ``label_names``, else its number.
    """
    from rich.text import Text

    text = Text()
    if task == "causal_lm":
        _append(text, tokenizer, row["input_ids"], [label != MASKED for label in row["labels"]])
        return text
    is_class = task == "sequence_classification"
    # a classifier reads all of its text for one class, so nothing of it is set back
    _append(text, tokenizer, row["input_ids"], [is_class] * len(row["input_ids"]))
    text.append(ARROW, MASKED_STYLE)
    if is_class:
        number = int(row["labels"])
        text.append(label_names[number] if label_names is not None else str(number), "bold")
    else:
        _append(text, tokenizer, row["labels"], [label != MASKED for label in row["labels"]])
    return text


def _append(text: Text, tokenizer: Any, ids: Sequence[int], learned: Sequence[bool]) -> None:
    """Appends runs of tokens of one style.

    A run is what decoding adds to all before it: decoded alone, it could lose the space it begins with.
    """
    special = set(tokenizer.all_special_ids)
    end = 0
    before = ""
    kinds = [(token in special, has_loss) for token, has_loss in zip(ids, learned, strict=True)]
    for (is_special, has_loss), run in groupby(kinds):
        end += len(list(run))
        after = tokenizer.decode(list(ids[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # a character whose bytes lie on both sides of the seam changes what was decoded before
        same = same_start(before, after)
        styles = [SPECIAL_STYLE] * is_special + [MASKED_STYLE] * (not has_loss)
        if same < len(before):
            text.right_crop(len(before) - same)
        text.append(after[same:], " ".join(styles))
        before = after
