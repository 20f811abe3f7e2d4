"""Weights of few bits, against numpy and closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lora_ga_cli.errors import RunError
from lora_ga_cli.model.grid import GRID_FILE, Grid, pack, quantize, read_grids, unpack, write_grids

BITS = [2, 3, 4, 8]


def weight(rows: int = 5, columns: int = 32) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", BITS)
def test_packing_is_undone_and_holds_as_many_numbers_as_fit_in_a_byte(bits: int) -> None:
    q = torch.randint(0, 2**bits, (5, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert pack(q, bits).shape == (5, 32 // (8 // bits))
    assert torch.equal(unpack(pack(q, bits), bits), q)


def test_the_first_number_of_a_byte_is_in_its_lowest_bits() -> None:
    assert pack(torch.tensor([[1, 2, 3, 0]], dtype=torch.uint8), 2).tolist() == [[0b00_11_10_01]]
    assert pack(torch.tensor([[1, 10]], dtype=torch.uint8), 4).tolist() == [[0b1010_0001]]
    assert pack(torch.tensor([[1, 6]], dtype=torch.uint8), 3).tolist() == [[0b00_110_001]]


@pytest.mark.parametrize("bits", BITS)
def test_every_entry_goes_to_the_nearest_of_equally_spaced_points(bits: int) -> None:
    """The points are those of numpy's linspace between the least and the greatest entry of the group."""
    given = weight()
    dense = quantize(given, bits, 8).dense().double().numpy().reshape(5, 4, 8)
    groups = given.double().numpy().reshape(5, 4, 8)
    for row in range(5):
        for group in range(4):
            entries = groups[row, group]
            points = np.linspace(entries.min(), entries.max(), 2**bits)
            nearest = points[np.abs(entries[:, None] - points).argmin(axis=1)]
            assert np.abs(dense[row, group] - nearest).max() < 1e-6


def test_a_group_of_equal_entries_stays_as_it_is() -> None:
    given = torch.full((2, 16), 0.3)
    given[1] = 0
    assert torch.equal(quantize(given, 4, 8).dense(), given)


def test_rounding_again_changes_almost_nothing() -> None:
    once = quantize(weight(), 4, 8)
    again = quantize(once.dense(), 4, 8)
    assert torch.equal(again.q, once.q)
    assert (again.dense() - once.dense()).abs().max() < 1e-6


@pytest.mark.parametrize("bits", BITS)
def test_a_change_of_a_group_moves_its_zero_point_only(bits: int) -> None:
    grid = quantize(weight(), bits, 8)
    change = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    moved = grid.plus(change)
    assert moved.packed is grid.packed
    assert moved.scale is grid.scale
    assert (moved.dense() - (grid.dense() + change.repeat_interleave(8, dim=1))).abs().max() < 1e-5


def test_zero_points_are_computed_in_float64() -> None:
    """scale · (q - zero) is the exact sum, rounded to float32 once for the zero point and once for the result."""
    grid = quantize(weight(), 4, 8)
    change = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    exact = grid.zero.double() - change.double() / grid.scale.double()
    assert torch.equal(grid.plus(change).zero, exact.float())


@pytest.mark.parametrize("bits", BITS)
def test_the_file_holds_the_same_grid(tmp_path: Path, bits: int) -> None:
    grids = {"layers.0.q_proj": quantize(weight(), bits, 8), "layers.0.o_proj": quantize(weight(3, 48), bits, 16)}
    assert write_grids(grids, tmp_path) == tmp_path / GRID_FILE
    read = read_grids(tmp_path / GRID_FILE)
    assert list(read) == list(grids)
    for name, grid in grids.items():
        assert torch.equal(read[name].dense(), grid.dense())
        assert read[name].bits == bits


def test_another_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a file of quantized weights"):
        read_grids(tmp_path / "missing.safetensors")
    (tmp_path / GRID_FILE).write_bytes(b"1234")
    with pytest.raises(RunError, match="is not a file of quantized weights"):
        read_grids(tmp_path / GRID_FILE)


def test_a_grid_computes_shapes_on_the_meta_device() -> None:
    grid = quantize(weight().to("meta"), 4, 8)
    assert isinstance(grid, Grid)
    assert grid.dense().shape == (5, 32)
