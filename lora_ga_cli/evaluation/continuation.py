"""What a model writes after its input; but for the draws of sampling, no neighbour in a batch changes it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lora_ga_cli.config.schema import Task
from lora_ga_cli.data import generation_batch
from lora_ga_cli.model.loading import max_positions


def continuations(
    model: Any,
    tokenizer: Any,
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stops: Sequence[str] = (),
) -> list[list[int]]:
    """The tokens that a model writes for each row.

    An answer ends with a token of `ends`, with a stop, after ``max_new_tokens``, or where the model has no more
    positions. Rows are answered side by side, and those that end before others go on with padding tokens. One by one
    are answered all rows of a model with a trained prefix, and those whose answers the positions may cut short.

    Args:
        rows: as `generation_batch` takes them.
        temperature: of sampling; 0 is greedy.
        stops: texts with which an answer ends.
    """
    room = [min(max_new_tokens, positions_left(model, task, row)) for row in rows]
    is_prefixed = task == "causal_lm" and has_prefix(model)
    together = [number for number, most in enumerate(room) if most == max_new_tokens and not is_prefixed]
    groups = ([together] if together else []) + [[number] for number in range(len(rows)) if number not in together]
    written: dict[int, list[int]] = {}
    for group in groups:
        chosen, most = [rows[number] for number in group], room[group[0]]
        tokens = _written(model, tokenizer, task, chosen, most, temperature, top_p, stops) if most else [[]]
        written |= zip(group, tokens, strict=True)
    return [written[number] for number in range(len(rows))]


def positions_left(model: Any, task: Task, row: Mapping[str, Any]) -> int:
    """How many tokens a model has positions to write after a row; 0 also where the row itself is too long."""
    limit = max_positions(model.config)
    length = row.get("prompt_length", len(row["input_ids"]))
    if limit is None:
        return sys.maxsize
    left = limit - length - vectors_before(model)
    if task == "seq2seq_lm" and left >= 0:
        left = limit - 1  # an answer has positions of its own, after a token to begin with
    return max(0, left)


@torch.no_grad()
def _written(
    model: Any,
    tokenizer: Any,
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    stops: Sequence[str],
) -> list[list[int]]:
    inputs = generation_batch(tokenizer, rows)
    how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        how = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    if stops:
        how |= {"stop_strings": list(stops), "tokenizer": tokenizer}
    device = next(model.parameters()).device
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Position ids are not supported")  # PEFT, of what transformers gives it
        tokens = model.generate(
            **{name: tensor.to(device) for name, tensor in inputs.items()},
            **how,
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=max_new_tokens,
            eos_token_id=ends(model, tokenizer) or None,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
    begin = inputs["input_ids"].shape[1] if task == "causal_lm" else 1
    written: list[list[int]] = tokens[:, begin:].tolist()
    return written


def ends(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the model's own, and the tokenizer's, which training puts after answers."""
    own = model.generation_config.eos_token_id
    known = [*own, tokenizer.eos_token_id] if isinstance(own, list) else [own, tokenizer.eos_token_id]
    return sorted({token for token in known if token is not None})


def vectors_before(model: Any) -> int:
    """How many trained vectors take positions before the input."""
    if has_prefix(model):
        return int(model.active_peft_config.num_virtual_tokens)
    put_in = getattr(model, "inserted", None)
    return int(put_in["about"].get("length", 0)) if put_in is not None else 0


def has_prefix(model: Any) -> bool:
    """Whether PEFT puts trained embeddings before the input: before its padding too, farther from shorter prompts."""
    config = getattr(model, "active_peft_config", None)
    return config is not None and bool(config.is_prompt_learning)
