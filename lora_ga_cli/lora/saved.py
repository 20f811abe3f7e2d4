"""A saved LoRA adapter of any program, layer by layer: what it changes of each weight, and how its files name it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_ga_cli.errors import RunError
from lora_ga_cli.lora.convert import UNSUPPORTED_OPTIONS
from lora_ga_cli.lora.description import (
    NOT_LOADED,
    check_expressions,
    check_keys,
    described,
    read_lora_description,
    refused,
)
from lora_ga_cli.lora.experts import experts_of, unpack
from lora_ga_cli.lora.export import CONFIG_FILE, WEIGHTS_FILE
from lora_ga_cli.lora.layers import (
    ADAPTER,
    FACTOR_A,
    FACTOR_B,
    PREFIX,
    base_targets,
    factor_keys,
    layers_of_keys,
    lora_keys,
    lora_layers,
)
from lora_ga_cli.lora.links import LowRank, layer_scaling
from lora_ga_cli.lora.peft_targets import peft_names, without_false_warnings
from lora_ga_cli.model.targets import Target
from lora_ga_cli.model.tensor_files import read_tensors

MAGNITUDE = ".lora_magnitude_vector"
EMBEDDING = ".lora_embedding_"
LORA_BIAS = ".lora_B.bias"


@dataclass(frozen=True)
class SavedLayer:
    """What an adapter adds to one layer, or to the layers of all experts of a parameter.

    Args:
        name: the full name of the layer, or of the parameter.
        pattern_name: what PEFT matches ``rank_pattern`` and ``alpha_pattern`` against.
        keys: the names of A and B in the file.
        changes: one, or one for each expert.
        is_experts: whether the changes are those of experts.
        magnitude: DoRA's magnitudes (d_out,), or None.
    """

    name: str
    pattern_name: str
    keys: tuple[str, str]
    changes: list[LowRank]
    is_experts: bool = False
    magnitude: Tensor | None = None

    @property
    def named(self) -> dict[str, LowRank]:
        """The changes by the full name of the layer that each is of: ``NAME``, or ``NAME.0``, ``NAME.1``, …"""
        if not self.is_experts:
            return {self.name: self.changes[0]}
        return {f"{self.name}.{number}": change for number, change in enumerate(self.changes)}

    def packed(self, changes: Sequence[LowRank]) -> dict[str, Tensor]:
        """The tensors of the file for other changes of one rank."""
        a, b = torch.stack([item.right for item in changes]), torch.stack([item.left for item in changes])
        if self.is_experts:  # see `lora.experts`
            a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
        else:
            a, b = a[0], b[0]
        return {self.keys[0]: a.contiguous(), self.keys[1]: b.contiguous()}


@dataclass(frozen=True)
class SavedAdapter:
    """A LoRA adapter as it lies in a folder.

    Args:
        folder: where its two files are.
        config: PEFT's description of it.
        layers: in the order of the file.
        others: the tensors of the file that are no factors: magnitudes, biases, complete modules, rows of embeddings.
    """

    folder: Path
    config: LoraConfig
    layers: list[SavedLayer]
    others: dict[str, Tensor]

    @property
    def changes(self) -> dict[str, LowRank]:
        """What it changes, by full name of the layer."""
        return {name: change for layer in self.layers for name, change in layer.named.items()}

    @property
    def notes(self) -> list[str]:
        """What it does beside adding the products ``s·B A``, one line each."""
        notes = []
        if any(key.endswith(MAGNITUDE) for key in self.others):
            notes.append("DoRA: ΔW is the product s·B A; the trained magnitudes are not part of it")
        if any(EMBEDDING in key for key in self.others):
            notes.append("its factors of embeddings are not looked at")
        if any(key.endswith(LORA_BIAS) for key in self.others):
            notes.append("its biases are not looked at")
        rest = sorted(key.removeprefix(PREFIX) for key in self.others if ".lora_" not in key)
        if rest:
            more = f" and {len(rest) - 1} more tensors" if len(rest) > 1 else ""
            notes.append(f"what trained beside the factors is not looked at: {rest[0]}{more}")
        return notes


def read_saved(folder: Path, empty: Callable[[], PreTrainedModel]) -> SavedAdapter:
    """Reads a saved LoRA adapter.

    Args:
        empty: makes the base model without weights (on the meta device). It is asked only where the adapter changes
            parameters such as the weights of experts, which are named and shaped by the model.

    Raises:
        RunError: as `refusal` says; or the files belong to another model, or hold what is not finite.
    """
    if problem := refusal(folder):
        raise RunError(f"{folder}: {problem}")
    config = read_lora_description(folder)
    tensors = read_tensors(folder / WEIGHTS_FILE)
    if broken := next((key for key, item in tensors.items() if not item.isfinite().all()), None):
        raise RunError(
            f"{folder}: {broken} has entries that are not finite (NaN or infinity), as of a run that diverged"
        )
    check_keys(config, folder, tensors)
    layers = _by_model(folder, config, tensors, empty()) if config.target_parameters else _by_keys(config, tensors)
    factors = {key for layer in layers for key in layer.keys}
    others = {key: item for key, item in tensors.items() if key not in factors}
    if stray := next((key for key in others if key.endswith((FACTOR_A, FACTOR_B)) and others[key].dim() == 2), None):
        raise RunError(f"{folder / WEIGHTS_FILE}: the base model has no place for {stray}: it was made for another one")
    if not layers:
        raise RunError(f"{folder}: this adapter has factors of no linear layer, so there is nothing to look at")
    return SavedAdapter(folder, config, layers, others)


def refusal(folder: Path) -> str:
    """Why a folder's adapter cannot be read as products ``s·B A`` of layers, in a few words; empty if it can."""
    if not (folder / CONFIG_FILE).is_file():
        return f"no LoRA adapter (there is no {CONFIG_FILE})"
    found = described(folder)
    if (kind := found.get("peft_type")) != "LORA":
        return f"an adapter of the kind {kind}, and only LoRA adapters change weights by a product s·B A"
    for option in UNSUPPORTED_OPTIONS:
        if option != "target_parameters" and found.get(option):
            return f"a LoRA adapter with {option}, which computes something else than s·B A"
    if not (folder / WEIGHTS_FILE).is_file():
        return f"an adapter without {WEIGHTS_FILE} (no other format is read)"
    return ""


