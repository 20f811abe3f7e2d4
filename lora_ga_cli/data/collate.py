"""Rows to batches of tensors.

All tensors are int64. A tokenizer without a padding token pads with its end-of-text token: the attention mask hides it
and the labels leave it out, so that the vocabulary stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lora_ga_cli.data.tokens import MASKED
from lora_ga_cli.errors import DataError, Fault

if TYPE_CHECKING:
    import torch

Rows = Sequence[Mapping[str, Any]]


def collate_tokens(tokenizer: Any, rows: Rows) -> dict[str, torch.Tensor]:
    """A batch of a language model, for a forward pass with loss.

    Returns:
        ``input_ids`` and ``attention_mask`` of shape (rows, longest input), padded on the right; ``token_type_ids`` if
        the rows have it; ``labels`` of shape (rows, longest labels), padded with -100. Other columns are ignored.
    """
    return _inputs(tokenizer, rows) | {"labels": _padded([row["labels"] for row in rows], MASKED, "right")}


def collate_classes(tokenizer: Any, rows: Rows) -> dict[str, torch.Tensor]:
    """A batch of a classifier: as `collate_tokens` makes it, but with ``labels`` of shape (rows,)."""
    import torch

    labels = torch.tensor([int(row["labels"]) for row in rows], dtype=torch.long)
    return _inputs(tokenizer, rows) | {"labels": labels}


def generation_batch(tokenizer: Any, rows: Rows) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` of shape (rows, longest prompt) to generate from.

    Rows of a causal model (they have ``prompt_length``) give the very tokens of their prompt, padded on the left, so
    that all answers start side by side. Rows of an encoder-decoder give their input, padded on the right.

    Raises:
        DataError: a causal row whose prompt has no token.
    """
    if "prompt_length" not in rows[0]:
        return _padded_inputs(tokenizer, [row["input_ids"] for row in rows], "right")
    return _padded_inputs(tokenizer, causal_prompts(rows), "left")


def causal_prompts(rows: Rows) -> list[list[int]]:
    """The tokens of each causal row's prompt.

    Raises:
        DataError: a prompt has no token.
    """
    prompts = [row["input_ids"][: row["prompt_length"]] for row in rows]
    if any(len(prompt) == 0 for prompt in prompts):
        what = "a prompt without any token: the model has nothing to generate from"
        raise DataError([Fault("dataset.prompt", what, "give the template a text")])
    return prompts


def _inputs(tokenizer: Any, rows: Rows) -> dict[str, torch.Tensor]:
    batch = _padded_inputs(tokenizer, [row["input_ids"] for row in rows], "right")
    if "token_type_ids" in rows[0]:
        type_id = getattr(tokenizer, "pad_token_type_id", 0)
        batch["token_type_ids"] = _padded([row["token_type_ids"] for row in rows], type_id, "right")
    return batch


def _padded_inputs(
    tokenizer: Any, ids: Sequence[Sequence[int]], side: Literal["left", "right"]
) -> dict[str, torch.Tensor]:
    mask = [[1] * len(row) for row in ids]
    return {"input_ids": _padded(ids, _pad_id(tokenizer), side), "attention_mask": _padded(mask, 0, side)}


def _pad_id(tokenizer: Any) -> int:
    for number in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if number is not None:
            return int(number)
    what = "the tokenizer has neither a padding nor an end-of-text token to fill a batch with"
    raise DataError([Fault("model.tokenizer", what, "take another")])


def _padded(rows: Sequence[Sequence[int]], filler: int, side: Literal["left", "right"]) -> torch.Tensor:
    import torch

    tensors = [torch.as_tensor(row, dtype=torch.long) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=filler, padding_side=side)
