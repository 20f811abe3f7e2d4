"""Which ranks follow a share of the gradient, against NumPy and against all choices there are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from lora_ga_cli.gradient.factors import Factors, truncated_svd
from lora_ga_cli.inspection.advice import advise, as_pattern, followed
from lora_ga_cli.model.targets import configured_ranks

SHAPES = {"layers.0.q": (6, 10), "layers.0.up": (14, 8), "layers.1.q": (6, 10)}


def gradients(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        for scale, (name, shape) in zip((1.0, 0.5, 2.0), SHAPES.items(), strict=True)
    }


def layers_of(grads: dict[str, torch.Tensor], capacity: int = 8) -> dict[str, Factors]:
    return {name: truncated_svd(grad, capacity) for name, grad in grads.items()}


def share_of(grads: dict[str, torch.Tensor], ranks: dict[str, int], vectors: int) -> float:
    """With NumPy, from the complete gradients."""
    squares = {name: np.linalg.svd(grad.numpy(), compute_uv=False) ** 2 for name, grad in grads.items()}
    kept = sum(squares[name][: vectors * rank].sum() for name, rank in ranks.items())
    return float(kept / sum(values.sum() for values in squares.values()))


@pytest.mark.parametrize(("seed", "share", "vectors"), itertools.product(range(4), (0.5, 0.8, 0.9), (1, 2)))
def test_the_advice_follows_the_share_at_few_parameters(seed: int, share: float, vectors: int) -> None:
    grads = gradients(seed)
    layers = layers_of(grads)
    advice = advise(layers, share, vectors)
    assert advice.uniform is not None
    assert advice.ranks is not None
    assert share_of(grads, dict.fromkeys(grads, advice.uniform), vectors) >= share
    if advice.uniform > 1:
        assert share_of(grads, dict.fromkeys(grads, advice.uniform - 1), vectors) < share
    assert share_of(grads, advice.ranks, vectors) >= share
    assert followed(layers, advice.ranks, vectors) == pytest.approx(share_of(grads, advice.ranks, vectors), rel=1e-5)
    costs = {name: sum(shape) for name, shape in SHAPES.items()}
    every = (dict(zip(SHAPES, ranks, strict=True)) for ranks in itertools.product(range(1, 8 // vectors + 1), repeat=3))
    enough = [ranks for ranks in every if share_of(grads, ranks, vectors) >= share]
    least = min(sum(rank * costs[name] for name, rank in ranks.items()) for ranks in enough)
    assert advice.parameters is not None
    assert least <= advice.parameters < least + max(costs.values())
    assert advice.at_least <= advice.uniform


def test_what_was_not_kept_is_said_with_a_bound() -> None:
    """The bound on the rank is below the real one, and not trivial."""
    grads = gradients()
    short = advise(layers_of(grads, 2), 0.95, 1)
    assert (short.uniform, short.ranks, short.parameters) == (None, None, None)
    assert short.kept == pytest.approx(share_of(grads, dict.fromkeys(grads, 2), 1), rel=1e-5)
    real = next(rank for rank in range(1, 9) if share_of(grads, dict.fromkeys(grads, rank), 1) >= 0.95)
    assert 3 < short.at_least <= real


def test_layers_of_one_parameter_have_one_rank() -> None:
    grads = gradients()
    together = {"layers.0.q": "experts", "layers.1.q": "experts"}
    advice = advise(layers_of(grads), 0.8, 1, together)
    assert advice.ranks is not None
    assert set(advice.ranks) == {"experts", "layers.0.up"}
    by_layer = {name: advice.ranks[together.get(name, name)] for name in grads}
    assert share_of(grads, by_layer, 1) >= 0.8
    assert advice.parameters == sum(rank * sum(SHAPES[name]) for name, rank in by_layer.items())


NAMES = [
    f"model.layers.{block}.{kind}"
    for block in range(3)
    for kind in ("attention.output.dense", "output.dense", "self_attn.q_proj")
]


@pytest.mark.parametrize("seed", range(20))
def test_a_pattern_gives_the_ranks_that_it_is_made_of(seed: int) -> None:
    """Also where the name of one kind ends as that of another."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(1, 2 + seed % 4, (len(NAMES),), generator=generator).tolist()
    ranks = dict(zip([*NAMES, "pooler.dense"], [*drawn, 3], strict=True))
    rank, pattern = as_pattern(ranks)
    assert configured_ranks(ranks, rank, pattern) == ranks


def test_a_pattern_is_short_where_kinds_have_one_rank() -> None:
    ranks = {name: 9 if name.endswith("q_proj") else 2 for name in NAMES}
    assert as_pattern(ranks) == (2, {"self_attn.q_proj": 9})
    assert as_pattern(dict.fromkeys(NAMES, 4)) == (4, {})
    assert as_pattern({"net.0": 1, "net.2": 3}) == (1, {"net.2": 3})
