"""Sums of adapters: added to a base without drift, written as one adapter, and truncated with a stated error."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from lora_ga_cli.lora.export import export_adapter
from lora_ga_cli.lora.links import (
    LowRank,
    Total,
    layer_scaling,
    merge_layers,
    read_adapter,
    summed,
    write_sum,
)
from lora_ga_cli.lora.offset import compute_init, install
from tests.conftest import build_batch, build_model
from tests.helpers import add_links

TARGETS = ["q_proj", "down_proj"]


def drawn(shape: tuple[int, int], rank: int, seed: int, size: float = 1.0) -> LowRank:
    """A random change of a weight (d_out, d_in)."""
    draw = torch.Generator().manual_seed(seed)
    left = size * torch.randn(shape[0], rank, generator=draw)
    return LowRank(left, torch.randn(rank, shape[1], generator=draw))


def adapter(folder: Path, seed: int, rank: int = 3, targets: Sequence[str] = TARGETS) -> Path:
    """A saved adapter with random initial factors, moved away from them."""
    config = LoraConfig(r=rank, lora_alpha=5 + seed, target_modules=list(targets))
    model = get_peft_model(build_model("llama").eval(), config)
    torch.manual_seed(seed)  # building the model sets another

    def pair(name: str, target: object, rank: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
        d_out, d_in = target.shape  # type: ignore[attr-defined]
        return torch.randn(rank, d_in), torch.randn(d_out, rank)

    init = install(model, compute_init(model, pair, offset="adapter"))
    with torch.no_grad():
        for item in model.parameters():
            if item.requires_grad:
                item += 0.02 * torch.randn_like(item)
    export_adapter(model, folder, init)
    return folder


def test_a_sum_of_three_adapters_is_one_adapter_for_peft(tmp_path: Path) -> None:
    """Loaded by PEFT alone it computes what the base with all three changes computes, in float64 by numpy."""
    folders = [adapter(tmp_path / str(seed), seed, rank=2 + seed) for seed in range(3)]
    rank, error = write_sum(tmp_path / "sum", folders[0], [read_adapter(folder) for folder in folders])
    assert (rank, error) == (2 * (2 + 3 + 4), 0.0)
    base, batch = build_model("llama").eval(), build_batch("llama")
    expected = {name: weight.double().numpy().copy() for name, weight in base.state_dict().items()}
    for folder in folders:
        model = PeftModel.from_pretrained(build_model("llama").eval(), folder)
        for name, layer in model.base_model.model.named_modules():
            if hasattr(layer, "get_delta_weight"):
                expected[f"{name}.weight"] += layer.get_delta_weight("default").detach().double().numpy()
    base.load_state_dict({name: torch.from_numpy(weight).float() for name, weight in expected.items()})
    together = PeftModel.from_pretrained(build_model("llama").eval(), tmp_path / "sum")
    with torch.no_grad():
        torch.testing.assert_close(together(**batch).logits, base(**batch).logits, rtol=1e-4, atol=1e-5)


def test_a_sum_has_the_layers_of_all_links(tmp_path: Path) -> None:
    folders = [
        adapter(tmp_path / "0", 0, targets=["q_proj", "up_proj"]),
        adapter(tmp_path / "1", 1, targets=["q_proj"]),
    ]
    changes = [read_adapter(folder) for folder in folders]
    write_sum(tmp_path / "sum", folders[-1], changes)
    base, batch = build_model("llama").eval(), build_batch("llama")
    add_links(base, changes)
    together = PeftModel.from_pretrained(build_model("llama").eval(), tmp_path / "sum")
    assert set(read_adapter(tmp_path / "sum")) == set(changes[0])
    with torch.no_grad():
        torch.testing.assert_close(together(**batch).logits, base(**batch).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_earlier_links_are_added_to_a_base(tmp_path: Path, dtype: torch.dtype) -> None:
    """A float32 base gets them in its weights; any other keeps its weights to the bit and adds the product."""
    folders = [adapter(tmp_path / str(seed), seed) for seed in range(2)]
    changes = [read_adapter(folder) for folder in folders]
    write_sum(tmp_path / "sum", folders[0], changes)
    base = build_model("llama").to(dtype).eval()
    before = {name: item.clone() for name, item in base.state_dict().items()}
    add_links(base, changes)
    moved = [name for name, item in base.state_dict().items() if not torch.equal(item, before[name])]
    assert len(moved) == (4 if dtype == torch.float32 else 0)
    loaded = PeftModel.from_pretrained(build_model("llama").to(dtype).eval(), tmp_path / "sum")
    batch = build_batch("llama")
    with torch.no_grad():
        actual, expected = base(**batch).logits.float(), loaded(**batch).logits.float()
    assert float((actual - expected).norm() / expected.norm()) < (1e-5 if dtype == torch.float32 else 2e-2)


def test_a_hundred_merges_do_not_drift() -> None:
    """After each of 100 links the weight is the float64 sum, rounded once; adding them one by one in float32 drifts."""
    shape, names = (24, 40), "layer"
    torch.manual_seed(0)
    original = torch.randn(*shape)
    changes = [{names: drawn(shape, 2, seed, 1e-3)} for seed in range(100)]
    exact, one_by_one = original.double(), original.to(torch.bfloat16)
    for count, change in enumerate(changes, 1):
        exact = exact + change[names].product()
        one_by_one = (one_by_one.float() + change[names].product().float()).to(torch.bfloat16)
        model = nn.ModuleDict({names: nn.Linear(shape[1], shape[0], bias=False)})
        model[names].weight.data = original.clone()
        add_links(model, changes[:count])
        rounded_once = exact.float()
        assert float((model[names].weight.detach() - rounded_once).abs().max()) <= 2**-23 * float(
            rounded_once.abs().max()
        )
    error = float((one_by_one.double() - exact).norm() / (exact - original.double()).norm())
    assert error > 0.05  # what a merge of each link into the weights' own type would have lost


def test_a_sum_that_grows_with_every_link_is_that_of_all_links_to_the_bit() -> None:
    """After each of 40 links, whose ranks and layers differ, and against the float64 sum by numpy."""
    shapes = {"narrow": (24, 40), "wide": (40, 24)}

    def fresh() -> nn.ModuleDict:
        torch.manual_seed(0)
        return nn.ModuleDict({name: nn.Linear(n, m, bias=False) for name, (m, n) in shapes.items()})

    total, changes = Total(), []
    exact = {name: module.weight.detach().double().numpy() for name, module in fresh().items()}
    for number in range(40):
        names = list(shapes)[: 1 + number % 2]
        changes.append({name: drawn(shapes[name], 1 + number % 3, number, 1e-2) for name in names})
        total.add(changes[-1])
        growing, at_once = fresh(), fresh()
        total.apply(growing)
        add_links(at_once, changes)
        for name, module in growing.items():
            assert torch.equal(module.weight, at_once[name].weight)
            if name in changes[-1]:
                exact[name] = exact[name] + changes[-1][name].product().numpy()
            found = module.weight.detach().double().numpy()
            assert (np.abs(found - exact[name]) <= 2**-24 * np.abs(exact[name]) * (1 + 1e-6)).all()


@pytest.mark.parametrize("keep", [False, True])
def test_sums_of_layers_stay_in_memory_only_where_they_are_to_be_kept(
    monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    """Without that, at most one layer has its sum in memory; the weights are the same to the bit."""
    names, alive, product = ["0", "1", "2"], weakref.WeakSet[torch.Tensor](), LowRank.product
    most = 0

    def counted(change: LowRank) -> torch.Tensor:
        nonlocal most
        most = max(most, len(alive))
        alive.add(result := product(change))
        return result

    total, kept = Total(keep_products=keep), Total(keep_products=True)
    for number in range(3):
        change = {name: drawn((4, 4), 1, 3 * number + int(name)) for name in names}
        total.add(change)
        kept.add(change)
        models = [nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in names}) for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        kept.apply(models[0])
        monkeypatch.setattr(LowRank, "product", counted)
        total.apply(models[1])
        monkeypatch.setattr(LowRank, "product", product)
        assert all(torch.equal(models[0][name].weight, models[1][name].weight) for name in names)
    assert len(alive) == (len(names) if keep else 0)
    assert most == (len(names) if keep else 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_merging_rounds_once(tmp_path: Path, dtype: torch.dtype) -> None:
    """A merged weight in half precision is the nearest number to the float64 sum; PEFT rounds the change first."""
    folder = adapter(tmp_path / "one", 1)
    model = PeftModel.from_pretrained(build_model("llama").to(dtype).eval(), folder)
    base = build_model("llama").to(dtype)
    expected = {
        name: (base.get_submodule(name).weight.double() + change.product()).to(dtype)
        for name, change in read_adapter(folder).items()
    }
    merge_layers(model, dtype)
    merged = model.merge_and_unload(safe_merge=True)
    for name, weight in expected.items():
        different = merged.get_submodule(name).weight != weight
        assert int(different.sum()) <= 1, name  # a tie may fall to either side


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_truncation_is_the_best_one_and_its_error_is_stated(rank: int) -> None:
    """Against numpy's SVD of the full product in float64."""
    change = summed([{"layer": drawn((20, 30), 4, 0)}, {"layer": drawn((20, 30), 4, 1)}])["layer"]
    cut, error = change.truncated(rank)
    singular = np.linalg.svd(change.product().numpy(), compute_uv=False)
    assert error == pytest.approx(np.linalg.norm(singular[rank:]) / np.linalg.norm(singular), rel=1e-6)
    difference = (cut.product() - change.product()).norm() / change.product().norm()
    assert float(difference) == pytest.approx(error, rel=1e-5)
    assert change.truncated(8) == (change, 0.0)


