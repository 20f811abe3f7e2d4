"""Intruder dimensions, against numpy's SVD and against PEFT's own search for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.intruders import reduce_intruder_dimension

from lora_ga_cli.inspection.intruders import LEADING, intruders, left_vectors
from lora_ga_cli.lora.layers import lora_layers
from tests.conftest import build_model


@pytest.mark.parametrize("shape", [(30, 18), (18, 30), (20, 20)])
def test_left_vectors_are_those_of_a_singular_value_decomposition(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vectors, singular = left_vectors(matrix)
    u, expected, _ = np.linalg.svd(matrix.numpy(), full_matrices=False)
    np.testing.assert_allclose(singular, expected, rtol=1e-10)
    np.testing.assert_allclose(np.abs((vectors.numpy() * u).sum(0)), 1.0, rtol=1e-9)  # up to a sign each


def test_left_vectors_of_a_matrix_of_low_rank_are_as_many_as_its_rank() -> None:
    matrix = torch.randn(30, 4, dtype=torch.float64) @ torch.randn(4, 18, dtype=torch.float64)
    vectors, singular = left_vectors(matrix)
    assert (vectors.shape, singular.shape) == ((30, 4), (18,))


@pytest.mark.parametrize("shape", [(30, 18), (18, 30)])
def test_intruders_are_those_of_the_definition(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(*shape, generator=draw, dtype=torch.float64)
    left, right = torch.randn(shape[0], 2, generator=draw), torch.randn(2, shape[1], generator=draw)
    tuned = weight + 0.8 * (left @ right).double()
    found = intruders(left_vectors(weight)[0], tuned)
    of_w, of_tuned = (np.linalg.svd(item.numpy(), full_matrices=False)[0] for item in (weight, tuned))
    expected = np.abs(of_tuned.T @ of_w).max(1)[:LEADING]
    np.testing.assert_allclose(found.largest_cosines, expected, atol=1e-8)
    assert (found.count, found.of) == ((expected < 0.5).sum(), LEADING)


def test_a_new_direction_intrudes_and_a_scaled_one_does_not() -> None:
    weight = torch.diag(torch.arange(12.0, 0, -1, dtype=torch.float64))
    along = torch.ones(12, 1, dtype=torch.float64)  # equally far from all singular vectors of the weight
    assert intruders(left_vectors(weight)[0], weight + 10 * along @ along.T).count >= 1
    assert intruders(left_vectors(weight)[0], 3 * weight).count == 0


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
            tuned = weight + layer.get_delta_weight("default").double()
            expected[name] = intruders(left_vectors(weight)[0], tuned).count
    lines: list[str] = []
    reduce_intruder_dimension(model, logging_sink=lines.append)
    said = {name: f"Intruders: {count}" if count else "No intruders" for name, count in expected.items()}
    for name, text in said.items():
        assert [line for line in lines if name in line] == [f"base_model.model.{name}: {text}"]
    assert any(expected.values())
