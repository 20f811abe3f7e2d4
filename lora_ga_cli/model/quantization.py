"""Quantized base models: quantizing them with bitsandbytes while loading, and reading their weights."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lora_ga_cli.errors import ModelError
from lora_ga_cli.model.stored import STORED, is_doubly_quantized, stored_bits

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from lora_ga_cli.config.schema import ModelConfig
    from lora_ga_cli.model.targets import Target

BITS = {"nf4": 4 + 32 / 64, "int8": 8.0}
"""Bits per weight, with its scales: NF4 has a float32 scale for every 64 weights, int8 has one for each row."""
DOUBLE_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits per weight with double quantization (QLoRA, arXiv 2305.14314, section 3): scales take 8 bits, and every 256 of
them have a float32 scale."""


def loading_arguments(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that make it quantize the weights, or load those that are quantized in its files
    onto the device; empty for a base that is not quantized.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if config.quantization is None:
        return {}
    placed = {"device_map": {"": str(device)}}
    if config.quantization == STORED:
        return placed
    if importlib.util.find_spec("bitsandbytes") is None:
        kind = config.quantization
        raise ModelError(f"model.quantization={kind} needs bitsandbytes: pip install 'loraga[quantized]'")
    from transformers import BitsAndBytesConfig

    how = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, config.dtype),
            bnb_4bit_use_double_quant=config.double_quantization,
        )
        if config.quantization == "nf4"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    return {"quantization_config": how, **placed}


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Has bitsandbytes compute 4-bit layers in a type, whatever type their files name."""
    for module in model.modules():
        if hasattr(module, "compute_dtype") and hasattr(module, "compute_type_is_set"):
            layer: Any = module
            layer.compute_dtype, layer.compute_type_is_set = dtype, True


def disable_cpu_repacking(model: nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights on a CPU, which it does in a forward pass without gradients."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010


def dense(target: Target) -> Tensor:
    """A target's weight W, (d_out, d_in), in a floating-point type, whatever type it is stored in; (E, d_out, d_in) of
    a target that is the layers of E experts."""
    weight = target.weight.detach()
    if not target.quantized:
        return target.oriented(weight if target.expert is None else weight[target.expert])
    if target.packed:  # torchao's
        return weight.dequantize()
    if weight.dtype == torch.int8:  # PEFT's function loses the scales of a layer on a CPU
        return weight.float() * target.scales[0].to(weight.device)[:, None] / 127
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(target.module).detach()


def count_parameters(model: nn.Module) -> int:
    """The number of a model's parameters; 4-bit ones are stored several to a number."""
    return sum(
        parameter.numel() * (2 * parameter.element_size() if type(parameter).__name__ == "Params4bit" else 1)
        for parameter in model.parameters()
    )


def bits_per_weight(config: ModelConfig, settings: PreTrainedConfig) -> float | None:
    """Bits of a quantized weight in memory; None if weights are not quantized.

    Args:
        settings: the base's configuration in transformers.
    """
    if config.quantization is None:
        return None
    if config.quantization == STORED:
        of_4_bits = DOUBLE_BITS if is_doubly_quantized(settings) else BITS["nf4"]
        return of_4_bits if stored_bits(settings) == 4 else BITS["int8"]
    return DOUBLE_BITS if config.double_quantization else BITS[config.quantization]