def _by_keys(config: LoraConfig, tensors: Mapping[str, Tensor]) -> list[SavedLayer]:
    layers = []
    for name in layers_of_keys(tensors):
        a, b = (tensors[item].float() for item in lora_keys(name))
        if a.dim() != 2 or b.dim() != 2:
            continue  # of convolutions
        change = LowRank(layer_scaling(config, name, a.shape[0]) * b, a)
        layers.append(
            SavedLayer(name, name, lora_keys(name), [change], magnitude=tensors.get(f"{PREFIX}{name}{MAGNITUDE}"))
        )
    return layers


def _by_model(
    folder: Path, config: LoraConfig, tensors: Mapping[str, Tensor], empty: PreTrainedModel
) -> list[SavedLayer]:
    check_expressions(config, folder, [name for name, _ in empty.named_modules()])
    with refused(folder, NOT_LOADED), torch.device("meta"), without_false_warnings():
        model = get_peft_model(empty, config)
    assert isinstance(model, PeftModel)
    keys, found = factor_keys(model), lora_layers(model)
    names = peft_names(model.get_base_model(), base_targets(model))
    layers = []
    for name, layer in found.items():
        if any(key not in tensors for key in keys[name]):
            raise RunError(f"{folder}: its file has no factors of {name}: it was made for another base model")
        a, b = unpack(layer, *(tensors[key].float() for key in keys[name]))
        scaling, is_experts = layer.scaling[ADAPTER], bool(experts_of(layer))
        pairs = list(zip(a, b, strict=True)) if is_experts else [(a, b)]
        changes = [LowRank((scaling * left).contiguous(), right.contiguous()) for right, left in pairs]
        layers.append(SavedLayer(name, names[name], keys[name], changes, is_experts))
    return layers


def target_in(model: nn.Module, layer: SavedLayer) -> list[Target]:
    """What the changes of a saved layer are added to, in a base model.

    Raises:
        RunError: the model has no such layer, or one of another shape.
    """
    parent, _, last = layer.name.rpartition(".")
    modules = dict(model.named_modules())
    if layer.name in modules:
        target = Target(layer.name, modules[layer.name])
    elif isinstance(getattr(modules.get(parent), last, None), nn.Parameter):
        target = Target(layer.name, modules[parent], last)
    else:
        raise RunError(f"the base model has no layer {layer.name}: it is another one than the adapter was trained on")
    targets = target.layers if layer.is_experts else [target]
    shape = (layer.changes[0].left.shape[0], layer.changes[0].right.shape[1])
    if len(targets) != len(layer.changes) or targets[0].shape != shape:
        raise RunError(
            f"{layer.name} of the base model is {targets[0].shape}, and the adapter changes {shape}: the base is "
            "another one than it was trained on"
        )
    return targets
