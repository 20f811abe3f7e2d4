"""A forecast of the memory and time that estimation and training take, from the shapes of a model alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lora_ga_cli.model.unsupported import Unsupported

EFFICIENCY = 0.6
"""Share of a large product's speed that a complete model reaches: 7B shapes in passes of 8,192 tokens on an H100."""
CALL_COST = 3.0
"""Time of an operator in a model, with its modules and autograd around it, relative to the smallest one alone. Between
2.4 and 5 on an H100, by model and pass: where the CPU is what limits, a forecast of the time is a rough one."""


@dataclass(frozen=True)
class Memory:
    """The parts of a peak of memory, in bytes."""

    weights: int
    states: int
    """Trained parameters with gradients and optimizer moments; in the estimation, sums of gradients or sketches."""
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.states + self.activations


@dataclass(frozen=True)
class Work:
    """The work of a forward pass.

    Args:
        flops: floating-point operations.
        calls: operators launched.
    """

    flops: float
    calls: int


@dataclass(frozen=True)
class Pace:
    """The speed of a device.

    Args:
        flops: floating-point operations per second in large products.
        call: seconds to launch the smallest operator.
    """

    flops: float
    call: float

    def seconds(self, work: Work, forwards: float) -> float:
        """Seconds for ``forwards`` forward passes; a backward pass without weight gradients counts as one."""
        computing = work.flops / (self.flops * EFFICIENCY)
        return forwards * max(computing, work.calls * self.call * CALL_COST)


def weight_bytes(model: nn.Module, quantized: Iterable[nn.Parameter] = (), bits: float | None = None) -> int:
    """Bytes of all parameters and buffers.

    Args:
        quantized: parameters that will take ``bits`` bits per weight instead of their present type.
    """
    sizes = {id(parameter): parameter.numel() for parameter in quantized} if bits is not None else {}
    tensors: Iterable[Tensor] = [*model.parameters(), *model.buffers()]
    unchanged = sum(tensor.numel() * tensor.element_size() for tensor in tensors if id(tensor) not in sizes)
    return unchanged + round(sum(sizes.values()) * (bits or 0) / 8)


def state_bytes(model: nn.Module) -> int:
    """Bytes of the gradients of trainable parameters and of AdamW's two moments, each as large as the parameters."""
    return sum(
        3 * parameter.numel() * parameter.element_size() for parameter in model.parameters() if parameter.requires_grad
    )


def forward_work(model: nn.Module, rows: int, tokens: int, *, task: str) -> Work:
    """The work of a forward pass on ``rows`` rows of ``tokens`` tokens; the model is on the meta device."""
    counter, calls = FlopCounterMode(display=False), _OperatorCounter()
    with counter, calls, torch.no_grad():
        forward_shapes(model, rows, tokens, task=task)
    return Work(float(counter.get_total_flops()), calls.count)


def measure_pace(device: torch.device, dtype: torch.dtype) -> Pace:
    """Times a large product and the smallest operators on a device; takes a fraction of a second."""
    side = 4096 if device.type == "cuda" else 1024
    left, right, small = (torch.ones(size, size, device=device, dtype=dtype) for size in (side, side, 1))
    product = _fastest(lambda: left @ right, 5, device)
    call = _fastest(lambda: [small.add_(1) for _ in range(200)], 3, device) / 200
    return Pace(2 * side**3 / product, call)


def forward_shapes(model: nn.Module, rows: int, tokens: int, *, task: str, loss: bool = True) -> None:
    """A forward pass of a model on the meta device, which computes shapes alone.

    Args:
        loss: whether the model gets labels.

    Raises:
        Unsupported: its code reads values, which weights without memory do not have.
    """
    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            # it reads values, which meta tensors do not have
            setattr(module, "warn_if_padding_and_no_attention_mask", lambda *_: None)  # noqa: B010
    ids = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
    labels = torch.zeros(rows, dtype=torch.long, device="meta") if task == "sequence_classification" else ids
    try:
        with torch.device("meta"), _GroupedProducts():
            model(input_ids=ids, labels=labels if loss else None)
    except Exception as error:  # of code that is not known here
        first = str(error).strip().split("\n")[0]
        raise Unsupported(f"the model does not run without weights ({type(error).__name__}: {first})") from error


class _GroupedProducts(TorchFunctionMode):
    """Computes the shape of a product of every token with the weight of its expert, in every type.

    On the meta device torch knows that product in bfloat16 alone. It costs as much as one with the weight of a single
    expert, and keeps the same for the backward pass.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch._grouped_mm:
            tokens, weights = args[:2]
            return tokens @ weights[0]
        return function(*args, **(kwargs or {}))


def _fastest(function: Callable[[], object], times: int, device: torch.device) -> float:
    seconds = []
    for _ in range(times + 1):
        began = time.perf_counter()
        function()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


class _OperatorCounter(TorchDispatchMode):
    """Counts the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))
