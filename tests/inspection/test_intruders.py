"""Intruder dimensions, against numpy's SVD and against PEFT's own search for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.intruders import reduce_intruder_dimension

from lora_ga_cli.inspection.changes import decompose
from lora_ga_cli.inspection.intruders import LEADING, intruders
from lora_ga_cli.inspection.layer import against_weight
from lora_ga_cli.inspection.singular import SingularVectors
from lora_ga_cli.lora.layers import lora_layers
from lora_ga_cli.lora.links import LowRank
from tests.conftest import build_model
from tests.inspection.test_changes import dense


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("shape", [(30, 18), (18, 30), (280, 300), (300, 280)])
def test_intruders_are_those_of_the_definition(shape: tuple[int, int], dora: bool) -> None:
    """Sides above 256 take the iteration for the leading vectors."""
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(*shape, generator=draw, dtype=torch.float64)
    change = LowRank(torch.randn(shape[0], 3, generator=draw), 0.4 * torch.randn(3, shape[1], generator=draw))
    magnitude = torch.rand(shape[0], generator=draw) + 0.5 if dora else None
    found = intruders(SingularVectors(weight), decompose(change), magnitude)
    tuned = weight.numpy() + dense(change)
    if magnitude is not None:
        tuned *= (magnitude.double().numpy() / np.linalg.norm(tuned, axis=1))[:, None]
    of_w, of_tuned = (np.linalg.svd(item, full_matrices=False)[0] for item in (weight.numpy(), tuned))
    expected = np.abs(of_tuned[:, :LEADING].T @ of_w).max(1)
    np.testing.assert_allclose(found.largest_cosines, expected, atol=1e-7)
    assert (found.count, found.of) == ((expected < 0.5).sum(), LEADING)


def test_a_new_direction_intrudes_and_a_scaled_one_does_not() -> None:
    weight = torch.diag(torch.arange(12.0, 0, -1, dtype=torch.float64))
    base = SingularVectors(weight)
    along = torch.ones(12, 1)  # equally far from all singular vectors of the weight
    assert intruders(base, decompose(LowRank(10 * along, along.T))).count >= 1
    assert intruders(base, decompose(LowRank(2 * weight, torch.eye(12)))).count == 0


def test_a_change_of_zero_intrudes_nowhere() -> None:
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert intruders(SingularVectors(weight), decompose(LowRank(torch.zeros(20, 2), torch.zeros(2, 30)))).count == 0


@pytest.mark.parametrize("shape", [(30, 18), (18, 30)])
@pytest.mark.parametrize("rank", [0, 3])
def test_a_weight_of_small_rank_has_few_vectors_to_resemble(shape: tuple[int, int], rank: int) -> None:
    """Only as many vectors are looked at as the tuned weight has; none resembles one of a weight of zeros."""
    draw = torch.Generator().manual_seed(2)
    weight = torch.randn(shape[0], rank, generator=draw).double() @ torch.randn(rank, shape[1], generator=draw).double()
    change = LowRank(torch.randn(shape[0], 2, generator=draw), torch.randn(2, shape[1], generator=draw))
    found = intruders(SingularVectors(weight), decompose(change))
    tuned = np.linalg.svd(weight.numpy() + dense(change))[0][:, : rank + 2]
    of_weight = np.linalg.svd(weight.numpy())[0][:, :rank]
    expected = np.abs(tuned.T @ of_weight).max(1, initial=0.0)
    np.testing.assert_allclose(found.largest_cosines, expected, atol=1e-7)
    assert (found.count, found.of) == ((expected < 0.5).sum(), rank + 2)
    measures = against_weight(decompose(change), weight)
    assert measures["intruders"]["count"] == found.count
    assert (measures["relative_norm"] is None) == (rank == 0)
    magnitude = torch.ones(shape[0])
    assert intruders(SingularVectors(weight), decompose(change), magnitude).of == rank + 2
    nothing = decompose(LowRank(torch.zeros(shape[0], 2), torch.zeros(2, shape[1])))
    unchanged = intruders(SingularVectors(weight), nothing, magnitude)
    assert (unchanged.count, unchanged.of) == (0, rank)


def test_peft_finds_the_same() -> None:
    """It prints the number of every layer."""
    torch.manual_seed(0)
    model = get_peft_model(build_model("llama"), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    layers = lora_layers(model)
    expected = {}
    with torch.no_grad():
        for name, layer in layers.items():
            layer.lora_B["default"].weight.normal_(std=0.05)
            weight = layer.get_base_layer().weight.double()
            b = layer.scaling["default"] * layer.lora_B["default"].weight
            change = decompose(LowRank(b, layer.lora_A["default"].weight))
            expected[name] = intruders(SingularVectors(weight), change).count
    lines: list[str] = []
    reduce_intruder_dimension(model, logging_sink=lines.append)
    said = {name: f"Intruders: {count}" if count else "No intruders" for name, count in expected.items()}
    for name, text in said.items():
        assert [line for line in lines if name in line] == [f"base_model.model.{name}: {text}"]
    assert any(expected.values())
