"""Sums of LoRA adapters: the links of a chain, added to a base, written as one adapter, or truncated to a lower rank.

A link changes the weight of a layer by ``s·B A``. Here a change is held as `LowRank`, with s inside the left factor,
so that changes of different ranks and s add up by putting their factors side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from torch.nn import functional

from lora_ga_cli.lora.description import check_keys, read_lora_description
from lora_ga_cli.lora.experts import unpack
from lora_ga_cli.lora.export import WEIGHTS_FILE, describe_ranks, write_adapter
from lora_ga_cli.lora.layers import ADAPTER, PREFIX, lora_keys, lora_layers, target_of, weight_of
from lora_ga_cli.model.targets import Target, find_targets
from lora_ga_cli.model.tensor_files import read_tensors

PREVIOUS = ("previous_links_left", "previous_links_right")
"""Names of the buffers on a base layer that keep the links before the one that trains."""


@dataclass(frozen=True)
class LowRank:
    """A change of a weight: ``left @ right``.

    Args:
        left: (d_out, rank), float32 on the CPU; the scaling s is inside.
        right: (rank, d_in), float32 on the CPU.
    """

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        return self.right.shape[0]

    def product(self) -> Tensor:
        """The change (d_out, d_in), accumulated in float64."""
        return self.left.double() @ self.right.double()

    def truncated(self, rank: int) -> tuple[LowRank, float]:
        """The best approximation of a lower rank (Eckart and Young), and its relative error in the Frobenius norm.

        By QR decompositions of both factors and an SVD of the small product between them, in float64.
        """
        if rank >= self.rank:
            return self, 0.0
        left_q, left_r = torch.linalg.qr(self.left.double())  # (d_out, k), (k, rank)
        right_q, right_r = torch.linalg.qr(self.right.double().T)  # (d_in, k), (k, rank)
        u, singular, vh = torch.linalg.svd(left_r @ right_r.T)
        root = singular[:rank].sqrt()
        left = (left_q @ u[:, : len(singular)])[:, :rank] * root
        right = root[:, None] * (vh[: len(singular)] @ right_q.T)[:rank]
        total = float(singular.norm())
        error = float(singular[rank:].norm()) / total if total > 0 else 0.0
        return LowRank(left.float().contiguous(), right.float().contiguous()), error


Change = Mapping[str, LowRank]
"""The changes of a model's weights, by layer name."""


def read_adapter(folder: Path) -> dict[str, LowRank]:
    """The changes that a saved LoRA adapter makes, by layer name."""
    config = read_lora_description(folder)
    tensors = read_tensors(folder / WEIGHTS_FILE)
    check_keys(config, folder, tensors)
    changes = {}
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            a, b = (tensors[item].float() for item in lora_keys(name))
            changes[name] = LowRank(layer_scaling(config, name, a.shape[0]) * b, a)
    return changes


