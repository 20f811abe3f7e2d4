"""The tokens that a model generates after its input. Without sampling, other rows of a batch do not change them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lora_ga_cli.config.schema import Task
from lora_ga_cli.data import generation_batch
from lora_ga_cli.data.ends import Ends
from lora_ga_cli.model.generation import model_ends
from lora_ga_cli.model.loading import max_positions

NO_ENDS = Ends()


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
    ends: Ends = NO_ENDS,
    **more: Any,
) -> list[list[int]]:
    """The tokens that a model generates for each row.

    An answer ends with one of the `end_tokens`, with a stop, after ``max_new_tokens``, or at the model's last position.
    Rows are answered in one batch, and an answer that ends before others is followed by padding tokens. Rows are
    answered one by one if the model has a trained prefix, or if the model's positions may truncate their answers.

    Args:
        rows: rows as `generation_batch` takes them.
        temperature: sampling temperature; 0 decodes greedily.
        stops: texts that end an answer.
        ends: what else ends an answer.
        more: for the model's ``generate``.
    """
    room = [min(max_new_tokens, positions_left(model, task, row)) for row in rows]
    prefixed = task == "causal_lm" and has_prefix(model)
    together = [number for number, limit in enumerate(room) if limit == max_new_tokens and not prefixed]
    groups = ([together] if together else []) + [[number] for number in range(len(rows)) if number not in together]
    generated: dict[int, list[int]] = {}
    for group in groups:
        chosen, limit = [rows[number] for number in group], room[group[0]]
        tokens = (
            _generate(model, tokenizer, task, chosen, limit, temperature, top_p, stops, ends, more) if limit else [[]]
        )
        generated |= zip(group, tokens, strict=True)
    return [generated[number] for number in range(len(rows))]


def positions_left(model: Any, task: Task, row: Mapping[str, Any]) -> int:
    """How many tokens a model can generate after a row before its positions end; 0 if the row itself is too long."""
    limit = max_positions(model.config)
    length = row.get("prompt_length", len(row["input_ids"]))
    if limit is None:
        return sys.maxsize
    left = limit - length - vectors_before(model)
    if task == "seq2seq_lm" and left >= 0:
        left = limit - 1  # the decoder has positions of its own, and its first token takes one
    return max(0, left)


@torch.no_grad()
def _generate(
    model: Any,
    tokenizer: Any,
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    stops: Sequence[str],
    ends: Ends,
    more: Mapping[str, Any],
) -> list[list[int]]:
    inputs = generation_batch(tokenizer, rows)
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    texts = [*stops, *([ends.text] if ends.text else [])]
    if texts:
        sampling |= {"stop_strings": texts, "tokenizer": tokenizer}
    device = next(model.parameters()).device
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Position ids are not supported")  # PEFT warns about what transformers passes
        tokens = model.generate(
            **{name: tensor.to(device) for name, tensor in inputs.items()},
            **sampling,
            **more,
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=max_new_tokens,
            eos_token_id=end_tokens(model, tokenizer, ends) or None,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
    begin = inputs["input_ids"].shape[1] if task == "causal_lm" else 1
    generated: list[list[int]] = tokens[:, begin:].tolist()
    return generated


def end_tokens(model: Any, tokenizer: Any, ends: Ends = NO_ENDS) -> list[int]:
    """The tokens that end an answer: the model's, the tokenizer's, which training puts after answers, and others."""
    return sorted({*model_ends(model.generation_config), *ends.tokens} | ({tokenizer.eos_token_id} - {None}))


def without_end(text: str, ends: Ends) -> str:
    """A generated text up to the text that ends an answer, if that is no token."""
    return text.partition(ends.text)[0] if ends.text else text


def vectors_before(model: Any) -> int:
    """How many positions before the input are taken by trained vectors."""
    if has_prefix(model):
        return int(model.active_peft_config.num_virtual_tokens)
    return int(getattr(model, "leading_positions", 0))  # set by a method that inserts vectors itself


def has_prefix(model: Any) -> bool:
    """Whether PEFT puts trained embeddings before the input. They also precede its padding, so batches change them."""
    config = getattr(model, "active_peft_config", None)
    return config is not None and bool(config.is_prompt_learning)
