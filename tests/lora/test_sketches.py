"""Random factors against their distributions: lengths, orthonormality, the mean of the projection, and PEFT's draw."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from lora_ga_cli.lora.sketches import Kind, draw_factor

KINDS = get_args(Kind)
RANK, WIDTH = 3, 40


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_draw_has_the_shape_and_dtype_that_were_asked_for_and_repeats(kind: Kind, dtype: torch.dtype) -> None:
    a = draw_factor((RANK, WIDTH), kind, generator(), dtype=dtype)
    b = draw_factor((WIDTH, RANK), kind, generator(), dtype=dtype)
    assert a.dtype == b.dtype == dtype
    assert a.is_contiguous()
    assert b.is_contiguous()
    assert torch.equal(a, b.T)
    assert torch.equal(a, draw_factor((RANK, WIDTH), kind, generator(), dtype=dtype))
    assert not torch.equal(a, draw_factor((RANK, WIDTH), kind, generator(6), dtype=dtype))


@pytest.mark.parametrize("shape", [(RANK, WIDTH), (WIDTH, RANK), (1, WIDTH), (WIDTH, WIDTH)])
def test_orthonormal_vectors_are_orthonormal(shape: tuple[int, int]) -> None:
    factor = draw_factor(shape, "orthonormal", generator(), dtype=torch.float64)
    rows = factor if shape[0] <= shape[1] else factor.T
    assert torch.allclose(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64), atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_projection_is_a_multiple_of_the_identity(kind: Kind) -> None:
    """E[Aᵀ(AAᵀ)⁻¹A] = (rank/n)·I, which is what RAC-LoRA's rate rests on."""
    source, length, draws = generator(), 6, 1500
    total = torch.zeros(length, length, dtype=torch.float64)
    for _ in range(draws):
        a = draw_factor((2, length), kind, source, dtype=torch.float64)
        total += a.T @ torch.linalg.solve(a @ a.T, a)
    error = total / draws - torch.eye(length) * 2 / length
    assert error.abs().max() < 5 * 0.5 / draws**0.5  # an entry of a projection has a deviation of at most 1/2


def distance(shares: torch.Tensor) -> float:
    """Kolmogorov's distance of numbers to the uniform distribution on (0, 1), times the root of how many they are.

    For independent draws from that distribution, it is below 1.95 with a probability of 99.9 %.
    """
    steps = torch.arange(len(shares) + 1, dtype=torch.float64) / len(shares)
    ordered = shares.double().sort().values
    return float(torch.maximum(ordered - steps[:-1], steps[1:] - ordered).max()) * len(shares) ** 0.5


def test_gaussian_entries_are_normal_and_kaiming_entries_uniform() -> None:
    gaussian = draw_factor((50, 400), "gaussian", generator(), dtype=torch.float64).flatten()
    kaiming = draw_factor((50, 400), "kaiming", generator(), dtype=torch.float64).flatten()
    assert distance(torch.special.ndtr(gaussian * 20)) < 1.95
    assert distance((kaiming * 20 + 1) / 2) < 1.95


def test_orthonormal_vectors_prefer_no_sign() -> None:
    """The first entry of a uniformly distributed unit vector of length 3 is uniform on (-1, 1) (Archimedes)."""
    source = generator()
    first = [float(draw_factor((2, 3), "orthonormal", source, dtype=torch.float64)[0, 0]) for _ in range(2000)]
    assert distance((torch.tensor(first) + 1) / 2) < 1.95


def test_kaiming_is_pefts_initial_a() -> None:
    from peft import LoraConfig, get_peft_model

    base = torch.nn.Sequential(torch.nn.Linear(WIDTH, 7, bias=False))
    torch.manual_seed(5)
    model = get_peft_model(base, LoraConfig(r=RANK, target_modules=["0"]))
    torch.manual_seed(5)
    torch.nn.Linear(WIDTH, RANK, bias=False)  # PEFT makes the layers, which draw their weights, before it draws A
    torch.nn.Linear(RANK, 7, bias=False)
    state = torch.Generator()
    state.set_state(torch.get_rng_state())
    initial = model.get_parameter("base_model.model.0.lora_A.default.weight")
    assert torch.equal(initial, draw_factor((RANK, WIDTH), "kaiming", state))
