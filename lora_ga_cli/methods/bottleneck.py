"""Bottleneck adapters (Houlsby et al. 2019, arXiv 1902.00751), which PEFT does not have.

There are two in each block (three in T5's decoder): behind the projection that ends its attention, and behind the one
that ends its feed-forward layer, before the residual connection. Each adds ``W_up · gelu(W_down · h + b_down) + b_up``.
``W_up`` begins at zero, so that nothing changes before the first step (the paper begins near zero). Normalizations stay
frozen, which leaves ``2 · d_model · r + r + d_model`` parameters for each module (LoRA, arXiv 2106.09685, section 5.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lora_ga_cli.config.schema import MethodOptions
from lora_ga_cli.errors import TargetError
from lora_ga_cli.methods.base import AdapterOutput
from lora_ga_cli.methods.custom import CustomAdapter, names, positive
from lora_ga_cli.model.blocks import blocks
from lora_ga_cli.model.targets import ALL_LINEAR, find_targets
from lora_ga_cli.registry import METHODS

SUBLAYER_ENDS = (
    "o_proj", "down_proj",  # Llama, Mistral, Qwen, Gemma
    "attn.c_proj", "mlp.c_proj",  # GPT-2
    "out_proj", "fc2",  # OPT
    "attention.dense", "dense_4h_to_h",  # GPT-NeoX
    "self_attn.dense", "self_attention.dense",  # Phi, Falcon, Bloom
    "fc_out",  # GPT-J
    "SelfAttention.o", "EncDecAttention.o", "wo",  # T5
    "attention.output.dense", "output.dense",  # BERT
)  # fmt: skip
"""Endings of the names of projections that end a block's attention or feed-forward layer, by family."""


@METHODS.register("bottleneck")
class BottleneckAdapters(CustomAdapter):
    """A small network of width ``rank`` behind each block's attention and feed-forward layer."""

    class Options(MethodOptions):
        """Bottleneck adapters (arXiv 1902.00751)."""

        type: Literal["bottleneck"] = "bottleneck"

    uses = frozenset({"rank", "target_modules"})

    @property
    def output(self) -> AdapterOutput:
        return AdapterOutput("bottleneck adapters", "loraga", mergeable=False, size="width")

    def settings(self, model: PreTrainedModel) -> dict[str, Any]:
        return {"modules": places(model, self.config.target_modules), "width": self.config.rank}

    @classmethod
    def insert(cls, model: nn.Module, settings: Mapping[str, Any]) -> None:
        insert(model, names(settings, "modules"), positive(settings, "width"))

    def built_size(self, model: nn.Module) -> list[int]:
        return [item.shape[0] for name, item in model.named_parameters() if name.endswith(".bottleneck.down.weight")]

    def describe(self, model: nn.Module) -> str:
        widths = self.built_size(model)
        return f"width {widths[0]}, {len(widths)} adapters"

    def describe_init(self) -> str:
        return "initialized as the base computes (W_up zero)"


class Bottleneck(nn.Module):
    """Computes an adapter's output from a projection's output h (…, d); see the docstring of the module.

    Args:
        size: d.
        width: r.
    """

    def __init__(self, size: int, width: int, device: torch.device):
        super().__init__()
        self.down = nn.Linear(size, width, device=device)
        self.up = nn.Linear(width, size, device=device)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: Tensor) -> Tensor:
        added = self.up(functional.gelu(self.down(h.to(self.down.weight.dtype))))
        return h + added.to(h.dtype)


def places(model: nn.Module, target_modules: str | Sequence[str]) -> list[str]:
    """The projections that get an adapter: those asked for, or with ``all-linear`` the ends of every sublayer.

    Raises:
        TargetError: not all of them are known for this model.
    """
    if target_modules != ALL_LINEAR:
        return list(find_targets(model, target_modules))
    names = list(find_targets(model))
    found = [name for name in names if any(name == end or name.endswith(f".{end}") for end in SUBLAYER_ENDS)]
    count = len(blocks(model))
    complete = all(sum(f".{number}." in f".{name}" for name in found) >= 2 for number in range(count))
    if not found or not complete:
        endings = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
        raise TargetError(
            f"where {type(model).__name__}'s attention and feed-forward layers end is not known: name these "
            f"projections with target_modules=[NAME, NAME], from {endings}"
        )
    return found


def insert(model: nn.Module, modules: Sequence[str], width: int) -> None:
    """Puts adapters of a width behind modules of a model, in place."""
    for name in modules:
        (target,) = find_targets(model, [name]).values()
        target.module.bottleneck = Bottleneck(target.shape[0], width, target.weight.device)
        target.module.register_forward_hook(_add)


def _add(module: Any, _: Any, output: Tensor) -> Tensor:
    added: Tensor = module.bottleneck(output)
    return added
