"""What chains are in theory: the lengths and layers of links, and GaLore as a chain whose moments are kept."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lora_ga_cli.config.compose import compose
from lora_ga_cli.errors import InvalidInput, TargetError
from lora_ga_cli.lora.layers import lora_layers, trained_parameters
from lora_ga_cli.lora.links import LowRank
from lora_ga_cli.methods.base import InitData, Link, Method, PreparedModel, link_seed, links_of, method_of
from lora_ga_cli.methods.chain import draw_layers
from lora_ga_cli.model.targets import find_targets
from lora_ga_cli.training.arguments import training_arguments
from lora_ga_cli.training.learning_rate import rising_share
from lora_ga_cli.training.optimizer_state import install_state, state_of
from lora_ga_cli.training.run_folder import run_name
from tests.conftest import build_model
from tests.helpers import add_links, configured, no_gradient


def chain(*overrides: str) -> Method:
    return method_of(configured("cola", *overrides))


def prepared(method: Method, link: Link) -> PreparedModel:
    return method.prepare(build_model("llama"), link=link, data=InitData(no_gradient, lambda: iter([])), stored=None)


def test_links_have_equal_lengths_or_those_that_are_asked_for() -> None:
    equal = links_of(chain("method.links=3"), 10)
    assert [(link.first_step, link.steps) for link in equal] == [(0, 3), (3, 3), (6, 4)]
    given = links_of(chain("method.links=null", "method.link_steps=4"), 10)
    assert [(link.first_step, link.steps) for link in given] == [(0, 4), (4, 4), (8, 2)]
    assert {link.total_steps for link in given} == {10}
    assert links_of(chain("method.links=1"), 10) == [Link.only(10)]


def test_a_link_rises_to_the_rate_of_the_run_without_a_step_of_rate_zero() -> None:
    share = rising_share(2, default=1)
    assert [share(step) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert rising_share(0, default=1)(0) == 1
    assert [rising_share(None, default=2)(step) for step in range(3)] == [0, 0.5, 1]


def test_ranks_fall_along_the_chain() -> None:
    method = chain("method.links=4", "method.link_ranks=[4, 2, 1]")
    assert method.largest_rank == 4
    ranks = [method.built_size(prepared(method, link).model) for link in links_of(method, 8)]
    assert [set(of_link) for of_link in ranks] == [{4}, {2}, {1}, {1}]
    with pytest.raises(TargetError, match="has 3 ranks, and this run has 2 links"):
        method_of(
            configured("cola", "method.links=null", "method.link_steps=4", "method.link_ranks=[4, 2, 1]")
        ).check_steps(8)


def test_the_rank_has_no_effect_where_links_have_ranks_of_their_own() -> None:
    """So it is noted where the command line gives it, and is not in the name of the run's folder."""
    given, without = configured("cola", "method.link_ranks=[4, 2]", "rank=7"), configured("cola", "rank=7")
    assert "rank" not in given.shared_uses
    assert "-r7-" not in run_name(given)
    assert "rank" in without.shared_uses
    assert "-r7-" in run_name(without)


def test_a_random_frozen_factor_is_drawn_again_for_each_link() -> None:
    method = chain("method.links=40", "method.frozen_factor=random", "method.init=orthonormal")
    sides = [method.frozen(link) for link in links_of(method, 80)]  # type: ignore[attr-defined]
    assert 10 < sides.count("A") < 30
    links = links_of(method, 80)
    for side in ("A", "B"):
        layers = lora_layers(prepared(method, links[sides.index(side)]).model)
        for layer in layers.values():
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            frozen, trained = (a, b) if side == "A" else (b, a)
            assert (frozen.requires_grad, trained.requires_grad) == (False, True)
            assert not trained.any()
            square = frozen @ frozen.T if side == "A" else frozen.T @ frozen
            torch.testing.assert_close(square, torch.eye(len(square)), atol=1e-5, rtol=0)


def test_the_seeds_of_links_are_those_of_no_other_link() -> None:
    """The first one has the seed of the run; seeds that follow one another give no link the same."""
    seeds = [link_seed(seed, index) for seed in range(100) for index in range(100)]
    assert seeds[::100] == list(range(100))
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert link_seed(42, 1) == link_seed(42, 1)