def test_a_sum_has_no_higher_rank_than_its_layers_have_sides(tmp_path: Path) -> None:
    """The links' ranks add up to 66, and each layer is written at its shorter side, with the same product."""
    folders = [adapter(tmp_path / str(seed), seed, rank=11) for seed in range(3)]
    changes = [read_adapter(folder) for folder in folders]
    rank, error = write_sum(tmp_path / "sum", folders[-1], changes)
    written, total = read_adapter(tmp_path / "sum"), summed(changes)
    sides = {name: min(change.product().shape) for name, change in total.items()}
    assert {change.rank for change in total.values()} == {66}
    assert {name: change.rank for name, change in written.items()} == sides
    assert (rank, error) == (max(sides.values()), 0.0)
    assert rank < 66
    for name, change in total.items():
        exact = change.product()
        assert float((written[name].product() - exact).norm() / exact.norm()) < 1e-6
    base, batch = build_model("llama").eval(), build_batch("llama")
    add_links(base, changes)
    together = PeftModel.from_pretrained(build_model("llama").eval(), tmp_path / "sum")
    with torch.no_grad():
        torch.testing.assert_close(together(**batch).logits, base(**batch).logits, rtol=1e-4, atol=1e-5)


def test_a_truncated_sum_states_its_error(tmp_path: Path) -> None:
    folders = [adapter(tmp_path / str(seed), seed) for seed in range(2)]
    changes = [read_adapter(folder) for folder in folders]
    rank, error = write_sum(tmp_path / "sum", folders[0], changes, max_rank=4)
    written, total = read_adapter(tmp_path / "sum"), summed(changes)
    lost = sum(float((written[name].product() - total[name].product()).norm()) ** 2 for name in total) ** 0.5
    norm = sum(float(total[name].product().norm()) ** 2 for name in total) ** 0.5
    assert rank == 4
    assert error == pytest.approx(lost / norm, rel=1e-5)
    assert 0 < error < 1


