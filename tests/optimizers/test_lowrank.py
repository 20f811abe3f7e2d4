"""GaLore and APOLLO, against torch's AdamW on a factor and against the formulas in numpy, in float64."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from lora_ga_cli.errors import InvalidInput, TargetError
from lora_ga_cli.optimizers.apollo import GROWTH, Apollo
from lora_ga_cli.optimizers.base import optimizer_of
from lora_ga_cli.optimizers.galore import GaLore
from lora_ga_cli.optimizers.lowrank import LowRankMoments
from tests.conftest import build_batch, build_model
from tests.helpers import configured, prepare

BOTH = [GaLore, Apollo]
SHAPES = [(7, 5), (5, 7)]
BETAS, EPS = (0.8, 0.9), 1e-8


def generated(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(shape: tuple[int, ...], count: int = 8) -> Iterator[Tensor]:
    for step in range(count):
        yield generated(*shape, seed=100 + step)


def optimizer_for(
    kind: type[LowRankMoments], weights: list[nn.Parameter], others: list[nn.Parameter] | None = None, **changes: Any
) -> LowRankMoments:
    settings = {"lr": 0.1, "betas": BETAS, "eps": EPS, "weight_decay": 0.0}
    settings |= {name: changes.pop(name) for name in list(changes) if name in settings}
    inner = AdamW([*(others or []), *weights], **settings)  # type: ignore[arg-type]
    return kind(inner, weights, **({"rank": 3, "interval": 3, "scale": 0.5, "seed": 1} | changes))


def trained(kind: type[LowRankMoments], shape: tuple[int, int], factor: float = 1.0, **changes: Any) -> Tensor:
    """A weight after eight steps on random gradients, which are multiplied by a factor."""
    weight = nn.Parameter(generated(*shape))
    optimizer = optimizer_for(kind, [weight], **changes)
    for gradient in gradients(shape):
        weight.grad = factor * gradient
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("shape", SHAPES)
def test_galore_is_adamw_on_one_factor_of_a_chain_that_keeps_its_moments(shape: tuple[int, int]) -> None:
    """``W = W0 + scale · B P`` with P frozen and B from zero: dL/dB = scale · G Pᵀ. Adam does not see the factor, so B
    moves by lr · Adam(G Pᵀ). Every three steps, B P is merged and a new P chosen; AdamW's moments of B stay."""
    found, tall = trained(GaLore, shape, eps=1e-30), shape[0] > shape[1]
    merged, gradients_in_order = generated(*shape) if tall else generated(*shape).T, list(gradients(shape))
    factor = nn.Parameter(torch.zeros(7, 3, dtype=torch.float64))
    adamw = AdamW([factor], lr=0.1, betas=BETAS, eps=1e-30, weight_decay=0.0)
    for first in (0, 3, 6):
        link = [item if tall else item.T for item in gradients_in_order[first : first + 3]]
        projection = torch.linalg.svd(link[0], full_matrices=False).Vh[:3]
        projection = torch.stack([row * row[row.abs().argmax()].sign() for row in projection])
        for gradient in link:
            factor.grad = 0.5 * gradient @ projection.T
            adamw.step()
        merged = merged + 0.5 * factor.detach() @ projection
        factor.data.zero_()
    expected = merged
    assert (found - (expected if tall else expected.T)).abs().max() < 1e-12


def test_galore_of_full_rank_is_adamw_where_singular_vectors_are_axes() -> None:
    """Elsewhere it is Adam in rotated coordinates, which is another step at full rank, too."""
    weight, plain = (nn.Parameter(torch.zeros(4, 4, dtype=torch.float64)) for _ in range(2))
    optimizer = optimizer_for(GaLore, [weight], rank=4, scale=1.0, interval=100, weight_decay=0.1)
    adamw = AdamW([plain], lr=0.1, betas=BETAS, eps=EPS, weight_decay=0.1)
    for gradient in gradients((4,)):
        for item, one in ((weight, optimizer), (plain, adamw)):
            item.grad = gradient.diag()
            one.step()
    assert (weight - plain).abs().max() < 1e-14