def test_each_link_has_its_own_dropout(tmp_path: Path) -> None:
    """The first one has that of a run without links."""
    config = configured("cola", "method.links=3", "seed=5")
    seeds = [
        training_arguments(
            config, tmp_path, torch.device("cpu"), name="r", learning_rate=1.0, validate=False, link=link
        ).seed
        for link in links_of(method_of(config), 9)
    ]
    assert seeds == [5, link_seed(5, 1), link_seed(5, 2)]


@pytest.mark.parametrize(
    "options",
    [
        ["method.link_ranks=[1, 4, 2]"],
        ["method.frozen_factor=random", "method.link_ranks=[4, 3, 4]"],
        ["method.layers_per_link=3"],
    ],
    ids=" ".join,
)
def test_the_largest_link_is_the_one_that_trains_most_parameters(options: list[str]) -> None:
    """Counted in the model of every link."""
    method = chain("method.links=5", *options)
    links = links_of(method, 10)
    counts = [trained_parameters(method.attach_empty(build_model("llama").to("meta"), link)) for link in links]
    assert len(set(counts)) > 1
    assert method.largest_link(build_model("llama"), links).index == counts.index(max(counts))


@pytest.mark.parametrize("init", ["kaiming", "orthonormal"])
def test_each_link_draws_its_own_factors(init: str) -> None:
    """And the first one draws those of a run without links."""
    method = chain("method.links=2", f"method.init={init}")
    plain = method_of(configured("lora", f"method.init={init}"))
    first, second = (lora_layers(prepared(method, link).model) for link in links_of(method, 8))
    for name, layer in lora_layers(prepared(plain, Link.only(8)).model).items():
        a = layer.lora_A["default"].weight
        assert torch.equal(a, first[name].lora_A["default"].weight)
        assert not torch.equal(a, second[name].lora_A["default"].weight)


def test_a_link_trains_the_layers_that_are_drawn_for_it() -> None:
    method = chain("method.links=30", "method.layers_per_link=3")
    names = list(find_targets(build_model("llama")))
    drawn = [list(lora_layers(prepared(method, link).model)) for link in links_of(method, 30)[:3]]
    seed = method.config.seed
    assert [sorted(draw_layers(names, 3, seed, index)) for index in range(3)] == [sorted(layers) for layers in drawn]
    assert all(one != other for one, other in pairwise(drawn))
    counts = [name for index in range(1000) for name in draw_layers(names, 3, 0, index)]
    expected = 1000 * 3 / len(names)
    assert all(abs(counts.count(name) - expected) < 4 * expected**0.5 for name in names)
    with pytest.raises(TargetError, match=r"method\.layers_per_link=15, and target_modules names 14 layers"):
        prepared(chain("method.layers_per_link=15"), Link.only(8))


