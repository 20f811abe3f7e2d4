"""The warning about a rank that layers cannot use: d_out x d_in matrices have at most rank min(d_out, d_in)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lora_ga_cli.lora.useful_rank import TrainedProduct
from lora_ga_cli.model.targets import find_targets
from tests.conftest import build_model
from tests.helpers import Arguments, Loraga

RANK = 70


def shapes() -> dict[str, tuple[int, int]]:
    return {name: tuple(target.module.weight.shape) for name, target in find_targets(build_model("llama")).items()}


def said(printed: str) -> str:
    return " ".join(printed.split())


@pytest.mark.parametrize(("d_out", "d_in", "rank"), [(3, 5, 4), (6, 2, 9), (4, 4, 4), (8, 8, 2)])
def test_what_is_unused_is_the_difference_to_the_smallest_factors_of_the_same_products(
    d_out: int, d_in: int, rank: int
) -> None:
    product = torch.randn(d_out, rank) @ torch.randn(rank, d_in)
    needed = int(torch.linalg.matrix_rank(product))
    trained = sum(item.numel() for item in (nn.Linear(d_in, rank, bias=False).weight, nn.Linear(rank, d_out).weight))
    low = TrainedProduct(rank, (d_out, d_in), trained)
    assert low.unused == trained - needed * (d_out + d_in)


@pytest.mark.parametrize(("method", "products"), [("lora", 1), ("dora", 1), ("eva", 1), ("sora", 1), ("glora", 2)])
def test_the_layers_the_rank_and_the_cost_are_named(
    method: str, products: int, loraga: Loraga, arguments: Arguments
) -> None:
    assert min(map(min, shapes().values())) < RANK
    unused = products * sum((RANK - min(shape)) * sum(shape) for shape in shapes().values() if min(shape) < RANK)
    printed = said(loraga("train", *arguments("llama", f"method={method}", f"rank={RANK}"), "--dry-run"))
    assert f"warning rank {RANK} is more than the layers can use: the largest useful rank is " in printed
    for limit in {min(shape) for shape in shapes().values()}:
        assert f"{limit} in " in printed
    assert f"{unused:,} of " in printed
    assert "trained parameters add nothing" in printed


def test_it_comes_before_the_training_and_names_single_layers(loraga: Loraga, arguments: Arguments) -> None:
    printed = said(loraga("init", *arguments("llama", "method=lora", f"rank_pattern={{q_proj:{RANK}}}")))
    ours = [shape for name, shape in shapes().items() if name.endswith("q_proj")]
    assert f"{min(ours[0])} in model.layers.*.self_attn.q_proj ({len(ours)} layers). " in printed
    assert "k_proj" not in printed.partition("warning")[2]


def test_a_rank_that_every_layer_can_use_is_no_warning(loraga: Loraga, arguments: Arguments) -> None:
    full = min(map(min, shapes().values()))
    assert "warning" not in loraga("train", *arguments("llama", "method=lora", f"rank={full}"), "--dry-run")