@pytest.mark.parametrize("shape", SHAPES)
def test_apollo_takes_the_papers_step(shape: tuple[int, int]) -> None:
    """With the projections that it drew, in numpy: Adam's moments of R, a factor for each row, and the limiter."""
    weight, tall = nn.Parameter(generated(*shape)), shape[0] > shape[1]
    optimizer = optimizer_for(Apollo, [weight])
    expected, moments, before = generated(*shape).numpy(), [np.zeros((7, 3)), np.zeros((7, 3))], None
    for step, gradient in enumerate(gradients(shape), start=1):
        weight.grad = gradient
        optimizer.step()
        oriented = gradient.numpy() if tall else gradient.numpy().T
        low = oriented @ optimizer.state[weight]["basis"].numpy().T
        for place, (beta, new) in enumerate(zip(BETAS, (low, low**2), strict=True)):
            moments[place] = beta * moments[place] + (1 - beta) * new
        mean, square = (moment / (1 - beta**step) for moment, beta in zip(moments, BETAS, strict=True))
        adam = mean / (np.sqrt(square) + EPS)
        change = (np.linalg.norm(adam, axis=1) / np.linalg.norm(low, axis=1))[:, None] * oriented
        norm = np.linalg.norm(change)
        if before is not None and norm > GROWTH * before:
            change, norm = change * (GROWTH * before / norm), GROWTH * before
        before = norm
        expected = expected - 0.1 * 0.5 * (change if tall else change.T)
        assert np.abs(weight.detach().numpy() - expected).max() < 1e-13


def test_apollo_draws_another_projection_for_every_weight_and_interval() -> None:
    optimizer = optimizer_for(Apollo, [nn.Parameter(torch.zeros(400, 400))], rank=200)
    gradient = torch.zeros(400, 400)
    drawn = [optimizer.basis(gradient, number, draw) for number in (1, 2) for draw in (0, 1)]
    assert torch.equal(drawn[0], optimizer.basis(gradient, 1, 0))
    for index, one in enumerate(drawn):
        assert float(one.square().mean()) == pytest.approx(1 / 200, rel=0.03)  # so that ‖R_i‖ is ‖G_i‖ on average
        for other in drawn[:index]:
            assert abs(float((one * other).mean())) < 0.03 / 200


def test_a_step_without_gradient_does_not_hold_apollo_near_zero() -> None:
    weight = nn.Parameter(generated(7, 5))
    optimizer = optimizer_for(Apollo, [weight])
    sizes = []
    for gradient in (generated(7, 5), torch.zeros(7, 5, dtype=torch.float64), generated(7, 5, seed=1)):
        before, weight.grad = weight.detach().clone(), gradient
        optimizer.step()
        sizes.append(float((weight.detach() - before).norm()))
    assert sizes[1] == 0
    assert 0.5 * sizes[0] < sizes[2] <= (GROWTH + 1e-9) * sizes[0]


@pytest.mark.parametrize("kind", BOTH)
def test_a_first_gradient_of_zero_changes_nothing(kind: type[LowRankMoments]) -> None:
    weight = nn.Parameter(generated(7, 5))
    weight.grad = torch.zeros_like(weight)
    optimizer_for(kind, [weight]).step()
    assert torch.equal(weight.detach(), generated(7, 5))


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_size_of_the_loss_changes_nothing(kind: type[LowRankMoments], shape: tuple[int, int]) -> None:
    difference = trained(kind, shape, eps=1e-30) - trained(kind, shape, 1000.0, eps=1e-30)
    assert difference.abs().max() < 1e-12


@pytest.mark.parametrize("kind", BOTH)
def test_a_side_below_the_rank_is_kept_whole(kind: type[LowRankMoments]) -> None:
    weight = nn.Parameter(generated(7, 5))
    weight.grad = generated(7, 5, seed=1)
    optimizer = optimizer_for(kind, [weight], rank=9)
    optimizer.step()
    assert optimizer.state[weight]["exp_avg"].shape == (7, 5)


