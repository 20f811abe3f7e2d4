"""Attention over rows that follow one another without padding, with PyTorch's kernels for variable lengths.

It is one more implementation of attention in transformers, called ``varlen``. Batches that are not flattened are left
to ``sdpa``, with its masks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lora_ga_cli.model.unsupported import Unsupported

NAME = "varlen"
"""The name of the implementation in transformers."""
BOUNDARIES = "cu_seq_lens_q"
"""The argument of a flattened batch that says where each row begins, and where the last one ends."""
LARGEST_HEAD = 256
"""The largest dimension of a head that the kernels know."""

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int, float | None, int | None], Tensor]
"""Causal attention of rows that follow one another.

Its arguments are queries, keys and values of shape (tokens, heads, dimension of a head), where several heads of queries
may share one of keys and values; the boundaries of rows, int32 of shape (rows + 1,); the length of the longest row; the
factor of the scores, or None for the usual one; and the number of tokens up to itself that a token sees, or None for
all. It returns a tensor of the shape of the queries.
"""


def register_varlen(kernel: Kernel | None = None) -> None:
    """Makes the implementation known to transformers.

    Args:
        kernel: computes the attention; None: PyTorch's kernel, for a GPU.

    Raises:
        Unsupported: this PyTorch has none.
    """
    attend = kernel or torch_kernel()

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """Arguments and result are those of every attention function of transformers: heads are dimension 1 of the
        arguments and dimension 2 of the result."""
        bounds = kwargs.get(BOUNDARIES)
        if bounds is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        if reason := _obstacle(module, query, value, kwargs):
            raise Unsupported(reason)
        tensors = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
        result = attend(*tensors, bounds, kwargs["max_length_q"], kwargs.get("scaling"), kwargs.get("sliding_window"))
        return result.unsqueeze(0), None

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def _obstacle(module: nn.Module, query: Tensor, value: Tensor, options: dict[str, Any]) -> str | None:
    """What the kernels do not compute of what a layer asks for."""
    causal = options.get("is_causal")
    wanted = {
        "a soft cap": options.get("softcap") is not None,
        "attention sinks": options.get("s_aux") is not None,
        "a bias by position": options.get("position_bias") is not None,
        "dropout": bool(options.get("dropout")),
        "tokens that see later ones": not (getattr(module, "is_causal", True) if causal is None else causal),
        "values of another size than queries": query.shape[-1] != value.shape[-1],
        f"heads of more than {LARGEST_HEAD} dimensions": query.shape[-1] > LARGEST_HEAD,
    }
    found = [what for what, asked in wanted.items() if asked]
    return f"its attention has {' and '.join(found)}" if found else None


def torch_kernel() -> Kernel:
    """PyTorch's kernel, for float16 and bfloat16 on a CUDA device.

    Raises:
        Unsupported: this PyTorch has none.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        raise Unsupported(f"PyTorch {torch.__version__} has no attention for variable lengths; 2.10 has") from None
    known = inspect.signature(varlen_attn).parameters

    def kernel(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bounds: Tensor,
        longest: int,
        scale: float | None,
        window: int | None,
    ) -> Tensor:
        options: dict[str, Any] = {}
        if "scale" in known:
            options["scale"] = scale
        elif scale is not None and abs(scale * query.shape[-1] ** 0.5 - 1) > 1e-6:
            raise Unsupported(f"PyTorch {torch.__version__} does not scale scores by {scale:.4g}")
        if "window_size" in known:  # tokens before and after a token that it sees; -1 for all
            options["window_size"] = (-1 if window is None else window - 1, 0)
        elif window is not None:
            raise Unsupported(f"PyTorch {torch.__version__} has no window of attention for variable lengths")
        if "is_causal" in known:
            options["is_causal"] = True
        if "enable_gqa" in known:
            options["enable_gqa"] = query.shape[1] != key.shape[1]
        else:
            shared = query.shape[1] // key.shape[1]
            key, value = (tensor.repeat_interleave(shared, dim=1) for tensor in (key, value))
        dtype = _half_type(query, key, value)
        tensors = (tensor.to(dtype).contiguous() for tensor in (query, key, value))
        result: Tensor = varlen_attn(*tensors, bounds, bounds, longest, longest, **options)
        return result.to(query.dtype)

    return kernel


def _half_type(*tensors: Tensor) -> torch.dtype:
    """The type in which the kernel computes: autocast's, or that of the tensors; of float32 ones, bfloat16."""
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    halves = (tensor.dtype for tensor in tensors if tensor.dtype in (torch.float16, torch.bfloat16))
    return next(halves, torch.bfloat16)


@torch.no_grad()
def check_windows(model: PreTrainedModel, padded: dict[str, Any]) -> None:
    """Checks that what a layer's mask leaves out is what the layer tells the attention function.

    A mask may leave out more than padding and later tokens, such as all but the last 4096 tokens. None is read for a
    flattened batch, so the layers must say the same.

    Args:
        model: with this implementation of attention.
        padded: a batch with padding, so that every layer needs a mask.

    Raises:
        Unsupported: they do not, or no layer calls the attention function.
    """
    registered = AttentionInterface()[NAME]
    made: list[tuple[Tensor | None, int | None]] = []
    layers: list[tuple[Tensor | None, int | None]] = []

    def mask(*args: Any, **kwargs: Any) -> Tensor | None:
        result: Tensor | None = sdpa_mask(*args, **kwargs)
        made.append((result, kwargs.get("local_size")))
        return result

    def attention(*args: Any, **kwargs: Any) -> Any:
        layers.append((args[4] if len(args) > 4 else kwargs.get("attention_mask"), kwargs.get("sliding_window")))
        return registered(*args, **kwargs)

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)
    try:
        model(**padded)
    finally:
        AttentionInterface.register(NAME, registered)
        AttentionMaskInterface.register(NAME, sdpa_mask)
    if not layers:
        raise Unsupported("its attention is code of its own")
    for own, window in layers:
        if [size for each, size in made if each is own and own is not None] != [window]:
            raise Unsupported("its masks leave out tokens that its layers do not name")
