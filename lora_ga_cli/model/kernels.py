"""Liger Kernel's norms, gates and rotary positions in the place of PyTorch's (arXiv 2410.10989)."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from lora_ga_cli.model.unsupported import Unsupported

INSTALL = "pip install 'loraga[fast]'"
ORIGINAL = "loraga_original"
"""The attribute of a replaced function that holds transformers' own."""
SILU, GELU = ("silu", "swish"), ("gelu_pytorch_tanh",)
"""The activations that Liger's gates compute. It does not look which one a model has."""


def use_liger(model: nn.Module) -> None:
    """Makes a loaded model compute norms, gated products and rotary positions with Liger's Triton kernels.

    Only this model's norms and gates change. Rotary positions are a function of transformers' module, which every model
    of the same architecture calls: models that are loaded later in this process use Liger's too, on a GPU, until
    `use_torch` is called for one of them. The loss stays as it is.

    Args:
        model: as transformers loaded it, before any adapter is on it; its weights and their names do not change.

    Raises:
        Unsupported: Liger is not installed or does not know the model, or the model is not on a CUDA device.
    """
    if importlib.util.find_spec("liger_kernel") is None:
        raise Unsupported(f"Liger Kernel is not installed ({INSTALL})")
    if not on_cuda(model):
        raise Unsupported("Liger's kernels need a CUDA device")
    apply = _function_for(model)
    use_torch(model)  # what an earlier model has replaced
    code = _code_of(model)
    wanted = _wanted(model, inspect.signature(apply).parameters)
    if code is None or not wanted:
        raise Unsupported(f"Liger has no kernels for the code of {type(model).__name__}")
    before = dict(vars(code))
    off = dict.fromkeys(("cross_entropy", "fused_linear_cross_entropy"), False)
    known = {name: value for name, value in off.items() if name in inspect.signature(apply).parameters}
    apply(model=model, **wanted, **known)
    _limit(code, before)


def on_cuda(model: nn.Module) -> bool:
    """Whether a model is on a CUDA device."""
    return next(model.parameters()).device.type == "cuda"


def use_torch(model: nn.Module) -> None:
    """Puts back the functions that `use_liger` replaced for all models of this model's architecture."""
    code = _code_of(model)
    for name, value in list(vars(code).items()) if code is not None else []:
        if (original := getattr(value, ORIGINAL, None)) is not None:
            setattr(code, name, original)


def _function_for(model: nn.Module) -> Callable[..., None]:
    """Liger's public function for the type of a model.

    Raises:
        Unsupported: there is none.
    """
    from liger_kernel.transformers import monkey_patch

    kind = getattr(getattr(model, "config", None), "model_type", None)
    function: Callable[..., None] | None = monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN.get(kind)
    if function is None:
        raise Unsupported(f"Liger has no kernels for models of type {kind}")
    return function


def _code_of(model: nn.Module) -> ModuleType | None:
    """transformers' module of a model's class; None for code that came with the model."""
    names = (parent.__module__ for parent in type(model).__mro__)  # of a sharded model, the class is a new one
    found = next((name for name in names if name.startswith("transformers.models.")), None)
    return sys.modules.get(found) if found is not None else None


def _wanted(model: nn.Module, parameters: Any) -> dict[str, bool]:
    """What Liger's function for this model should replace. Gates of another activation are left as they are."""
    config: Any = getattr(model, "config", None)
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    wanted = {
        "rope": True,
        "rms_norm": True,
        "layer_norm": True,
        "swiglu": activation in SILU,
        "geglu": activation in GELU,
    }
    return {name: value for name, value in wanted.items() if name in parameters}


def _limit(code: ModuleType, before: dict[str, Any]) -> None:
    """Takes back what was replaced for all models of an architecture: its classes, and functions on other devices."""
    for name, value in before.items():
        now = getattr(code, name)
        if now is value:
            continue
        both = isinstance(value, FunctionType) and isinstance(now, FunctionType)
        setattr(code, name, _by_device(now, value) if both else value)


def _by_device(on_gpu: Callable[..., Any], elsewhere: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls one of two, by the device of its first argument."""

    @functools.wraps(elsewhere)
    def chosen(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (on_gpu if first.is_cuda else elsewhere)(first, *args, **kwargs)

    setattr(chosen, ORIGINAL, elsewhere)
    return chosen
