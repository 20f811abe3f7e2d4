"""Expressing a trained adapter as a plain LoRA for the pristine base, and reading it back to resume.

For the base as its authors publish it, an adapter that began at (A0, B0) is ``s·(B A - B0 A0) = s·[B, -B0] [A; A0]``: a
LoRA of rank 2·rank with the same s, which PEFT and vLLM load as they load any other. A and B stand in it unchanged, so
a checkpoint is this same file, and resuming reads them back to the bit.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from lora_ga_cli.errors import EqualityError, RunError
from lora_ga_cli.lora.offset import ADAPTER, Start, lora_layers, weight_of, widen
from lora_ga_cli.model.targets import Target, shortest_names

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
CONVERSION_TOLERANCE = 1e-4
"""Largest relative difference, on a random vector, between the trained and the exported form of a layer."""


def export_adapter(model: PeftModel, folder: str | Path, start: Start | None = None) -> None:
    """Writes the adapter to ``folder`` for the pristine base: ``PeftModel.from_pretrained(base, folder)`` loads it.

    Args:
        model: the PEFT model that was trained.
        start: what `initialize` returned; None for an adapter that did not shift its base.

    Raises:
        EqualityError: a layer of what would be written does not compute what the trained layer adds.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.peft_config[ADAPTER])
    assert isinstance(config, LoraConfig)
    # not of `state_dict`, which makes every process of a sharded base take part; what trains is whole in each
    whole = {name: item.data for name, item in model.named_parameters() if not isinstance(item.data, DTensor)}
    state = get_peft_model_state_dict(model, state_dict=whole, save_embedding_layers=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if start is not None:
        if start.shift == "weights":
            tensors = _for_pristine_base(tensors, start)
            widen(config, start)
        _check(model, tensors, start)
    config.inference_mode = True
    base = model.get_base_model()
    adapted = lora_layers(model)
    targets = {name: Target(name, layer) for name, layer in base.named_modules() if name in adapted}
    config.target_modules = shortest_names(base, targets)
    # weights first: a folder with a configuration is taken for a whole adapter
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def restore_adapter(model: PeftModel, folder: Path, start: Start | None = None) -> None:
    """Reads an exported adapter back into the model that trains it; the inverse of `export_adapter`.

    Raises:
        RunError: the file belongs to another start.
    """
    tensors = load_file(folder / WEIGHTS_FILE)
    if start is not None:
        if not _carries(tensors, start):
            raise RunError(f"{folder}: its adapter began elsewhere than this run; start again with overwrite=true")
        if start.shift == "weights":
            for name, (a0, _) in start.factors.items():
                key_a, key_b = _keys(name)
                tensors[key_a] = tensors[key_a][: a0.shape[0]].contiguous()
                tensors[key_b] = tensors[key_b][:, : a0.shape[0]].contiguous()
    set_peft_model_state_dict(model, tensors)


def _carries(tensors: dict[str, Tensor], start: Start) -> bool:
    """Whether the second half of every pair of factors is the start, to the bit."""
    for name, (a0, b0) in start.factors.items():
        key_a, key_b = _keys(name)
        rank = a0.shape[0]
        if not (torch.equal(tensors[key_a][rank:], a0) and torch.equal(tensors[key_b][:, rank:], -b0)):
            return False
    return True


def _for_pristine_base(tensors: dict[str, Tensor], start: Start) -> dict[str, Tensor]:
    result = dict(tensors)
    for name, (a0, b0) in start.factors.items():
        key_a, key_b = _keys(name)
        result[key_a] = torch.cat([tensors[key_a].float(), a0], dim=0)  # (2·rank, d_in)
        result[key_b] = torch.cat([tensors[key_b].float(), -b0], dim=1)  # (d_out, 2·rank)
    return result


def _check(model: PeftModel, tensors: dict[str, Tensor], start: Start) -> None:
    """Compares, on one random vector a layer, what training added to the base with the exported product."""
    if not _carries(tensors, start):
        raise EqualityError(
            "the adapter's frozen half has moved, so it no longer takes its start off: train without weight decay; "
            "nothing was written"
        )
    generator = torch.Generator().manual_seed(0)
    for name, layer in lora_layers(model).items():
        a0, b0 = (factor.double() for factor in start.factors[name])
        key_a, key_b = _keys(name)
        rank = a0.shape[0]
        a = weight_of(layer.lora_A).detach().cpu().double()[:rank]
        b = weight_of(layer.lora_B).detach().cpu().double()[:, :rank]
        x = torch.randn(a.shape[1], generator=generator, dtype=torch.float64)
        trained = b @ (a @ x) - b0 @ (a0 @ x)
        exported = tensors[key_b].double() @ (tensors[key_a].double() @ x)
        size = float((b @ (a @ x)).norm() + (b0 @ (a0 @ x)).norm())
        if not float((trained - exported).norm()) <= CONVERSION_TOLERANCE * size:
            raise EqualityError(f"{name}: the exported adapter does not compute what was trained; nothing was written")


def _keys(name: str) -> tuple[str, str]:
    return f"{PREFIX}{name}.lora_A.weight", f"{PREFIX}{name}.lora_B.weight"
