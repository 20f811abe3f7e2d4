"""Writing a trained adapter as a standard LoRA for the original base model, and reading it back to resume.

For the base as its authors publish it, an adapter that began at (A0, B0) adds ``s·(B A - B0 A0)``. It is written in the
difference form ``s·[ΔB, B0] [A; ΔA]`` (see `lora.difference`): a LoRA of rank 2·rank with the same s, which PEFT and
vLLM load like any other, and which stays exact when a server rounds it to bfloat16. ΔA and ΔB stand in it unchanged, so
a checkpoint is this same file, and resuming reads them back to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from lora_ga_cli.errors import EqualityError, RunError
from lora_ga_cli.files import follow_umask
from lora_ga_cli.json_files import read_json
from lora_ga_cli.lora.beside import saved_modules
from lora_ga_cli.lora.difference import difference_form
from lora_ga_cli.lora.experts import pack, unpack
from lora_ga_cli.lora.layers import ADAPTER, base_targets, factor_keys, lora_layers
from lora_ga_cli.lora.offset import LoraInit, differences
from lora_ga_cli.lora.peft_targets import peft_names, peft_targets
from lora_ga_cli.model.tensor_files import read_tensors

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
CONVERSION_TOLERANCE = 1e-4
"""Largest relative difference, on a random vector, between what a layer was trained to add and what is written."""


def export_adapter(
    model: PeftModel,
    folder: str | Path,
    init: LoraInit | None = None,
    *,
    factors: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> None:
    """Writes the adapter for the original base model: ``PeftModel.from_pretrained(base, folder)`` loads it.

    Args:
        model: the PEFT model that was trained.
        init: what `initialize` returned; None for an adapter that began as PEFT makes it.
        factors: A (k, d_in) and B (d_out, k) of every layer, by name, that are written instead of the model's, with the
            s of the layer; k may differ from the rank that trained.

    Raises:
        EqualityError: what would be written of a layer does not compute what the trained layer adds.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.peft_config[ADAPTER])
    assert isinstance(config, LoraConfig)
    # not from `state_dict`, in which every process of a sharded base takes part; what trains is complete in each
    named = model.named_parameters(remove_duplicate=False)  # PEFT asks for a shared weight by each of its names
    complete = {name: item.data for name, item in named if not isinstance(item.data, DTensor)}
    state = get_peft_model_state_dict(model, state_dict=complete, save_embedding_layers=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    config.modules_to_save = saved_modules(model) or config.modules_to_save
    if init is not None and init.offset != "none":
        tensors |= _in_difference_form(model, init)
        _check(model, tensors, init)
        _describe_layers(model, config, {name: 2 * rank for name, rank in init.ranks.items()}, init.scalings)
    if factors is not None:
        keys = factor_keys(model)
        for name, pair in factors.items():
            tensors |= zip(keys[name], pair, strict=True)
        scalings = {name: layer.scaling[ADAPTER] for name, layer in lora_layers(model).items()}
        _describe_layers(model, config, {name: len(a) for name, (a, _) in factors.items()}, scalings)
    config.inference_mode = True
    for option, names in peft_targets(model.get_base_model(), base_targets(model)).items():
        setattr(config, option, names)
    write_adapter(folder, tensors, config)


def save_peft_adapter(model: PeftModel, folder: Path, **changes: Any) -> None:
    """Writes an adapter of any kind as PEFT has it.

    Args:
        changes: attributes of its configuration that are saved with another value.
    """
    config = copy.deepcopy(model.peft_config[ADAPTER])
    for name, value in changes.items():
        setattr(config, name, value)
    config.inference_mode = True
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    write_adapter(folder, {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, config)


def write_adapter(folder: Path, tensors: dict[str, Tensor], config: PeftConfig) -> None:
    """Writes PEFT's two files, the weights first: a folder with a configuration counts as a complete adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    addresses: set[int] = set()
    for name, tensor in tensors.items():  # a file has a shared weight under each of its names
        tensors[name] = tensor.clone() if tensor.data_ptr() in addresses else tensor
        addresses.add(tensor.data_ptr())
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    follow_umask(folder / WEIGHTS_FILE)
    config.save_pretrained(str(folder))


def adapts_parameters(folder: Path) -> bool:
    """Whether a saved adapter changes parameters such as the weights of experts, and not linear layers alone."""
    file = folder / CONFIG_FILE
    return file.is_file() and bool(read_json(file).get("target_parameters"))


def describe_ranks(config: LoraConfig, ranks: Mapping[str, int], scalings: Mapping[str, float]) -> None:
    """Makes a configuration describe layers of these ranks with these s, layer by layer where they differ.

    Args:
        ranks: by layer name.
        scalings: the s of each layer, by name; alpha is chosen so that ``alpha / rank`` is s.
    """
    alphas = {name: scalings[name] * rank for name, rank in ranks.items()}  # floats; s must not change
    rank, alpha = max(ranks.values()), max(alphas.values())
    config.r, config.lora_alpha, config.use_rslora = rank, alpha, False  # type: ignore[assignment]
    config.rank_pattern = {name: value for name, value in ranks.items() if value != rank}
    config.alpha_pattern = {name: value for name, value in alphas.items() if value != alpha}  # type: ignore[misc]


def _describe_layers(
    model: PeftModel, config: LoraConfig, ranks: Mapping[str, int], scalings: Mapping[str, float]
) -> None:
    """`describe_ranks` with the names by which PEFT finds these layers of a model."""
    names = peft_names(model.get_base_model(), base_targets(model))
    renamed = {names[name]: rank for name, rank in ranks.items()}
    describe_ranks(config, renamed, {names[name]: scaling for name, scaling in scalings.items()})


def restore_adapter(model: PeftModel, folder: Path, init: LoraInit | None = None) -> None:
    """Reads an exported adapter back into the model that trains it; the inverse of `export_adapter`.

    Raises:
        RunError: the file belongs to another initialization, or was written by a version that saved another form.
    """
    tensors = read_tensors(folder / WEIGHTS_FILE)
    in_difference_form = init is not None and init.offset != "none"
    keys, layers = factor_keys(model), lora_layers(model)
    for name, (a0, b0) in (init.factors if init is not None and in_difference_form else {}).items():
        key_a, key_b = keys[name]
        right, left = unpack(layers[name], tensors[key_a], tensors[key_b])
        rank = a0.shape[-2]
        a, delta_a = right[..., :rank, :], right[..., rank:, :]  # (…, rank, d_in) each
        delta_b, stored_b0 = left[..., :rank], left[..., rank:]  # (…, d_out, rank) each
        if a.shape != delta_a.shape or not torch.equal(stored_b0, b0) or not torch.equal(a, a0 + delta_a):
            raise RunError(
                f"{folder}: its adapter has another initialization than this run, or was saved by an earlier version; "
                "begin again with overwrite=true"
            )
        tensors[key_a], tensors[key_b] = (item.contiguous() for item in pack(layers[name], delta_a, delta_b))
    set_peft_model_state_dict(model, tensors)


def _in_difference_form(model: PeftModel, init: LoraInit) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    keys = factor_keys(model)
    for name, layer in lora_layers(model).items():
        factors = difference_form(*differences(layer), *init.factors[name])
        tensors |= zip(keys[name], (item.contiguous() for item in pack(layer, *factors)), strict=True)
    return tensors


def _check(model: PeftModel, tensors: dict[str, Tensor], init: LoraInit) -> None:
    """Compares, on one random vector for each layer, what training added to the base with the exported product."""
    generator, keys = torch.Generator().manual_seed(0), factor_keys(model)
    for name, layer in lora_layers(model).items():
        a0, b0 = (factor.double() for factor in init.factors[name])
        delta_a, delta_b = (factor.double() for factor in differences(layer))
        x = torch.randn(a0.shape[-1], 1, generator=generator, dtype=torch.float64)
        trained = (b0 + delta_b) @ ((a0 + delta_a) @ x) - b0 @ (a0 @ x)
        a, b = unpack(layer, *(tensors[key].double() for key in keys[name]))
        exported = b @ (a @ x)
        size = float((delta_b @ (a0 @ x)).norm() + (b0 @ (delta_a @ x)).norm() + 1e-9 * (b0 @ (a0 @ x)).norm())
        if not float((trained - exported).norm()) <= CONVERSION_TOLERANCE * size:
            raise EqualityError(f"{name}: the exported adapter does not compute what was trained; nothing was written")