def with_alpha_1(config: LoraConfig, changes: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """The tensors of an adapter with B times the rank and s, and an alpha of 1, for a program that knows no other s
    than ``alpha / rank``. The configuration is changed in place.

    Args:
        changes: as `read_adapter` gives them, with s inside.
    """
    tensors = {}
    for name, change in changes.items():
        key_a, key_b = lora_keys(name)
        tensors[key_a], tensors[key_b] = change.right.contiguous(), (change.left * change.rank).contiguous()
    config.lora_alpha, config.use_rslora, config.alpha_pattern = 1, False, {}
    return tensors


def layer_scaling(config: LoraConfig, name: str, rank: int) -> float:
    """The s of a layer of a saved adapter, as PEFT finds it: it matches the patterns against the layer's name."""
    patterns: dict[str, Any] = config.alpha_pattern or {}
    # a layer that PEFT adapts as a parameter is known to it by the name of its weight
    keys = (get_pattern_key(list(patterns), known) for known in (name, f"{name}.weight"))
    alpha = next((patterns[key] for key in keys if key in patterns), config.lora_alpha)
    return float(alpha) / (rank**0.5 if config.use_rslora else rank)


def summed(changes: Sequence[Change]) -> dict[str, LowRank]:
    """The sum of changes: factors side by side, so that ranks add up and nothing is rounded."""
    names = dict.fromkeys(name for change in changes for name in change)
    result = {}
    for name in names:
        parts = [change[name] for change in changes if name in change]
        result[name] = LowRank(
            torch.cat([part.left for part in parts], dim=1), torch.cat([part.right for part in parts])
        )
    return result


class Total:
    """The changes of the links that are trained so far, and their sum, which grows with every link.

    The products are added one after another in float64. However many were added before, and in whatever process, the
    sum is the same to the bit.

    Args:
        keep_products: whether the sum of every layer (d_out, d_in) is kept on the CPU in float64, twice the memory of a
            float32 base, so that only the new links are multiplied next time. Without it, each layer's sum is computed,
            added and dropped before that of the next layer.
    """

    def __init__(self, *, keep_products: bool = False) -> None:
        self.keep_products = keep_products
        self.links = 0
        """How many links were added."""
        self._changes: dict[str, list[LowRank]] = {}
        self._products: dict[str, tuple[int, Tensor]] = {}  # how many of the changes are in the sum (d_out, d_in)

    def add(self, change: Change) -> None:
        """Adds the changes that one link makes."""
        self.links += 1
        for name, of_layer in change.items():
            self._changes.setdefault(name, []).append(of_layer)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Adds the sum to a base, in place.

        A float32 weight becomes the original weight plus the sum of all changes, rounded once: however many links there
        were, no error accumulates. Any other weight (half precision, quantized, sharded) stays as it is, because adding
        would round most of a small change away; the layer then adds the product to its output.

        Args:
            model: the original base, to which nothing was added.
        """
        if not self._changes:
            return
        for name, target in find_targets(model, list(self._changes)).items():
            if is_plain_float32(target):
                self._add_to_weight(target)
            else:
                _add_to_output(target, summed([{name: change} for change in self._changes[name]])[name])

    def _add_to_weight(self, target: Target) -> None:
        total = target.oriented(self._product(target.name).to(target.weight.device))
        target.weight.copy_((target.weight.double() + total).float())

    def _product(self, name: str) -> Tensor:
        changes = self._changes[name]
        done, total = self._products[name] if name in self._products else (1, changes[0].product())
        for change in changes[done:]:
            total += change.product()
        if self.keep_products:
            self._products[name] = len(changes), total
        return total


def is_plain_float32(target: Target) -> bool:
    """Whether a layer's weight is one complete float32 tensor, to which a change can be added."""
    return target.weight.dtype == torch.float32 and not target.quantized and not target.sharded


@torch.no_grad()
def merge_layers(model: PeftModel, dtype: torch.dtype) -> None:
    """Merges the standard LoRA layers of a loaded adapter into its base, in place, and makes the adapter zero.

    (PEFT rounds the change to the base's type before it adds it. Here the sum is accumulated in float64, whatever the
    base's type, and rounded once.)

    Args:
        dtype: the type of the merged weights.
    """
    for name, layer in lora_layers(model).items():
        if layer.lora_variant or not isinstance(layer.lora_A, nn.ModuleDict):
            continue  # magnitudes and triplets are merged by PEFT
        target = target_of(name, layer)
        a, b = unpack(layer, *(weight_of(pair).double() for pair in (layer.lora_A, layer.lora_B)))
        change = layer.scaling[ADAPTER] * (b @ a)
        target.weight.data = (target.weight.double() + target.oriented(change)).to(dtype)
        weight_of(layer.lora_B).zero_()


def write_sum(folder: Path, like: Path, changes: Sequence[Change], *, max_rank: int | None = None) -> tuple[int, float]:
    """Writes the sum of changes as one standard LoRA adapter.

    The rank of a layer is the sum of the ranks, at most the shorter side of its weight. Where the sum of the ranks is
    larger than that side, the factors are those of `LowRank.truncated`, whose product is the same up to the rounding of
    float32: no matrix has a higher rank than its shorter side.

    Args:
        like: the saved adapter of the last change, whose configuration the sum takes, apart from ranks and layers.
        max_rank: the rank that every layer is truncated to; None loses nothing.

    Returns:
        The largest rank that was written, and the relative error of the truncation (Frobenius norm, over all layers).
    """
    config = read_lora_description(like)
    total, tensors, ranks, scalings = summed(changes), {}, {}, {}
    squared_error = squared_norm = 0.0
    for name, change in total.items():
        shortest = min(change.left.shape[0], change.right.shape[1])
        written, error = change.truncated(shortest if max_rank is None else min(max_rank, shortest))
        if max_rank is not None:  # layers that keep their rank count too
            squared_norm += (norm := float(change.product().norm())) ** 2
            squared_error += (error * norm) ** 2
        ranks[name], scalings[name] = written.rank, 1.0
        key_a, key_b = lora_keys(name)
        tensors[key_a], tensors[key_b] = written.right.contiguous(), written.left.contiguous()
    describe_ranks(config, ranks, scalings)
    config.inference_mode = True
    stored = read_tensors(like / WEIGHTS_FILE)
    if any(lora_keys(name)[0] not in stored for name in total):  # layers that only other links adapt
        config.target_modules = list(total)
    others = {key: tensor for key, tensor in stored.items() if ".lora_" not in key}
    write_adapter(folder, tensors | others, config)
    return max(ranks.values()), (squared_error / squared_norm) ** 0.5 if squared_norm else 0.0


def _add_to_output(target: Target, change: LowRank) -> None:
    device = target.weight.device
    for buffer, tensor in zip(PREVIOUS, (change.left, change.right), strict=True):
        target.module.register_buffer(buffer, tensor.to(device), persistent=False)
    target.module.register_forward_hook(_with_previous_links)


def _with_previous_links(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    left, right = (getattr(module, buffer) for buffer in PREVIOUS)
    x = inputs[0].to(right.dtype)
    return output + functional.linear(functional.linear(x, right), left).to(output.dtype)
