"""Choosing what makes training faster or smaller on this model and device (``trainer.speed``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import ModelError
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.model.checkpointing import checkpoint_blocks
from lora_ga_cli.model.chunked_loss import use_chunked_loss
from lora_ga_cli.model.compilation import compile_blocks
from lora_ga_cli.model.flattening import use_flattening
from lora_ga_cli.model.kernels import use_liger
from lora_ga_cli.model.speed import Speed, remember_speed
from lora_ga_cli.model.unsupported import Unsupported
from lora_ga_cli.training.passes import Limits

DEFAULT_TOKENS = 4096
"""Tokens of a pass where neither ``trainer.max_tokens`` nor ``trainer.micro_batch_size`` is given: enough to keep a GPU
busy with a model of a billion parameters, and a small part of its memory."""


def speed_up(model: PreTrainedModel, config: Config, device: torch.device) -> Speed:
    """Turns on, in place, what the configuration asks for, and with ``speed=auto`` what the model and device allow.

    Raises:
        ModelError: something that is asked for does not work with this model or device; says why.
    """
    options = config.trainer
    chosen: list[str] = []
    refused: list[str] = []

    def turn_on(option: str, wanted: bool | None, what: str, lever: Callable[[], str | None]) -> bool:
        """Uses one lever if it is wanted (None: by ``speed``). Returns whether it is on."""
        if wanted is False or (wanted is None and options.speed == "plain"):
            return False
        try:
            detail = lever()
        except Unsupported as reason:
            if wanted:
                raise ModelError(f"trainer.{option} does not work here: {reason}") from None
            refused.append(f"no {what}: {reason}")
            return False
        chosen.append(f"{what} ({detail})" if detail else what)
        return True

    liger = None if options.kernels is None else options.kernels == "liger"
    turn_on("kernels=liger", liger, "Liger kernels", lambda: use_liger(model))
    flatten = turn_on("flatten=true", options.flatten, "flattened rows", lambda: _flatten(model, config, device))
    if options.gradient_checkpointing:
        every = options.gradient_checkpointing_every
        turn_on("gradient_checkpointing=true", True, _checkpointing(every), lambda: checkpoint_blocks(model, every))
    if config.model.task == "causal_lm" or options.chunked_loss:
        turn_on("chunked_loss=true", options.chunked_loss, "loss in chunks", lambda: use_chunked_loss(model))
    dtype = _adapter_dtype(config)
    if dtype != torch.float32:
        chosen.append(f"adapters in {str(dtype).removeprefix('torch.')}")
    speed = Speed(flatten, dtype, chosen, refused)
    remember_speed(model, speed)
    return speed


def compile_trained(model: nn.Module, config: Config) -> None:
    """Compiles the blocks of a model, with ``compile=true``.

    It is called when everything is on the model: compiled code does not notice hooks that come later, with which the
    gradient is estimated.

    Raises:
        ModelError: there is no compiler, or the model has no blocks.
    """
    if not config.trainer.compile:
        return
    try:
        compile_blocks(model)
    except Unsupported as reason:
        raise ModelError(f"trainer.compile=true does not work here: {reason}") from None


def _checkpointing(every: int) -> str:
    return "gradient checkpoints" + (f" of every {every}th block" if every > 1 else "")


def _flatten(model: PreTrainedModel, config: Config, device: torch.device) -> str:
    method = method_of(config)
    if config.model.task != "causal_lm":
        raise Unsupported(f"rows of model.task={config.model.task} are padded")
    if method.leading_positions:
        raise Unsupported(f"method {config.method.name} puts trained vectors before every row")
    return use_flattening(model, device)


def _adapter_dtype(config: Config) -> torch.dtype:
    """The type of adapters' products: as configured, or bfloat16 on a base in bfloat16."""
    options = config.trainer
    if options.adapter_dtype is not None:
        return getattr(torch, options.adapter_dtype)
    automatic = options.speed == "auto" and config.model.dtype == "bfloat16"
    return torch.bfloat16 if automatic else torch.float32


def pass_limits(config: Config, *, flatten: bool) -> Limits:
    """What fits into one forward and backward pass of training.

    Args:
        flatten: whether rows are flattened.
    """
    options = config.trainer
    tokens: Any = options.max_tokens
    if tokens is None and options.micro_batch_size is None:
        tokens = DEFAULT_TOKENS
    return Limits(options.micro_batch_size, tokens, padded=not flatten)
