"""The similarity of two gradients, counted by hand."""

from __future__ import annotations

import torch

from lora_ga_cli.gradient.similarity import magnitude_similarity, sign_similarity


def test_signs_are_compared_entry_by_entry() -> None:
    grad = torch.tensor([[1.0, -2.0], [0.0, 4.0]])
    reference = torch.tensor([[5.0, 2.0], [0.0, 1.0]])
    assert sign_similarity(grad, reference) == 3 / 4


def test_magnitudes_are_alike_within_a_factor_of_ten() -> None:
    grad = torch.tensor([1.0, -1.0, 1.0, 0.0, 0.0])
    reference = torch.tensor([9.9, 10.1, -0.11, 0.0, 1.0])
    assert magnitude_similarity(grad, reference) == 3 / 5


def test_a_gradient_is_fully_similar_to_itself() -> None:
    grad = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    assert sign_similarity(grad, grad) == magnitude_similarity(grad, 2 * grad) == 1
