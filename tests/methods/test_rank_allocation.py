"""Ranks that the gradient decides: parameters, order, forecasts, what is refused, and what a saved adapter says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel

from lora_ga_cli import GradientArtifact, estimate_gradients
from lora_ga_cli.config.locations import Locations
from lora_ga_cli.errors import InvalidInput, TargetError
from lora_ga_cli.lora.layers import lora_layers, trained_parameters
from lora_ga_cli.lora.offset import LoraInit
from lora_ga_cli.methods.base import InitData, Link, PreparedModel, method_of
from lora_ga_cli.methods.lora import Lora
from lora_ga_cli.methods.rank_allocation import describe_ranks_of
from lora_ga_cli.model.targets import find_targets
from lora_ga_cli.registry import METHODS
from tests.conftest import build_batch, build_model
from tests.helpers import configured, empty, no_gradient, prepare

SHAPES = {name: target.shape for name, target in find_targets(build_model("llama")).items()}
COSTS = {name: sum(shape) for name, shape in SHAPES.items()}
UNIFORM = 4 * sum(COSTS.values())
"""Parameters of rank 4 in every layer."""
ENERGY = "method.rank_allocation=energy"


@pytest.fixture(scope="module")
def gradient() -> GradientArtifact:
    return estimate_gradients(build_model("llama"), [build_batch("llama")])


def ranks_of_model(prepared: PreparedModel) -> dict[str, int]:
    assert isinstance(prepared.model, PeftModel)
    return {name: layer.r["default"] for name, layer in lora_layers(prepared.model).items()}


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "pissa", "lora_ga", "lora_so", "chain_lora_ga"])
def test_every_lora_method_has_ranks_from_the_gradient(method: str) -> None:
    found = prepare(build_model("llama"), configured(method, ENERGY))
    ranks = ranks_of_model(found)
    parameters = sum(rank * COSTS[name] for name, rank in ranks.items())
    assert len(set(ranks.values())) > 1
    assert max(ranks.values()) <= 8
    assert UNIFORM - max(COSTS.values()) < parameters <= UNIFORM
    assert found.init is not None
    assert found.init.ranks == ranks


def test_layers_with_more_of_the_gradient_for_each_parameter_get_more(gradient: GradientArtifact) -> None:
    """No layer would gain more by a further rank than another one did by its last, for the same parameters."""
    ranks = ranks_of_model(prepare(build_model("llama"), configured("lora_allocated")))
    densities = {
        name: [float(value) ** 2 / COSTS[name] for value in gradient.factors[name].singular] for name in SHAPES
    }
    worst_taken = min(densities[name][rank - 1] for name, rank in ranks.items())
    not_taken = [densities[name][ranks.get(name, 0)] for name in SHAPES if ranks.get(name, 0) < 8]
    assert sum(value > worst_taken for value in not_taken) <= 1  # the one that the rest of the budget does not pay for


@pytest.mark.parametrize(("method", "scaling"), [("lora", lambda r: 16 / r), ("rslora", lambda r: 16 / r**0.5)])
def test_the_scale_is_that_of_each_layers_rank(method: str, scaling: object) -> None:
    found = prepare(build_model("llama"), configured(method, ENERGY))
    assert isinstance(found.model, PeftModel)
    for layer in lora_layers(found.model).values():
        assert layer.scaling["default"] == pytest.approx(scaling(layer.r["default"]))  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["grad_norm", "snip"])
def test_hetero_lora_keeps_the_layers_of_the_largest_saliency(kind: str, gradient: GradientArtifact) -> None:
    model = build_model("llama")
    found = prepare(model, configured("hetero_lora", f"method.rank_allocation={kind}", "method.budget_share=0.5"))
    ranks = ranks_of_model(found)
    assert set(ranks.values()) == {4}
    assert UNIFORM / 2 - 4 * max(COSTS.values()) < found.parameters <= UNIFORM / 2
    scores = {}
    for name, target in find_targets(build_model("llama")).items():
        factors = gradient.factors[name]
        leading = factors.left.float() * factors.singular @ factors.right.float().T
        scores[name] = factors.norm if kind == "grad_norm" else float((target.weight.detach() * leading).abs().sum())
    best = max(scores, key=lambda name: scores[name])
    assert best in ranks
    left_out = max((name for name in scores if name not in ranks), key=lambda name: scores[name])
    better = [name for name in ranks if scores[name] > scores[left_out]]
    cheaper = [name for name in ranks if name not in better]
    assert len(better) >= len(cheaper)
    assert all(COSTS[name] < COSTS[left_out] for name in cheaper)


def test_a_budget_is_a_number_of_parameters_or_a_share() -> None:
    share = prepare(build_model("llama"), configured("lora_allocated", "method.budget_share=0.25"))
    number = prepare(build_model("llama"), configured("lora_allocated", f"method.rank_budget={UNIFORM // 4}"))
    assert ranks_of_model(share) == ranks_of_model(number)
    assert share.parameters <= UNIFORM // 4


@pytest.mark.parametrize(
    "options",
    [
        [ENERGY],
        [ENERGY, "method.budget_share=0.3"],
        [ENERGY, "method.rank_budget=3000", "method.max_rank=20"],
        [ENERGY, "method.min_rank=2"],
        ["method.rank_allocation=grad_norm", "method.budget_share=0.4"],
    ],
)
@pytest.mark.parametrize("method", ["rslora", "lora_ga"])
def test_a_forecast_has_as_many_parameters_up_to_one_rank(method: str, options: list[str]) -> None:
    config = configured(method, *options)
    built = prepare(build_model("llama"), config).parameters
    forecast = trained_parameters(empty(build_model("llama"), config))
    one = (4 if "grad_norm" in options[0] else 1) * max(COSTS.values())
    assert abs(built - forecast) < one


def test_a_forecast_of_the_budget_of_a_uniform_rank_is_exact() -> None:
    assert trained_parameters(empty(build_model("llama"), configured("lora_allocated"))) == UNIFORM


def test_a_resumed_run_has_the_same_ranks_without_the_gradient(tmp_path: Path) -> None:
    config = configured("lora_allocated")
    first = prepare(build_model("llama"), config)
    assert first.init is not None
    first.init.save(tmp_path / "init.safetensors")
    data = InitData(no_gradient, lambda: iter([]))
    stored = LoraInit.load(tmp_path / "init.safetensors")
    again = method_of(config).prepare(build_model("llama"), link=Link.only(100), data=data, stored=stored)
    assert ranks_of_model(again) == ranks_of_model(first)
    ours, theirs = (dict(item.model.named_parameters()) for item in (first, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class Plain(Lora):
    """A method that leaves the factors as PEFT initialized them."""


def test_a_method_that_initializes_nothing_stores_its_ranks_too() -> None:
    config = configured("lora_allocated")
    data = InitData(lambda: estimate_gradients(model, [build_batch("llama")]), lambda: iter([]))
    model = build_model("llama")
    found = Plain(config).prepare(model, link=Link.only(100), data=data, stored=None)
    assert found.init is not None
    assert found.init.ranks == ranks_of_model(found)


@pytest.mark.parametrize("method", ["lora_allocated", "lora_ga", "hetero_lora"])
def test_peft_alone_loads_the_saved_adapter(tmp_path: Path, method: str) -> None:
    config = configured(method, *([] if method != "lora_ga" else [ENERGY]))
    found = prepare(build_model("llama"), config)
    assert isinstance(found.model, PeftModel)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in lora_layers(found.model).values():
            weight = layer.lora_B["default"].weight
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    method_of(config).save(found.model, tmp_path, found.init)
    loaded = PeftModel.from_pretrained(build_model("llama"), str(tmp_path)).eval()
    batch = {name: item for name, item in build_batch("llama").items() if name != "labels"}
    with torch.no_grad():
        expected, actual = (model.eval()(**batch).logits for model in (found.model, loaded))
    assert torch.allclose(actual, expected, atol=1e-5)
    described = LoraConfig.from_pretrained(str(tmp_path))
    assert isinstance(described, LoraConfig)
    times = 2 if method == "lora_ga" else 1
    for name, rank in ranks_of_model(found).items():
        assert lora_layers(loaded)[name].r["default"] == times * rank
        assert described.rank_pattern.get(name, described.r) == times * rank
    assert set(lora_layers(loaded)) == set(ranks_of_model(found))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([ENERGY, "rank_pattern={q_proj: 2}"], "rank_allocation=energy decides the ranks.* rank_pattern"),
        (["method.rank_budget=100"], "method.rank_budget=100 does nothing with method.rank_allocation=uniform"),
        (["method.max_rank=6"], "method.max_rank=6 does nothing with method.rank_allocation=uniform"),
        ([ENERGY, "method.rank_budget=100", "method.budget_share=0.5"], "budget_share does nothing"),
        ([ENERGY, "method.max_rank=4"], "max_rank=4 leaves nothing to allocate: it must be above rank=4"),
        ([ENERGY, "method.min_rank=9"], "min_rank=9 is above the largest rank of a layer, 8"),
        ([ENERGY, "gradient.capacity=10"], "capacity=10 serves ranks up to 5, .* use gradient.capacity=16"),
        ([ENERGY, "gradient=exact", "model.quantization=nf4"], "have no gradient, so use gradient=sketch"),
        (["method.rank_allocation=snip"], "snip would keep every layer: give method.budget_share below 1"),
        (["method.rank_allocation=snip", "method.budget_share=0.5", "method.max_rank=6"], "max_rank=6 does nothing"),
        (["method.rank_allocation=snip", "method.budget_share=0.5", "model.shard=true"], "reads complete weights"),
        (["method.rank_allocation=enrgy"], "energy"),
    ],
)
@pytest.mark.parametrize("method", ["lora", "lora_ga"])
def test_options_that_cannot_act_are_refused(method: str, options: list[str], message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        configured(method, *options)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(set(lines))


def test_a_budget_below_one_layer_is_refused() -> None:
    config = configured("lora_allocated", "method.rank_budget=10")
    with pytest.raises(TargetError, match="10 parameters pays for no layer"):
        prepare(build_model("llama"), config)
    with pytest.raises(TargetError, match="10 parameters pays for no layer"):
        empty(build_model("llama"), config)


@pytest.mark.parametrize("method", sorted(Locations().choices("method")))
def test_every_method_with_the_option_asks_for_the_gradient_or_refuses_it(method: str) -> None:
    config = configured(method)
    if not issubclass(METHODS[config.method.type], Lora):
        return
    options = config.method.model_copy(update={"rank_allocation": "energy", "budget_share": 1.0})
    allocating = config.model_copy(update={"method": options})
    faults = list(METHODS[config.method.type].check(allocating))
    if faults:
        assert any("rank_allocation" in fault for fault in faults)
        return
    assert method_of(allocating).needs_gradient
    assert method_of(allocating).largest_rank == 8


@pytest.mark.parametrize("option", ["link_ranks=[4,2]", "layers_per_link=3", "link_state=keep"])
def test_a_chain_decides_the_ranks_of_a_link_in_one_way(option: str) -> None:
    with pytest.raises(InvalidInput, match=f"{option.partition('=')[0]}.*") as caught:
        configured("cola", ENERGY, f"method.{option}")
    assert "rank_allocation=energy" in str(caught.value)


def test_ranks_are_described_by_the_extremes_and_the_median() -> None:
    assert describe_ranks_of({"a": 4, "b": 4}) == "rank 4"
    assert describe_ranks_of({"a": 4, "b": 1, "c": 9, "d": 3}) == "rank 1 (b) to 9 (c), median 3"
