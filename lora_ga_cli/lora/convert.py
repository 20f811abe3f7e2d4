"""Converting adapters that were saved as ``s·[B, -B0] [A; A0]`` into the difference form.

Earlier versions of loraga saved the change ``s·(B A - B0 A0)`` as a LoRA of rank 2·rank with the factors ``[B, -B0]``
and ``[A; A0]``. These are two large products that nearly cancel, so that a server which rounds the factors to bfloat16
loses most of the change. The difference form ``s·[B - B0, B0] [A; A - A0]`` has the same rank and the same product,

    (B - B0) A + B0 (A - A0) = B A - B0 A0,

and its relative rounding error is that of any LoRA. The identity holds for any halves, so the conversion needs nothing
but the saved factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor

from lora_ga_cli.errors import EqualityError, RunError
from lora_ga_cli.lora.description import described, read_lora_description
from lora_ga_cli.lora.export import CONFIG_FILE, CONVERSION_TOLERANCE, WEIGHTS_FILE
from lora_ga_cli.lora.layers import FACTOR_A, FACTOR_B, layers_of_keys, lora_keys
from lora_ga_cli.lora.links import layer_scaling

UNCHANGED = (".lora_B.bias", ".lora_magnitude_vector")
"""Ends of the names of LoRA tensors that stand beside the product, such as DoRA's magnitudes: they stay as they are."""
UNSUPPORTED_OPTIONS = (
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
)
"""Options of PEFT's LoRA with which a layer computes something else than ``s·B A x``."""

ZERO = 1e-12
"""A product whose norm is smaller than this share of the norms of its factors is zero: float64 gives no more digits."""


@dataclass(frozen=True)
class Conversion:
    """The tensors of a converted adapter, and how much of the change is lost in bfloat16.

    Args:
        tensors: all tensors of the adapter by PEFT's names; the factors are in the difference form, in float32.
        layers: how many layers it has.
        rank: the largest rank of a layer, which stays the same.
        difference: the largest relative difference between the old and the new product of a layer, on a random vector.
        error_before: relative error (Frobenius norm, over all layers) of the change if the old factors are rounded to
            bfloat16; 0 if the adapter changes nothing.
        error_after: the same for the new factors.
    """

    tensors: dict[str, Tensor]
    layers: int
    rank: int
    difference: float
    error_before: float
    error_after: float


