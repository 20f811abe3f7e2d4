"""Reading a linear layer's input and the gradient at its output, without touching the layer or its weight."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_ga_cli.model.targets import Target

Receive = Callable[[str, Tensor, Tensor], None]
"""Takes a layer's name, its input x (…, d_in) and the gradient d (…, d_out) of the loss at its output."""
ReceiveOne = Callable[[Tensor, Tensor], None]


@contextlib.contextmanager
def tapped(model: nn.Module, targets: Mapping[str, Target], receive: Receive) -> Iterator[None]:
    """Calls ``receive`` for every target as backpropagation passes it; removes its hooks on leaving.

    The gradient of ``y = W x`` is ``dL/dW = Σ dᵀ x`` over tokens, so no weight needs a gradient of its own, whatever it
    is stored in. With gradient checkpointing, reentrant or not, the input is not kept but computed again, and every
    token passes once.
    """
    light = False not in checkpoint_kinds(model)
    # what is computed from a tensor that needs a gradient gets one, even where every weight is frozen
    anchor = torch.zeros((), requires_grad=True)
    with contextlib.ExitStack() as hooks:
        for name, target in targets.items():
            hook = _hook(light, functools.partial(receive, name), anchor)
            hooks.callback(target.module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def checkpoint_kinds(model: nn.Module) -> set[bool]:
    """How a transformers model computes activations again: {True} reentrantly, {False} not so, {} not at all."""
    functions = [
        vars(module).get("_gradient_checkpointing_func")
        for module in model.modules()
        if getattr(module, "gradient_checkpointing", False)
    ]
    return {getattr(function, "keywords", {}).get("use_reentrant", True) for function in functions if function}


def _hook(light: bool, receive: ReceiveOne, anchor: Tensor) -> Callable[..., Tensor | None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None  # the first forward pass of a reentrant checkpoint
        x = args[0] if args else kwargs["input"]
        if light and output.requires_grad:
            output.register_hook(functools.partial(receive, x.detach()))
            return None
        tapped_output: Tensor = _Tap.apply(output, x, anchor, receive)
        return tapped_output

    return hook


class _Tap(torch.autograd.Function):
    """The identity on a layer's output; on the way back it hands over what passes.

    It keeps the input as autograd keeps tensors, so that a checkpoint that is not reentrant computes it again. (A plain
    hook on the output, which costs half as much, would hold it.)
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, anchor: Tensor, receive: ReceiveOne) -> Tensor:
        ctx.save_for_backward(x)
        ctx.receive = receive
        return output.clone()  # a view could not be overwritten by an activation

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (x,), (d,) = ctx.saved_tensors, grads
        ctx.receive(x, d)
        return d, None, None, None
