"""LoRA-Pro: its closed forms against dense least squares, scipy and AdamW on the complete weight, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from lora_ga_cli.errors import TrainingError
from lora_ga_cli.lora.layers import LoraPair
from lora_ga_cli.optimizers.lora_pro import ConfiguredLoraPro, Factors
from tests.conftest import build_model
from tests.helpers import configured, prepare
from tests.optimizers.layers import D_IN, D_OUT, RANK, backward, build, change, gradient_of, layer, run, tensor, turned


def factors_of(pair: LoraPair, damping: float = 0.0) -> Factors:
    s = torch.tensor([[[pair.scaling]]], dtype=torch.float64)
    return Factors.of(pair.a.detach()[None], pair.b.detach()[None], s, damping)


def effect(pair: LoraPair, h_a: Tensor, h_b: Tensor) -> Tensor:
    """The change of the weight to first order."""
    return (pair.scaling * (pair.b @ h_a + h_b @ pair.a)).detach()


def directions(pair: LoraPair, *, nearest: bool) -> tuple[Tensor, Tensor]:
    backward([pair])
    factors = factors_of(pair)
    of = factors.nearest if nearest else factors.minimizers
    h_a, h_b = of(pair.delta_a.grad[None], pair.delta_b.grad[None])  # type: ignore[index]
    return h_a[0], h_b[0]


@pytest.mark.parametrize("nearest", [False, True])
def test_the_directions_are_a_least_squares_solution(nearest: bool) -> None:
    """Of the dense problem in all entries of h_A and h_B."""
    pair = layer()
    h_a, h_b = directions(pair, nearest=nearest)
    a, b, gradient = pair.a.detach().numpy(), pair.b.detach().numpy(), gradient_of(pair).numpy()
    dense = pair.scaling * np.hstack([np.kron(b, np.eye(D_IN)), np.kron(np.eye(D_OUT), a.T)])
    solved = np.linalg.lstsq(dense, gradient.ravel(), rcond=None)[0]
    found = dense @ np.concatenate([h_a.numpy().ravel(), h_b.numpy().ravel()])
    assert np.abs(found - dense @ solved).max() < 1e-13 * np.abs(gradient).max()


@pytest.mark.parametrize("nearest", [False, True])
def test_their_effect_is_the_tangent_part_of_the_gradient(nearest: bool) -> None:
    """``G - (I - P_B) G (I - P_A)``, so a step of it never goes against the gradient."""
    pair = layer()
    found, gradient = effect(pair, *directions(pair, nearest=nearest)), gradient_of(pair)
    onto_b = (pair.b @ torch.linalg.pinv(pair.b)).detach()
    onto_a = (torch.linalg.pinv(pair.a) @ pair.a).detach()
    tangent = gradient - (torch.eye(D_OUT) - onto_b) @ gradient @ (torch.eye(D_IN) - onto_a)
    assert torch.allclose(found, tangent, rtol=0, atol=1e-13 * float(gradient.abs().max()) * 10)
    assert float((gradient * found).sum()) == pytest.approx(float((found**2).sum()), rel=1e-12)


def test_the_free_part_solves_sylvesters_equation_and_is_the_nearest_to_the_factors_gradients() -> None:
    pair = layer()
    plain_a, plain_b = directions(pair, nearest=False)
    h_a, h_b = directions(pair, nearest=True)
    a, b = pair.a.detach(), pair.b.detach()
    grad_a, grad_b = pair.delta_a.grad, pair.delta_b.grad
    assert grad_a is not None
    assert grad_b is not None
    right = -torch.linalg.inv(b.T @ b) @ grad_a @ a.T / pair.scaling**2
    x = torch.tensor(scipy.linalg.solve_sylvester((b.T @ b).numpy(), (a @ a.T).numpy(), right.numpy()))
    assert torch.allclose(h_a, plain_a + x @ a, rtol=1e-11, atol=1e-12)
    assert torch.allclose(h_b, plain_b - b @ x, rtol=1e-11, atol=1e-12)
    best = (h_a - grad_a).square().sum() + (h_b - grad_b).square().sum()
    for seed in range(20):
        other = 1e-3 * tensor(RANK, RANK, seed=seed)
        distance = (h_a + other @ a - grad_a).square().sum() + (h_b - b @ other - grad_b).square().sum()
        assert distance > best


def test_one_step_of_sgd_follows_the_directions() -> None:
    pair = layer()
    h_a, h_b = directions(pair, nearest=True)
    a, b = pair.a.detach().clone(), pair.b.detach().clone()
    run(build("lora_pro", [pair], lr=0.1, variant="sgd", damping=0.0))
    assert torch.allclose(pair.a, a - 0.1 * h_a, rtol=1e-12)
    assert torch.allclose(pair.b, b - 0.1 * h_b, rtol=1e-12)


@pytest.mark.parametrize("variant", ["sgd", "adamw"])
def test_equal_products_of_other_factors_move_equally_to_first_order(variant: str) -> None:
    """The difference falls with the square of the learning rate."""
    differences = []
    for rate in (1e-3, 1e-4):
        one, other = layer(), turned(layer(), tensor(RANK, RANK, seed=5))
        moved = [run(build("lora_pro", [pair], lr=rate, variant=variant, damping=0.0))[0] for pair in (one, other)]
        differences.append(float((moved[0] - moved[1]).abs().max()))
        size = float((moved[0] - change(layer())).abs().max())
        assert differences[-1] < 30 * rate * size
    assert differences[1] < differences[0] / 50


@pytest.mark.parametrize(("d_out", "d_in"), [(3, 5), (5, 3)])
def test_with_full_rank_it_is_adamw_on_the_weight(d_out: int, d_in: int) -> None:
    """To first order in the learning rate."""
    differences = []
    for rate in (1e-4, 1e-5):
        pair = layer(d_out=d_out, d_in=d_in, rank=3)
        weight = nn.Parameter(change(pair))
        begin = weight.detach().clone()
        adamw = torch.optim.AdamW([weight], lr=rate, weight_decay=0.0)
        optimizer = build("lora_pro", [pair], lr=rate, damping=0.0)
        for _ in range(5):
            weight.grad = weight.detach() - 3 * tensor(d_out, d_in, seed=300)
            adamw.step()
        moved = run(optimizer, 5)[0] - begin
        differences.append(float((moved - (weight.detach() - begin)).norm() / moved.norm()))
    assert differences[1] < 2e-4
    assert differences[1] < differences[0] / 5


def test_the_size_of_the_loss_does_not_matter_to_the_adamw_variant() -> None:
    moved = [run(build("lora_pro", [layer()], lr=1e-2, eps=1e-30), 10, times=times)[0] for times in (1.0, 1000.0)]
    assert torch.allclose(*moved, rtol=1e-11, atol=1e-12)


def test_while_b_is_zero_only_b_moves_by_the_best_step_in_the_rows_of_a() -> None:
    pair = layer(b=False)
    a, gradient = pair.a.detach().clone(), gradient_of(pair)
    moved = run(build("lora_pro", [pair], lr=0.1, variant="sgd", damping=0.0))[0]
    assert torch.equal(pair.a, a)
    assert torch.allclose(moved, -0.1 * gradient @ torch.linalg.pinv(a) @ a, rtol=1e-11, atol=1e-13)


def test_a_frozen_factor_is_refused() -> None:
    model = prepare(build_model("llama"), configured("lora", "method.frozen_factor=A")).model
    optimizer = ConfiguredLoraPro(configured("lora_pro"))
    with pytest.raises(TrainingError, match=r"q_proj: trainer\.optimizer=lora_pro needs this frozen factor: none"):
        optimizer.build(torch.optim.AdamW(model.parameters()), model)