def test_layers_that_keep_their_rank_count_in_the_error_of_a_truncation(tmp_path: Path) -> None:
    """A sum of rank 12 in some layers and 6 in others, truncated to 8: the error is that of the complete change."""
    folders = [adapter(tmp_path / str(seed), seed) for seed in range(2)]
    changes = [read_adapter(folder) for folder in folders]
    changes[1] = {name: change for name, change in changes[1].items() if name.endswith("q_proj")}
    _, error = write_sum(tmp_path / "sum", folders[0], changes, max_rank=8)
    written, total = read_adapter(tmp_path / "sum"), summed(changes)
    lost = sum(float((written[name].product() - total[name].product()).norm()) ** 2 for name in total) ** 0.5
    norm = sum(float(total[name].product().norm()) ** 2 for name in total) ** 0.5
    assert error == pytest.approx(lost / norm, rel=1e-5)
    assert error > 0


def test_the_scale_of_a_layer_that_peft_adapts_as_a_parameter() -> None:
    """PEFT's patterns name such a layer by its weight."""
    config = LoraConfig(r=4, lora_alpha=32, alpha_pattern={"mlp.gate_proj.weight": 8})
    assert layer_scaling(config, "model.layers.0.mlp.gate_proj", 4) == 2.0
    assert layer_scaling(config, "model.layers.0.mlp.up_proj", 4) == 8.0
