"""Rows of an embedding, or of an output head, that train while all others stay as they are.

PEFT copies the complete matrix at every call and puts the trained rows into the copy, and autograd computes a gradient
of that copy. For a vocabulary of 128,000 tokens and a hidden size of 4096 in bfloat16, each is one gigabyte, and a head
is called for every chunk of the loss. Here the frozen matrix is used as it is, and what it gives for the trained tokens
is replaced.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn
from torch.nn import functional

from lora_ga_cli.lora.layers import ADAPTER


def compute_rows(layer: TrainableTokensLayer) -> None:
    """Has PEFT's layer compute without a copy of its matrix, in place.

    A layer of another kind than a plain embedding or a linear layer without a bias, and a call with a merged or
    disabled adapter, are left to PEFT.

    Args:
        layer: the numbers of its tokens are in order.
    """
    base: Any = layer.get_base_layer()
    plain = isinstance(base, nn.Embedding) and base.max_norm is None and not (base.sparse or base.scale_grad_by_freq)
    if plain or (type(base) is nn.Linear and base.bias is None):
        setattr(layer, "forward", _Forward(layer))  # noqa: B010


class _Forward:
    """The forward of a layer with trained rows."""

    def __init__(self, layer: TrainableTokensLayer):
        self.layer = [layer]  # in a list, because a module would become a part of itself
        self.numbers: Tensor | None = None
        """The numbers of the trained tokens, in order, on the device of the last call."""

    def __call__(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        layer: Any = self.layer[0]
        if args or options or layer.disable_adapters or layer.merged or layer.active_adapters != [ADAPTER]:
            return type(layer).forward(layer, x, *args, **options)  # type: ignore[no-any-return]
        base, rows = layer.get_base_layer(), layer.trainable_tokens_delta[ADAPTER]
        if self.numbers is None or self.numbers.device != x.device:
            self.numbers = torch.tensor(layer.token_indices[ADAPTER], device=x.device)
        if isinstance(base, nn.Embedding):
            return _embedded(layer, base, x, rows, self.numbers)
        logits: Tensor = base(x)
        return logits.index_copy(-1, self.numbers, functional.linear(x, rows.to(x.dtype)).to(logits.dtype))


def _embedded(layer: Any, base: nn.Embedding, ids: Tensor, rows: Tensor, numbers: Tensor) -> Tensor:
    """The embeddings (…, hidden) of tokens (…), of which some have trained rows (tokens, hidden)."""
    known: Tensor = base(ids)
    place = torch.searchsorted(numbers, ids).clamp(max=len(rows) - 1)
    padding = base.padding_idx
    indices = layer.token_indices[ADAPTER]
    # the padding token has no gradient in an embedding
    of_padding = indices.index(padding) if padding is not None and padding in indices else None
    trained = functional.embedding(place, rows.to(known.dtype), padding_idx=of_padding)
    scale = layer._get_embed_scale()  # of embeddings that multiply, such as Gemma's
    if scale is not None:
        trained = trained * scale.to(trained.dtype)
    return torch.where((numbers[place] == ids)[..., None], trained, known)
