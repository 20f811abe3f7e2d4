"""Choosing what makes training faster or smaller on this model and device (``trainer.speed``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import nn
from transformers import PreTrainedModel

from lora_ga_cli.config.row_forms import is_complete, row_form
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import Fault, InvalidInput, ModelError
from lora_ga_cli.lora.adapter_dtype import set_adapter_dtype
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.model.checkpointing import checkpoint_blocks, offload_checkpoints
from lora_ga_cli.model.chunked_loss import use_chunked_loss
from lora_ga_cli.model.compilation import compile_blocks
from lora_ga_cli.model.flattening import BLOCK_MASK, use_flattening
from lora_ga_cli.model.kernels import use_liger, use_torch
from lora_ga_cli.model.speed import Speed, remember_speed
from lora_ga_cli.model.unsupported import Unsupported
from lora_ga_cli.report.console import step
from lora_ga_cli.training.arguments import adapter_dtype


def speed_up(model: PreTrainedModel, config: Config, device: torch.device) -> Speed:
    """Turns on, in place, what the configuration asks for, and with ``speed=auto`` what the model and device allow.

    Raises:
        ModelError: something that is asked for does not work with this model or device; says why.
    """
    options, wanted = config.trainer, wanted_speed(config)
    chosen: list[str] = []
    refused: list[str] = []

    def turn_on(option: str, asked: bool, what: str, use: Callable[[], str | None]) -> str | None:
        """What ``use`` returns; None if it does not work here.

        Args:
            asked: whether it must work, because the configuration names it.
        """
        try:
            detail = use()
        except Unsupported as reason:
            if asked:
                raise ModelError(f"trainer.{option} does not work here: {reason}") from None
            refused.append(f"no {what}: {reason}")
            return None
        chosen.append(f"{what} ({detail})" if detail else what)
        return detail or ""

    liger = flatten = chunked = None
    gpu = device.type == "cuda"  # elsewhere only what is named is tried, since it would rarely work or help
    use_torch(model)
    if wanted.liger and (options.kernels is not None or gpu):
        liger = turn_on("kernels=liger", options.kernels is not None, "Liger kernels", lambda: use_liger(model))
    if wanted.flatten and (options.flatten or gpu):
        flatten = turn_on(
            "flatten=true", bool(options.flatten), "flattened rows", lambda: _flatten(model, config, device)
        )
    if options.gradient_checkpointing:
        every = options.gradient_checkpointing_every
        turn_on("gradient_checkpointing=true", True, _checkpointing(every), lambda: checkpoint_blocks(model, every))
    if options.gradient_checkpointing_offload:
        what = "their inputs in the CPU's memory"
        turn_on("gradient_checkpointing_offload=true", True, what, lambda: offload_checkpoints(model))
    if wanted.chunked_loss:
        chunked = turn_on(
            "chunked_loss=true", bool(options.chunked_loss), "loss in chunks", lambda: use_chunked_loss(model)
        )
    speed = Speed(
        flatten=flatten is not None,
        block_mask=flatten == BLOCK_MASK,
        chunked_loss=chunked is not None,
        liger=liger is not None,
        adapter_dtype=wanted.adapter_dtype,
        chosen=chosen,
        refused=refused,
    )
    remember_speed(model, speed)
    return speed


def check_speed(config: Config, device: torch.device) -> None:
    """Refuses what the device or the method rules out, before anything is loaded.

    Raises:
        InvalidInput: names all of it.
    """
    options, gpu = config.trainer, device.type == "cuda"
    faults = []
    if options.tf32 and not (gpu and torch.cuda.get_device_capability(device)[0] >= 8):
        faults.append(("trainer.tf32=true", "there is no NVIDIA GPU of the Ampere generation or later"))
    if options.gradient_checkpointing_offload and device.type == "cpu":
        faults.append(("trainer.gradient_checkpointing_offload=true", "there is no GPU whose memory it would save"))
    if options.kernels == "liger" and not gpu:
        faults.append(("trainer.kernels=liger", "Liger's kernels need a CUDA device"))
    elif options.kernels == "liger" and find_spec("liger_kernel") is None:
        faults.append(("trainer.kernels=liger", "Liger Kernel is not installed (pip install 'loraga[fast]')"))
    if options.flatten and (why := why_padded(config)):
        faults.append(("trainer.flatten=true", why))
    if faults:
        raise InvalidInput([Fault("configuration", f"{option} does not work here: {why}") for option, why in faults])


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
    step("speed", "blocks are compiled in the first step")


def _checkpointing(every: int) -> str:
    return "gradient checkpoints" + (f" of every {every}th block" if every > 1 else "")


def use_adapter_dtype(model: nn.Module, config: Config) -> None:
    """Has the adapters of a model compute their products in the type that is asked for or suits the base, and says so.

    Args:
        model: after the method has wrapped it.

    Raises:
        ModelError: a type is asked for that this method's adapters cannot compute in.
    """
    wanted = wanted_speed(config).adapter_dtype
    asked = config.trainer.adapter_dtype is not None
    if wanted == torch.float32 or not (asked or method_of(config).output.is_adapter):
        return
    name = str(wanted).removeprefix("torch.")
    try:
        set_adapter_dtype(model, wanted)
    except Unsupported as reason:
        if asked:
            raise ModelError(f"trainer.adapter_dtype={name} does not work here: {reason}") from None
        step("speed", f"products of the adapter in float32: {reason}")
    else:
        step("speed", f"products of the adapter in {name}")


def wanted_speed(config: Config) -> Speed:
    """What the configuration asks for, and what ``speed=auto`` would turn on, whether it works or not."""
    options, auto = config.trainer, config.trainer.speed == "auto"
    causal = config.model.task == "causal_lm"
    return Speed(
        flatten=auto if options.flatten is None else options.flatten,
        chunked_loss=(auto and causal) if options.chunked_loss is None else options.chunked_loss,
        # compiled blocks fuse norms and gates themselves, and torch.compile does not trace Liger's kernels
        liger=(auto and not options.compile) if options.kernels is None else options.kernels == "liger",
        adapter_dtype=getattr(torch, adapter_dtype(config)),
    )


def expected_speed(config: Config, device: torch.device) -> Speed:
    """What will probably be on, for a forecast that loads no weights."""
    options, wanted = config.trainer, wanted_speed(config)
    gpu = device.type == "cuda"
    varlen = gpu and config.model.dtype != "float32"
    flatten = bool(wanted.flatten and (options.flatten or varlen) and why_padded(config) is None)
    return replace(
        wanted,
        flatten=flatten,
        block_mask=flatten and not varlen,
        liger=wanted.liger and gpu and find_spec("liger_kernel") is not None,
    )


def why_padded(config: Config) -> str | None:
    """Why rows cannot be flattened whatever the model is, as far as the configuration tells; None if they may be."""
    if config.model.task != "causal_lm":
        return f"rows of model.task={config.model.task} are padded"
    # before rows are read, their form may not be known; each one that a row format leads to can be flattened
    form = row_form(config.dataset, config.model.task) if is_complete(config.dataset) else None
    if form is not None and not form.flattens():
        return f"{form.__name__} pads rows in its own way, and has none to flatten them"
    if method_of(config).leading_positions:
        return f"method {config.method.name} puts trained vectors before every row"
    return None


def _flatten(model: PreTrainedModel, config: Config, device: torch.device) -> str:
    if why := why_padded(config):
        raise Unsupported(why)
    return use_flattening(model, device, block_mask=bool(config.trainer.flatten))
