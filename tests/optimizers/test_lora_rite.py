"""LoRA-RITE: invariance to the factors and to the size of the loss, and its first steps in closed form, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lora_ga_cli.optimizers.lora_rite import (
    Moments,
    basis_of,
    clipped,
    corrected_decay,
    inverse_root,
    rotate,
    skipped,
)
from tests.optimizers.layers import D_OUT, RANK, SCALING, build, change, gradient_of, layer, run, tensor, turned

EXACT = {"eps": 0.0, "clip": 0.0, "skip": 0.0}


def test_forty_steps_from_other_factors_of_a_product_give_one_product() -> None:
    one, other = layer(), turned(layer(), tensor(RANK, RANK, seed=5))
    moved = [run(build("lora_rite", [pair], lr=1e-2, **EXACT), 40)[0] for pair in (one, other)]
    assert float((moved[0] - change(layer())).abs().max()) > 1
    assert float((moved[0] - moved[1]).abs().max()) < 1e-9


@pytest.mark.parametrize("escape", [True, False])
def test_the_size_of_the_loss_does_not_matter(escape: bool) -> None:
    moved = [
        run(build("lora_rite", [layer()], lr=1e-2, escape=escape, **EXACT), 20, times=times)[0]
        for times in (1.0, 1000.0)
    ]
    assert torch.allclose(*moved, rtol=1e-9, atol=1e-9)


def test_the_first_step_from_zero_b_has_equal_singular_values() -> None:
    """``-γ·s·√d_out`` times a polar factor."""
    pair = layer(b=False)
    gradient, (basis, _) = gradient_of(pair), basis_of(pair.a.detach().T)
    moved = run(build("lora_rite", [pair], lr=1e-3, **EXACT))[0]
    left, _, right = torch.linalg.svd(gradient @ basis, full_matrices=False)
    assert torch.allclose(moved, -1e-3 * SCALING * D_OUT**0.5 * (left @ right) @ basis.T, rtol=1e-11, atol=1e-14)
    singular = torch.linalg.svdvals(moved)[:RANK] / (1e-3 * SCALING)
    assert torch.allclose(singular, torch.full((RANK,), D_OUT**0.5, dtype=torch.float64), rtol=1e-11)


def test_unmagnified_gradients_do_not_depend_on_the_factors() -> None:
    """``g_B R⁻¹ Uᵀ`` is ``s·G P_A``, whichever basis U of the rows of A it is."""
    pair = layer()
    basis, inverse = basis_of(pair.a.detach().T)
    gradient = gradient_of(pair)
    of_b = pair.scaling * gradient @ pair.a.detach().T
    projection = torch.linalg.pinv(pair.a.detach()) @ pair.a.detach()
    assert torch.allclose(basis.T @ basis, torch.eye(RANK, dtype=torch.float64), atol=1e-13)
    assert torch.allclose(of_b @ inverse @ basis.T, pair.scaling * gradient @ projection, atol=1e-12)


def moments_with(second: torch.Tensor) -> Moments:
    return Moments(tensor(1, D_OUT, RANK, seed=1), second[None], torch.zeros(1, 1, 1, dtype=torch.float64))


def test_a_turn_within_the_basis_loses_nothing() -> None:
    half = tensor(RANK, RANK, seed=2)
    turn, _ = torch.linalg.qr(tensor(RANK, RANK, seed=3))
    before = moments_with(half @ half.T)
    after = rotate(before, turn[None])
    assert float(after.escape) == pytest.approx(0, abs=1e-13)
    assert torch.allclose(torch.linalg.eigvalsh(after.second), torch.linalg.eigvalsh(before.second))
    assert torch.allclose(after.first @ turn, before.first)


def test_what_leaves_the_basis_escapes() -> None:
    """The smaller one of the largest fall of an eigenvalue and the fall of the trace."""
    before = moments_with(torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)))
    shrink = torch.diag(torch.tensor([0.5, 1.0, 1.0], dtype=torch.float64))
    after = rotate(before, shrink[None])  # eigenvalues 1, 2, 4 become 1, 1, 2
    assert float(after.escape) == pytest.approx(2)
    assert not rotate(before, torch.zeros(1, RANK, RANK, dtype=torch.float64)).second.any()


def test_the_inverse_root_is_finite_where_nothing_was_seen() -> None:
    zero = torch.zeros(1, RANK, RANK)
    assert not inverse_root(zero, torch.zeros(1, 1, 1), 0.0).any()
    assert torch.allclose(inverse_root(zero, torch.zeros(1, 1, 1), 1e-3), 1e3 * torch.eye(RANK))
    seen = torch.diag(torch.tensor([4.0, 9.0, 16.0]))[None]
    right = torch.diag(1 / torch.tensor([3.0, 13.0**0.5 + 0.0, 20.0**0.5]))
    right[0, 0] = 1 / (4.0 + 4.0) ** 0.5
    assert torch.allclose(inverse_root(seen, torch.full((1, 1, 1), 4.0), 0.0)[0], right, rtol=1e-6)


def test_the_corrected_decay_makes_a_mean_unbiased() -> None:
    mean, beta, values = 0.0, 0.9, [3.0, 5.0, 8.0]
    for number, value in enumerate(values, 1):
        decay = float(corrected_decay(beta, torch.tensor(float(number), dtype=torch.float64)))
        mean = decay * mean + (1 - decay) * value
    weights = [beta ** (len(values) - 1 - index) for index in range(len(values))]
    expected = sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
    assert mean == pytest.approx(expected, rel=1e-14)


def test_large_gradients_are_skipped_by_layer_and_clipped_together() -> None:
    gradients = [torch.full((2, 3, 2), 0.5), torch.stack([torch.full((4, 2), 0.1), torch.full((4, 2), 3.0)])]
    kept = [skipped(item, 1.0) for item in gradients]
    assert torch.equal(kept[0], gradients[0])
    assert not kept[1][1].any()
    norm = sum(float(item.square().sum()) for item in kept) ** 0.5
    assert norm > 1
    for found, item in zip(clipped(kept, 1.0), kept, strict=True):
        assert torch.allclose(found, item / norm)
    assert torch.equal(clipped([kept[0] * 1e-3], 1.0)[0], kept[0] * 1e-3)
    assert skipped(gradients[1], 0.0) is gradients[1]


def reference(a: np.ndarray, b: np.ndarray, s: float, gradients: Callable, steps: int, escape: bool) -> np.ndarray:
    """The algorithm of the authors' code, with QR decompositions and pseudo-inverses, for one layer."""
    (rank, d_in), d_out, lr, beta1, beta2 = a.shape, len(b), 1e-2, 0.9, 0.999
    first = {"A": np.zeros((d_in, rank)), "B": np.zeros((d_out, rank))}
    second = {side: np.zeros((rank, rank)) for side in "AB"}
    old = {"A": np.zeros((d_out, rank)), "B": np.zeros((d_in, rank))}
    lost = dict.fromkeys("AB", 0.0)
    for step in range(1, steps + 1):
        gradient = gradients(s * b @ a)
        grads = {"A": (s * b.T @ gradient).T, "B": s * gradient @ a.T}
        moves = {}
        decay1, decay2 = (beta * (1 - beta ** (step - 1)) / (1 - beta**step) for beta in (beta1, beta2))
        for side, other in (("A", b), ("B", a.T)):
            basis, triangle = np.linalg.qr(other)
            inverse = np.linalg.pinv(triangle)
            unmagnified, turn = grads[side] @ inverse, basis.T @ old[side]
            turned_second = turn @ second[side] @ turn.T
            falls = np.linalg.eigvalsh(second[side]) - np.linalg.eigvalsh(turned_second)
            lost[side] = decay2 * (lost[side] + min(max(falls.max(), 0), max(falls.sum(), 0))) if escape else 0.0
            second[side] = (1 - decay2) * unmagnified.T @ unmagnified / len(unmagnified) + decay2 * turned_second
            values, vectors = np.linalg.eigh(second[side])
            root = vectors / (np.sqrt(np.maximum(values, 0) + lost[side]) + 1e-6) @ vectors.T
            first[side] = (1 - decay1) * unmagnified @ root + decay1 * first[side] @ turn.T
            moves[side], old[side] = first[side] @ inverse.T, basis
        a, b = a - lr * moves["A"].T, b - lr * moves["B"]
    return s * b @ a


@pytest.mark.parametrize("escape", [True, False])
@pytest.mark.parametrize("b", [True, False])
def test_it_is_the_authors_algorithm_whichever_basis_is_taken(escape: bool, b: bool) -> None:
    pair = layer(b=b)
    target = (change(pair) - gradient_of(pair)).numpy()
    begin = pair.a.detach().numpy().copy(), pair.b.detach().numpy().copy()
    right = reference(*begin, SCALING, lambda product: product - target, 25, escape)
    found = run(build("lora_rite", [pair], lr=1e-2, clip=0.0, skip=0.0, escape=escape), 25)[0].numpy()
    assert np.abs(found - right).max() < 1e-8