REFUSED = {
    "decide the same": ["method.links=2", "method.link_steps=4"],
    "needs method.links or method.link_steps": ["method.links=null"],
    r"method.link_warmup=2 does nothing without method.link_schedule=run": [
        "method.link_schedule=link",
        "method.link_warmup=2",
    ],
    "method.merged_rank=2 does nothing with method.links=1": ["method.links=1", "method.merged_rank=2"],
    "has 3 ranks for method.links=2": ["method.links=2", "method.link_ranks=[4, 2, 1]"],
    "rank_pattern does nothing with method.link_ranks": ["method.link_ranks=[4]", "rank_pattern={q_proj: 2}"],
    "method.pruned_share=0.5 does nothing with method.link_state=keep": [
        "method.link_state=keep",
        "method.pruned_share=0.5",
    ],
    "method.link_state=keep does nothing with method.links=1": ["method.link_state=keep", "method.links=1"],
    "does not go with trainer.optimizer=paged_adamw": ["method.link_state=keep", "trainer.optimizer=paged_adamw"],
    "method.link_state=prune needs trainer.optimizer=adamw": [
        "method.link_state=prune",
        "trainer.optimizer=paged_adamw",
    ],
    "the state of another rank has another shape": ["method.link_state=keep", "method.link_ranks=[4, 2]"],
    "the link before trained other layers": ["method.link_state=prune", "method.layers_per_link=2"],
    "may have trained the other factor": ["method.link_state=keep", "method.frozen_factor=random"],
    "method.link_state=rotate needs method.frozen_factor=A or B": ["method.link_state=rotate"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_options_that_cannot_act_are_refused(message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        configured("cola", *REFUSED[message])


def adamw(item: Tensor, lr: float, epsilon: float) -> torch.optim.AdamW:
    return torch.optim.AdamW([item], lr=lr, eps=epsilon, weight_decay=0)


def test_galore_is_a_chain_with_a_frozen_subspace_whose_moments_are_kept() -> None:
    """GaLore (arXiv 2403.03507) with projection P: ``R = G Pᵀ``, ``W ← W - lr·α·Adam(R) P``, and P is the leading right
    singular vectors of G every T steps, while Adam's moments go on. A chain with A = P frozen and B from zero, whose
    product has the scaling s = α, makes the same steps in float64."""
    torch.manual_seed(0)
    rank, gap, lr, s, epsilon, steps = 3, 4, 1e-2, 2.0, 1e-8, 14
    wanted, start = torch.randn(6, 10, dtype=torch.float64), torch.randn(6, 10, dtype=torch.float64)
    rows = torch.randn(20, 10, dtype=torch.float64)

    def gradient(weight: Tensor) -> Tensor:
        return (weight - wanted) @ rows.T @ rows / len(rows)

    def leading(weight: Tensor) -> Tensor:
        return torch.linalg.svd(gradient(weight)).Vh[:rank]

    weight, projected = start.clone(), torch.zeros(6, rank, dtype=torch.float64, requires_grad=True)
    galore, projection = adamw(projected, lr, epsilon / s), torch.empty(0)
    for step in range(steps):
        if step % gap == 0:
            projection = leading(weight)
        before = projected.detach().clone()
        projected.grad = gradient(weight) @ projection.T
        galore.step()
        weight = weight + s * (projected.detach() - before) @ projection

    base = nn.ModuleDict({"layer": nn.Linear(10, 6, bias=False, dtype=torch.float64)})
    base["layer"].weight.data = start.clone()
    changes: list[dict[str, LowRank]] = []
    state: dict[str, dict[str, Tensor]] = {}
    for first in range(0, steps, gap):
        model = nn.Module()
        current = start + sum((change["layer"].product() for change in changes), torch.zeros_like(start))
        a = leading(current)
        model.b = nn.Parameter(torch.zeros(6, rank, dtype=torch.float64))
        optimizer = adamw(model.b, lr, epsilon)
        install_state(optimizer, model, state)
        for _ in range(min(gap, steps - first)):
            optimizer.zero_grad()
            outputs = rows @ (current + s * model.b @ a).T
            (0.5 * (outputs - rows @ wanted.T).square().sum() / len(rows)).backward()
            optimizer.step()
        state = state_of(optimizer, model)
        changes.append({"layer": LowRank(s * model.b.detach(), a)})
    add_links(base, changes)
    result = base["layer"](torch.eye(10, dtype=torch.float64)).T
    torch.testing.assert_close(result, weight, rtol=1e-12, atol=1e-13)
    assert float((weight - start).norm()) > 0.1


def test_exact_links_take_the_leading_singular_values_one_after_another() -> None:
    """On ``½‖W - W*‖²``, links that are solved exactly leave the squares of the singular values after the first
    rank·links, by Eckart and Young: COLA's greedy chain loses nothing there."""
    torch.manual_seed(0)
    residual = torch.randn(8, 12, dtype=torch.float64)
    singular = torch.linalg.svdvals(residual)
    for links in range(1, 5):
        change, _ = LowRank(residual, torch.eye(12, dtype=torch.float64)).truncated(2)
        residual = residual - change.product()
        assert float(residual.square().sum()) == pytest.approx(float(singular[2 * links :].square().sum()), rel=1e-5)


def test_compose_reads_every_yaml_of_a_chain() -> None:
    for name in ("cola", "relora", "rac_lora", "xgb_lora", "galore_chain"):
        assert compose(["recipe=quickstart", f"method={name}"]).method.type == "chain"
