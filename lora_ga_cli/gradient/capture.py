"""Reading a linear layer's input and the gradient at its output, without touching the layer or its weight."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_ga_cli.model.checkpointing import CHECKPOINT
from lora_ga_cli.model.targets import Target

OnGradient = Callable[[str, Tensor, Tensor], None]
"""Takes a layer's name, its input (…, d_in) and the gradient (…, d_out) of the loss at its output."""
OnLayerGradient = Callable[[Tensor, Tensor], None]
"""The same for one layer: takes its input and the gradient at its output."""


@contextlib.contextmanager
def capture_gradients(model: nn.Module, targets: Mapping[str, Target], on_gradient: OnGradient) -> Iterator[None]:
    """Calls ``on_gradient`` for every target as backpropagation passes it; removes its hooks on leaving.

    The gradient of ``y = W x`` is ``dL/dW = Σ dᵀ x`` over tokens, with d the gradient at y. So no weight needs a
    gradient of its own, whatever type it is stored in. With gradient checkpointing, reentrant or not, the input is not
    kept but computed again, and every token is captured once.
    """
    plain_hooks = False not in checkpoint_kinds(model)
    # autograd computes a gradient for the result of an operation if one of its inputs needs one, so this tensor makes
    # every captured output need one, even if all weights are frozen
    anchor = torch.zeros((), requires_grad=True)
    with contextlib.ExitStack() as hooks:
        for name, target in targets.items():
            hook = _forward_hook(plain_hooks, functools.partial(on_gradient, name), anchor)
            hooks.callback(target.module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def checkpoint_kinds(model: nn.Module) -> set[bool]:
    """How a transformers model checkpoints activations: {True} with reentrant checkpoints, {False} with others, {} not
    at all."""
    functions = [
        vars(module).get(CHECKPOINT) for module in model.modules() if getattr(module, "gradient_checkpointing", False)
    ]
    return {getattr(function, "keywords", {}).get("use_reentrant", True) for function in functions if function}


def _forward_hook(plain_hooks: bool, on_gradient: OnLayerGradient, anchor: Tensor) -> Callable[..., Tensor | None]:
    """A forward hook that arranges for ``on_gradient`` to be called in the backward pass.

    Args:
        plain_hooks: where the output needs a gradient, use a hook on it, which costs half as much as `_Capture`.
    """

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None  # the first forward pass of a reentrant checkpoint
        x = args[0] if args else kwargs["input"]
        if plain_hooks and output.requires_grad:
            output.register_hook(functools.partial(on_gradient, x.detach()))
            return None
        captured: Tensor = _Capture.apply(output, x, anchor, on_gradient)
        return captured

    return hook


class _Capture(torch.autograd.Function):
    """The identity on a layer's output; its backward pass calls ``on_gradient`` with what arrives there.

    It keeps the input as autograd keeps tensors, so that a checkpoint that is not reentrant drops it and computes it
    again. (A plain hook on the output would keep it in memory.)
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, anchor: Tensor, on_gradient: OnLayerGradient) -> Tensor:
        ctx.save_for_backward(x)
        ctx.on_gradient = on_gradient
        return output.clone()  # an activation could not overwrite a view in place

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (x,), (grad_output,) = ctx.saved_tensors, grads
        ctx.on_gradient(x, grad_output)
        return grad_output, None, None, None
