"""AdamW's moments that move with a factor's coordinates, against numpy, and moments that are pruned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lora_ga_cli.lora.moments import Decay, change_of_coordinates, prune, transport
from lora_ga_cli.lora.sketches import draw_factor

DECAY = Decay(0.9, 0.99)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(rows: int = 7, rank: int = 3, step: int = 5) -> dict[str, Tensor]:
    """What AdamW keeps after some steps of random gradients (rows, rank)."""
    item = torch.nn.Parameter(drawn(rows, rank))
    optimizer = torch.optim.AdamW([item], lr=1e-3, betas=(DECAY.beta1, DECAY.beta2))
    for number in range(step):
        item.grad = drawn(rows, rank, seed=number + 1)
        optimizer.step()
    return dict(optimizer.state[item])


def test_the_gradient_of_a_weight_in_the_old_span_is_moved_exactly() -> None:
    """``G A_oldᵀ`` becomes ``G A_newᵀ`` if G's rows are in the span of A_old, orthonormal or not."""
    old, new = drawn(3, 10, seed=1), drawn(3, 10, seed=2)
    gradient = drawn(7, 3, seed=3) @ old
    change = change_of_coordinates(old, new)
    torch.testing.assert_close(gradient @ old.T @ change.T, gradient @ new.T, rtol=1e-12, atol=1e-12)


def test_between_orthonormal_factors_the_change_is_that_of_ldadam() -> None:
    draw = torch.Generator().manual_seed(0)
    old, new = (draw_factor((3, 10), "orthonormal", draw, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(change_of_coordinates(old, new), new @ old.T, rtol=1e-12, atol=1e-12)


def test_no_change_of_coordinates_leaves_the_moments_as_they_are() -> None:
    before = moments()
    after = transport(before, torch.eye(3, dtype=torch.float64), DECAY)
    for name, item in before.items():
        torch.testing.assert_close(after[name], item, rtol=1e-13, atol=0)


def test_moments_are_moved_as_the_equations_say() -> None:
    before, change = moments(), drawn(3, 3, seed=9)
    after = transport(before, change, DECAY)
    m = before["exp_avg"].numpy() / (1 - 0.9**5)
    v = before["exp_avg_sq"].numpy() / (1 - 0.99**5)
    c = change.numpy().T
    moved = m @ c
    np.testing.assert_allclose(after["exp_avg"], moved * (1 - 0.9**5), rtol=1e-12)
    expected = np.abs((v - m**2) @ c**2 + moved**2) * (1 - 0.99**5)
    np.testing.assert_allclose(after["exp_avg_sq"], expected, rtol=1e-12)
    assert after["step"] == before["step"]


def test_two_orthonormal_bases_of_one_span_give_one_step_of_the_first_moment() -> None:
    """The first moment in the weight's coordinates, ``M A``, is the same before and after."""
    draw = torch.Generator().manual_seed(0)
    old = draw_factor((3, 10), "orthonormal", draw, dtype=torch.float64)
    new = torch.linalg.qr(drawn(3, 3, seed=4))[0] @ old
    before = moments()
    after = transport(before, change_of_coordinates(old, new), DECAY)
    torch.testing.assert_close(after["exp_avg"] @ new, before["exp_avg"] @ old, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("share", "left"), [(0.9, 3), (1.0, 0), (1e-9, 21)])
def test_pruning_leaves_the_largest_magnitudes(share: float, left: int) -> None:
    """Of 21 elements, ``int(share · 21)`` become zero, also where magnitudes are equal."""
    before = moments()
    before["exp_avg_sq"] = torch.ones(7, 3)
    after = prune(before, share)
    for name in ("exp_avg", "exp_avg_sq"):
        kept = after[name] != 0
        assert int(kept.sum()) == left
        assert torch.equal(after[name][kept], before[name][kept])
    if left:
        smallest = after["exp_avg"][after["exp_avg"] != 0].abs().min()
        assert (before["exp_avg"][after["exp_avg"] == 0].abs() <= smallest).all()
    assert after["step"] == 5
