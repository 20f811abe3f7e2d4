"""LoRA with initial factors of both A and B, whose product is subtracted so that nothing changes at step 0."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from lora_ga_cli.config.schema import Config
from lora_ga_cli.lora.layers import lora_layers
from lora_ga_cli.lora.offset import InitialPair, LoraInit, compute_init, prepare_empty, train_differences
from lora_ga_cli.methods.base import ANY_LINK, InitData, Link, PreparedModel
from lora_ga_cli.methods.lora import Lora, LoraOptions


class NonzeroInitOptions(LoraOptions):
    """Options of every method that initializes both factors away from zero."""

    offset: Literal["auto", "base", "adapter"] = "auto"
    """Where the product of the initial factors is subtracted, so that nothing changes at step 0. ``base``: in the
    base's weights. ``adapter``: in the adapter, which computes only the difference that training makes; the base stays
    as it is. ``auto``: ``base`` for a float32 base; ``adapter`` in half precision, where a shifted weight rounds too
    coarsely, on a quantized or sharded base, and with ``adapter_dropout``."""


class NonzeroInit(Lora):
    """A LoRA method that computes initial factors. A subclass defines how: see `pairs`."""

    @abstractmethod
    def pairs(self, link: Link, source: Any) -> InitialPair:
        """The function that gives the initial factors of each layer.

        Args:
            source: what `source` returned.
        """

    def initialize(self, model: PeftModel, link: Link, source: Any, data: InitData) -> LoraInit | None:
        return compute_init(model, self.pairs(link, source), offset=self.offset)

    @property
    def offset(self) -> str:
        """``method.offset``, with ``auto`` decided."""
        config = self.config
        if self.options.offset != "auto":
            return str(self.options.offset)
        # dropout would reach what the adapter adds and not what was subtracted from the base
        can_subtract = config.model.quantization is None and not config.model.shard and config.adapter_dropout == 0
        return "base" if can_subtract and config.model.dtype == "float32" else "adapter"

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        yield from super().check(config)
        options: Any = config.method
        if options.offset != "base":
            return
        if config.adapter_dropout > 0:
            yield "adapter_dropout needs method.offset=adapter: in the base, the subtracted part would have no dropout"
        if config.model.quantization is not None:
            given = f"model.quantization={config.model.quantization}"
            yield f"{given}: nothing can be subtracted from quantized weights, so use method.offset=adapter"
        if config.model.shard:
            yield "model.shard=true: nothing can be subtracted from sharded weights, so use method.offset=adapter"

    def attach_empty(self, model: PreTrainedModel, link: Link = ANY_LINK) -> nn.Module:
        with torch.device("meta"):
            wrapped = self.attach(model, link)
            for layer in lora_layers(wrapped).values():
                train_differences(layer, self.offset)
            prepare_empty(wrapped)
        return wrapped

    def saved_size(self, prepared: PreparedModel) -> int | None:
        return 2 * max(self.built_size(prepared.model))  # the initial factors are saved beside the trained ones

    def describe_saved(self, size: int) -> str:
        return f"{size // 2} trained + {size // 2} initial"

    def describe_init(self) -> str:
        where = {"base": "the base weights", "adapter": "the adapter"}[self.offset]
        return f"initialized from {self.describe_source()}; offset subtracted in {where}"

    @abstractmethod
    def describe_source(self) -> str:
        """What the initial factors are computed from, in a few words."""