def check_convertible(folder: Path) -> LoraConfig:
    """The configuration of a saved adapter, if this module can convert it.

    Raises:
        RunError: the folder holds no adapter, one of another kind than LoRA, or a variant of LoRA that computes
            something else than ``s·B A x``.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise RunError(f"{folder}: this is not a folder with a PEFT adapter, it has no {CONFIG_FILE}")
    found = described(folder)
    kind = found.get("peft_type")
    if kind != "LORA":
        raise RunError(f"{folder}: this adapter is of the kind {kind}; loraga convert converts only LoRA adapters")
    for option in UNSUPPORTED_OPTIONS:
        if found.get(option):
            raise RunError(f"{folder}: loraga convert does not support LoRA adapters with {option}")
    if not (folder / WEIGHTS_FILE).is_file():
        raise RunError(f"{folder}: this adapter has no {WEIGHTS_FILE}; loraga convert reads no other format")
    return read_lora_description(folder)


def to_difference_form(tensors: Mapping[str, Tensor], config: LoraConfig) -> Conversion:
    """Converts the factors of all layers.

    Args:
        tensors: the tensors of the adapter by PEFT's names, on the CPU.

    Raises:
        RunError: as `layers_of_keys`; a layer has an odd rank or is not a matrix, or a tensor belongs to a variant of
            LoRA that this module does not know.
        EqualityError: the new factors of a layer have another product.
    """
    converted, squared_errors = dict(tensors), [0.0, 0.0]
    squared_norm = squared_bound = 0.0
    difference, ranks = 0.0, []
    generator = torch.Generator().manual_seed(0)
    for name in _layer_names(tensors):
        key_a, key_b = lora_keys(name)
        old = _Product(tensors[key_a].double(), tensors[key_b].double())
        new = _convert_layer(name, old)
        difference = max(difference, _check_product(name, old, new, generator))
        converted[key_a], converted[key_b] = new.a.float().contiguous(), new.b.float().contiguous()
        scaling = layer_scaling(config, name, len(old.a))
        squared_norm += (scaling * _norm(old.b, old.a)) ** 2
        squared_bound += (scaling * float(old.b.norm() * old.a.norm())) ** 2
        for index, product in enumerate((old, new)):
            squared_errors[index] += (scaling * product.bfloat16_error()) ** 2
        ranks.append(len(old.a))
    changes = squared_norm > ZERO**2 * squared_bound
    before, after = ((error / squared_norm) ** 0.5 if changes else 0.0 for error in squared_errors)
    return Conversion(converted, len(ranks), max(ranks), difference, before, after)


@dataclass(frozen=True)
class _Product:
    """The product ``b @ a`` of a layer's factors, in float64.

    Args:
        a: (rank, d_in).
        b: (d_out, rank).
    """

    a: Tensor
    b: Tensor

    def bfloat16_error(self) -> float:
        """Frobenius norm of the difference between the product and that of the factors rounded to bfloat16."""
        rounded_a, rounded_b = (factor.bfloat16().double() for factor in (self.a, self.b))
        return _norm(torch.cat([rounded_b, -self.b], dim=1), torch.cat([rounded_a, self.a]))


def _layer_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the adapted layers in the base model."""
    for key in tensors:
        if ".lora_" in key and not key.endswith((FACTOR_A, FACTOR_B, *UNCHANGED)):
            raise RunError(f"loraga convert does not support adapters with the tensor {key}")
    names = layers_of_keys(tensors)
    if not names:
        raise RunError(f"the adapter has no tensor with the name *{FACTOR_A}, so there is nothing to convert")
    return names


def _convert_layer(name: str, old: _Product) -> _Product:
    if old.a.dim() != 2 or old.b.dim() != 2:
        raise RunError(f"{name}: its LoRA factors are no matrices; loraga convert supports only linear layers")
    if len(old.a) % 2:
        raise RunError(
            f"{name}: its rank {len(old.a)} is odd, and an adapter of the old form has two halves of the same rank"
        )
    rank = len(old.a) // 2
    a, a0 = old.a[:rank], old.a[rank:]  # (rank, d_in) each
    b, b0 = old.b[:, :rank], -old.b[:, rank:]  # (d_out, rank) each
    return _Product(torch.cat([a, a - a0]), torch.cat([b - b0, b0], dim=1))


def _check_product(name: str, old: _Product, new: _Product, generator: torch.Generator) -> float:
    """Compares the old product with that of the new factors as they are written, on a random vector.

    Returns:
        The relative difference.
    """
    rank = len(old.a) // 2
    x = torch.randn(old.a.shape[1], generator=generator, dtype=torch.float64)
    expected = old.b @ (old.a @ x)
    actual = new.b.float().double() @ (new.a.float().double() @ x)
    # the sizes of what the product adds up, and of the rounding in what nearly cancels
    summands = (new.b[:, :rank] @ (new.a[:rank] @ x)).norm() + (new.b[:, rank:] @ (new.a[rank:] @ x)).norm()
    size = float(summands + 1e-9 * (old.b[:, rank:] @ (old.a[rank:] @ x)).norm())
    error = float((actual - expected).norm())
    if not error <= CONVERSION_TOLERANCE * size:
        raise EqualityError(f"{name}: the converted factors do not have the same product; nothing was written")
    return error / size if size else 0.0


def _norm(left: Tensor, right: Tensor) -> float:
    """Frobenius norm of ``left @ right``, by QR decompositions: the product itself may be too large for the memory.

    Args:
        left: (d_out, k).
        right: (k, d_in).
    """
    return float((torch.linalg.qr(left, mode="r").R @ torch.linalg.qr(right.T, mode="r").R.T).norm())
