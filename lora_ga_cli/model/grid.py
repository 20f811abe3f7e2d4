"""Weights on a grid of few bits: rounding to the nearest point, moving the zero points, packing and files.

Along its inputs, each row of a weight W (d_out, d_in) is divided into groups of ``group_size`` entries. An entry is

    ``w = scale · (q - zero)``

with a whole number q of ``bits`` bits, and a scale and a zero point (both float32) for each group of each row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lora_ga_cli.errors import RunError

GRID_FILE = "quantized.safetensors"
"""The name of the file that `write_grids` writes beside a model."""
FORMULA = "w = scale * (q - zero), computed in float32"


@dataclass(frozen=True)
class Grid:
    """A weight on its grid.

    Args:
        packed: q, as `pack` has it: uint8 (d_out, d_in / (8 // bits)).
        scale: float32 (d_out, d_in / group_size), positive.
        zero: the zero points, float32 (d_out, d_in / group_size); they need not be whole numbers.
        bits: of an entry of q: 2, 3, 4 or 8.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor
    bits: int

    @property
    def q(self) -> Tensor:
        """The whole numbers, from 0 to ``2^bits - 1``: uint8 (d_out, d_in)."""
        return unpack(self.packed, self.bits)

    def dense(self) -> Tensor:
        """The weight, float32 (d_out, d_in)."""
        q = self.q.unflatten(-1, (self.scale.shape[1], -1))  # (d_out, groups, group_size)
        return (self.scale[..., None] * (q.float() - self.zero[..., None])).flatten(1)

    def plus(self, change: Tensor) -> Grid:
        """The grid after the same number is added to all entries of a group: only zero points move.

        ``scale · (q - zero) + change = scale · (q - (zero - change / scale))``

        Args:
            change: (d_out, d_in / group_size), computed with in float64.
        """
        zero = self.zero.double() - change.double() / self.scale.double()
        return replace(self, zero=zero.float())

    def cpu(self) -> Grid:
        """The same in the memory of the CPU."""
        return replace(self, packed=self.packed.cpu(), scale=self.scale.cpu(), zero=self.zero.cpu())


def quantize(weight: Tensor, bits: int, group_size: int) -> Grid:
    """Rounds every entry of a weight to the nearest point of its group's grid.

    The grid's ``2^bits`` points are equally spaced from the least to the greatest entry of the group, so that no entry
    moves by more than half a scale. A group of equal entries stays exactly as it is.

    Args:
        weight: (d_out, d_in), where ``group_size`` divides d_in.
    """
    groups = weight.float().unflatten(-1, (-1, group_size))  # (d_out, groups, group_size)
    low, high = groups.amin(-1), groups.amax(-1)
    step = (high - low) / (2**bits - 1)
    scale = torch.where(step > 0, step, torch.ones_like(step))
    q = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 2**bits - 1)
    return Grid(pack(q.to(torch.uint8).flatten(1), bits), scale, -low / scale, bits)


def pack(q: Tensor, bits: int) -> Tensor:
    """Puts ``8 // bits`` numbers into each byte, the first into the lowest bits (3 bits: two numbers, two bits unused).

    Args:
        q: uint8 (d_out, d_in), below ``2^bits``; ``8 // bits`` divides d_in.
    """
    count = 8 // bits
    slots = q.unflatten(-1, (-1, count))
    packed = slots[..., 0].clone()
    for slot in range(1, count):
        packed |= slots[..., slot] << (bits * slot)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `pack`: uint8 (d_out, d_in)."""
    slots = [(packed >> (bits * slot)) & (2**bits - 1) for slot in range(8 // bits)]
    return torch.stack(slots, dim=-1).flatten(1)


def write_grids(grids: Mapping[str, Grid], folder: Path) -> Path:
    """Writes the grids of layers, by name: ``NAME.q`` (packed), ``NAME.scale`` and ``NAME.zero``, as in `Grid`.

    The orientation is (d_out, d_in) also for layers that store their weight transposed. The file's metadata hold, for
    each layer, its bits and its group size, and the formula.

    Returns:
        The file.
    """
    tensors: dict[str, Tensor] = {}
    layers = {}
    for name, grid in grids.items():
        parts = {"q": grid.packed, "scale": grid.scale, "zero": grid.zero}
        tensors |= {f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()}
        size = grid.packed.shape[1] * (8 // grid.bits) // grid.scale.shape[1]
        layers[name] = {"bits": grid.bits, "group_size": size}
    file = folder / GRID_FILE
    save_file(tensors, file, metadata={"format": "pt", "formula": FORMULA, "layers": json.dumps(layers)})
    return file


def read_grids(file: Path) -> dict[str, Grid]:
    """The inverse of `write_grids`.

    Raises:
        RunError: it is not such a file.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            layers = json.loads(stored.metadata()["layers"])
            grids = {}
            for name, layer in layers.items():
                packed, scale, zero = (stored.get_tensor(f"{name}.{part}") for part in ("q", "scale", "zero"))
                grids[name] = Grid(packed, scale, zero, int(layer["bits"]))
            return grids
    except (FileNotFoundError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{file}: this is not a file of quantized weights ({error})") from error
