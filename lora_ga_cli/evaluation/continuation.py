"""What a model writes after its input: one batch, with everything that could make it depend on the batch set aside."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lora_ga_cli.config.schema import Task
from lora_ga_cli.data import generation_batch


@torch.no_grad()
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
    """The tokens that a model writes for each row; after one of `ends` come padding tokens.

    Args:
        rows: as `generation_batch` takes them.
        temperature: of sampling; 0 is greedy.
        stops: texts with which an answer ends.
    """
    if len(rows) > 1 and task == "causal_lm" and has_prefix(model):
        how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        return [continuations(model, tokenizer, task, [row], **how, stops=stops)[0] for row in rows]
    inputs = generation_batch(tokenizer, rows)
    how = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
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
    written: list[list[int]] = (
        tokens[:, inputs["input_ids"].shape[1] :] if task == "causal_lm" else tokens[:, 1:]
    ).tolist()
    return written


def ends(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the model's own, and the tokenizer's, which training puts after answers."""
    own = model.generation_config.eos_token_id
    known = [*own, tokenizer.eos_token_id] if isinstance(own, list) else [own, tokenizer.eos_token_id]
    return sorted({token for token in known if token is not None})


def has_prefix(model: Any) -> bool:
    """Whether PEFT puts trained embeddings before the input: before its padding too, farther from shorter prompts."""
    config = getattr(model, "active_peft_config", None)
    return config is not None and bool(config.is_prompt_learning)
