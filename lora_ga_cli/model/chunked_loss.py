"""The loss of a causal language model at its labelled positions alone, a few at a time.

transformers computes logits at all positions, which for a large vocabulary need more memory than the rest of a forward
and backward pass. Here the model's own forward runs with a stand-in for its backbone, so that whatever lies between
hidden states and logits (bias, soft cap, scale, adapters on the head) stays the model's own code, and is called on the
hidden states of one chunk of positions after another.
"""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from lora_ga_cli.model.chunked_loss_check import difference_of, tolerance_of
from lora_ga_cli.model.chunked_output import Chunking, Forward, forward_slot, output_with_loss
from lora_ga_cli.model.unsupported import Unsupported


def use_chunked_loss(model: PreTrainedModel, tokens: int | None = None) -> None:
    """Changes this instance's forward: given labels, it computes the loss without logits of all positions.

    The output has ``loss`` and no ``logits``; the loss is the mean cross entropy over the same positions as before, or
    the sum divided by ``num_items_in_batch``. A batch without a labelled position has the loss 0 and gradients of 0,
    where transformers' mean is not a number. Without labels, or if tuples or selected logits (``logits_to_keep``) are
    asked for, the forward is the model's own.

    Where nothing behind the hidden states trains, their gradient is computed in the forward pass, chunk by chunk, and
    the head's product once. Otherwise each chunk is computed again in the backward pass. Each call decides, so adapters
    on the head may come later.

    To find the labelled positions, a call waits once for the device. A caller that knows their number passes it as
    ``num_labelled`` (an int; too large a number is no error), and then nothing waits.

    Args:
        tokens: positions of a chunk; None: `chunk_size` of the model's vocabulary.

    Raises:
        Unsupported: this model computes its loss in another way, or a check on a small batch fails.
    """
    own = _own_forward(model)
    sharded = any(isinstance(module, FSDPModule) for module in model.modules())
    tolerance = tolerance_of(model)
    reason = "it has no backbone and head that can be called apart"
    for path in _backbones(model):
        try:
            reason = difference_of(model, Chunking(own, path, 3, sharded), tolerance)
        except torch.OutOfMemoryError:
            raise
        except Unsupported as error:
            reason = str(error)
        except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
            first = str(error).strip().split("\n")[0]
            reason = f"its loss cannot be computed from hidden states alone ({type(error).__name__}: {first})"
        if not reason:
            _install(model, Chunking(own, path, tokens, sharded))
            return
    raise Unsupported(f"{type(model).__name__}: {reason}")


def _own_forward(model: PreTrainedModel) -> Forward:
    if getattr(model.config, "is_encoder_decoder", False):
        raise Unsupported(f"{type(model).__name__} has an encoder, and its labels are not the next tokens")
    if model.get_output_embeddings() is None:
        raise Unsupported(f"{type(model).__name__} has no head that predicts tokens")
    installed = getattr(model, "_chunking", None)
    if installed is not None:
        return installed.forward
    replaced = vars(model).get(forward_slot(model))
    if replaced is None:
        return type(model).forward
    if isinstance(replaced, MethodType) and replaced.__self__ is model:
        return replaced.__func__
    raise Unsupported(f"the forward of this {type(model).__name__} was replaced by another tool")


def _backbones(model: PreTrainedModel) -> list[str]:
    """Where the part of the model that computes hidden states may be, the likeliest place first."""
    paths = {module: path for path, module in model.named_modules() if path}
    parts = [module for module in model.children() if isinstance(module, PreTrainedModel)]
    found = [paths[module] for module in (model.base_model, model.get_decoder(), *parts) if module in paths]
    return list(dict.fromkeys(found))


def _install(model: PreTrainedModel, chunking: Chunking) -> None:
    def forward(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        return _forward(self, *args, **kwargs)

    # callers look at the names of arguments; `functools.wraps` would let accelerate unwrap this function
    forward.__signature__ = inspect.signature(chunking.forward)  # type: ignore[attr-defined]
    model._chunking = chunking  # type: ignore[assignment]
    setattr(model, forward_slot(model), MethodType(forward, model))


def _forward(model: PreTrainedModel, *args: Any, num_labelled: int | None = None, **kwargs: Any) -> Any:
    chunking: Any = model._chunking
    names = list(inspect.signature(chunking.forward).parameters)[1:]
    kwargs = dict(zip(names, args, strict=False)) | kwargs
    as_before = kwargs.get("labels") is None or not _returns_output(model, kwargs)
    keep = kwargs.get("logits_to_keep", 0)
    if as_before or isinstance(keep, Tensor) or keep:
        return chunking.forward(model, **kwargs)
    return output_with_loss(model, chunking, model.get_submodule(chunking.path), kwargs, num_labelled)


def _returns_output(model: PreTrainedModel, kwargs: dict[str, Any]) -> bool:
    wanted = kwargs.get("return_dict")
    return bool(getattr(model.config, "return_dict", True) if wanted is None else wanted)