@pytest.mark.parametrize("kind", BOTH)
def test_rate_and_decay_of_the_group_are_obeyed(kind: type[LowRankMoments]) -> None:
    """The schedule changes ``lr`` of a group; decay is AdamW's, ``1 - lr · weight_decay`` before the step."""
    changes = {}
    for rate, decay in ((0.0, 0.5), (0.1, 0.0), (0.05, 0.0), (0.1, 0.5)):
        weight = nn.Parameter(generated(7, 5))
        optimizer = optimizer_for(kind, [weight], weight_decay=decay)
        for group in optimizer.param_groups:
            group["lr"] = rate
        weight.grad = generated(7, 5, seed=1)
        optimizer.step()
        changes[rate, decay] = weight.detach() - generated(7, 5)
    assert not changes[0.0, 0.5].any()
    assert torch.allclose(changes[0.05, 0.0], changes[0.1, 0.0] / 2, atol=1e-15)
    assert torch.allclose(changes[0.1, 0.5], changes[0.1, 0.0] - 0.1 * 0.5 * generated(7, 5), atol=1e-15)


@pytest.mark.parametrize("kind", BOTH)
def test_everything_else_is_trained_by_torchs_adamw(kind: type[LowRankMoments]) -> None:
    other, plain = (nn.Parameter(generated(6)) for _ in range(2))
    weight = nn.Parameter(generated(7, 5))
    optimizer = optimizer_for(kind, [weight], [other], weight_decay=0.1)
    adamw = AdamW([plain], lr=0.1, betas=BETAS, eps=EPS, weight_decay=0.1)
    for gradient, of_weight in zip(gradients((6,)), gradients((7, 5)), strict=True):
        other.grad, plain.grad, weight.grad = gradient, gradient.clone(), of_weight
        optimizer.step()
        adamw.step()
    assert torch.equal(other, plain)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_saved_state_continues_to_the_bit(
    kind: type[LowRankMoments], dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    """Between two projections, and with the next one after it; read as transformers reads it, without objects."""

    def steps(optimizer: LowRankMoments, weight: nn.Parameter, part: slice) -> None:
        for gradient in list(gradients(shape))[part]:
            weight.grad = gradient.to(dtype)
            optimizer.step()

    weight = nn.Parameter(generated(*shape).to(dtype))
    optimizer = optimizer_for(kind, [weight])
    steps(optimizer, weight, slice(0, 4))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = nn.Parameter(weight.detach().clone())
    other = optimizer_for(kind, [resumed])
    other.load_state_dict(torch.load(file, weights_only=True))
    for one, item in ((optimizer, weight), (other, resumed)):
        steps(one, item, slice(4, 8))
    assert torch.equal(weight, resumed)


@pytest.mark.parametrize("name", ["galore", "apollo"])
def test_the_forecast_counts_what_is_kept(name: str) -> None:
    config = configured("full", f"trainer.optimizer={name}", "trainer.optimizer_options={rank: 4}")
    model = prepare(build_model("llama"), config).model
    optimizer = optimizer_of(config).build(AdamW(model.parameters()), model)
    model(**build_batch("llama")).loss.backward()
    optimizer.step()
    kept = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for key, value in state.items()
        if key not in ("step", "norm")
    )
    of_gradients = sum(item.numel() * item.element_size() for item in model.parameters())
    assert optimizer_of(config).state_bytes(model) == of_gradients + kept


@pytest.mark.parametrize("name", ["galore", "apollo"])
def test_methods_whose_weights_are_frozen_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=rf"trainer\.optimizer={name} trains the weights .* use method=full"):
        configured("lora", f"trainer.optimizer={name}")
    config = configured("bitfit", f"trainer.optimizer={name}")
    model = prepare(build_model("gpt2"), config).model
    trained_biases = [item for item in model.parameters() if item.requires_grad]
    with pytest.raises(TargetError, match=r"method bitfit trains none: use trainer\.optimizer=adamw"):
        optimizer_of(config).build(AdamW(trained_biases), model)


@pytest.mark.parametrize("name", ["galore", "apollo"])
def test_the_shipped_files_choose_an_optimizer_for_full_fine_tuning(name: str) -> None:
    config = configured(name)
    assert (config.method.type, config.trainer.optimizer) == ("full", name)
    with pytest.raises(InvalidInput, match=r"no option 'ranks'; .*rank"):
        configured("full", f"trainer.optimizer={name}", "trainer.optimizer_options={ranks: 4}")
    with pytest.raises(InvalidInput, match=r"optimizer_options\.interval"):
        configured("full", f"trainer.optimizer={name}", "trainer.optimizer_options={interval: 0}")
