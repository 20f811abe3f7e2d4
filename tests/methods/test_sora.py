"""SoRA: gates, their proximal step, what is pruned, and what is saved and resumed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from lora_ga_cli.errors import InvalidInput
from lora_ga_cli.lora.gates import folded, gates, soft_threshold
from lora_ga_cli.lora.layers import lora_layers, weight_of
from lora_ga_cli.lora.links import read_adapter
from lora_ga_cli.methods.base import PreparedModel, method_of
from lora_ga_cli.methods.sora import ProximalStep, Sora
from tests.conftest import build_batch, build_model
from tests.helpers import configured, prepare


@pytest.fixture
def prepared() -> PreparedModel:
    """A model whose B is not zero, so that gates matter."""
    found = prepare(build_model("llama"), configured("sora", "method.use_rslora=true"))
    generator = torch.Generator().manual_seed(0)
    for layer in layers(found):
        weight_of(layer.lora_B).data.normal_(0, 0.1, generator=generator)
    return found


def layers(found: PreparedModel) -> list[Any]:
    assert isinstance(found.model, PeftModel)
    return list(lora_layers(found.model).values())


def logits(model: Any) -> Tensor:
    batch = {name: item for name, item in build_batch("llama").items() if name != "labels"}
    with torch.no_grad():
        result: Tensor = model.eval()(**batch).logits
    return result


def zero_gates(found: PreparedModel) -> None:
    """All gates of the first layer, and every second one of the others, become zero."""
    for index, gate in enumerate(gates(found.model).values()):
        gate.data[:: 2 if index else 1] = 0


def after_step(step: ProximalStep, optimizer: Any) -> None:
    """What the Trainer calls between the optimizer's step and that of the learning rate's schedule."""
    nothing: Any = None
    step.on_optimizer_step(nothing, nothing, nothing, optimizer=optimizer)


# The proximal step


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.7])
def test_soft_thresholding_minimizes_the_penalized_distance(threshold: float) -> None:
    """Against a search on a grid: x minimizes ½(x - g)² + t·|x|."""
    grid = torch.linspace(-3, 3, 60001, dtype=torch.float64)  # steps of 1e-4, zero among them
    for value in torch.linspace(-2, 2, 41, dtype=torch.float64):
        best = grid[(0.5 * (grid - value) ** 2 + threshold * grid.abs()).argmin()]
        assert float(soft_threshold(value, threshold)) == pytest.approx(float(best), abs=1e-4)


def test_only_values_within_the_threshold_become_zero() -> None:
    """Those between once and twice the threshold do not."""
    found = soft_threshold(torch.tensor([-0.31, -0.1, -0.05, 0.0, 0.1, 0.15, 0.2]), 0.1)
    assert torch.allclose(found, torch.tensor([-0.21, 0.0, 0.0, 0.0, 0.0, 0.05, 0.1]), atol=1e-7)
    assert (found == 0).tolist() == [False, True, True, True, True, False, False]


def test_the_proximal_step_uses_the_learning_rate_of_the_gates_group() -> None:
    gate, other = torch.nn.Parameter(torch.tensor([1.0, -0.01, 0.0])), torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([{"params": [other], "lr": 9.0}, {"params": [gate], "lr": 0.1}])
    after_step(ProximalStep([gate], 0.5), optimizer)
    assert torch.equal(gate.data, torch.tensor([0.95, 0.0, 0.0]))
    assert torch.equal(other.data, torch.ones(3))
    optimizer.param_groups[1]["lr"] = 0.0  # as at the beginning of a warm-up
    after_step(ProximalStep([gate], 0.5), optimizer)
    assert torch.equal(gate.data, torch.tensor([0.95, 0.0, 0.0]))


def test_a_step_that_fp16_skipped_moves_no_gate() -> None:
    gate = torch.nn.Parameter(torch.ones(3))
    optimizer = SimpleNamespace(step_was_skipped=True, param_groups=[{"params": [gate], "lr": 1.0}])
    after_step(ProximalStep([gate], 0.5), optimizer)
    assert torch.equal(gate.data, torch.ones(3))


def test_a_gate_at_zero_stays_there_without_a_gradient() -> None:
    gate = torch.nn.Parameter(torch.tensor([0.0, 0.5]))
    optimizer, step = torch.optim.AdamW([gate], lr=0.1, weight_decay=0.1), ProximalStep([gate], 0.3)
    for _ in range(5):
        gate.grad = torch.zeros(2)
        optimizer.step()
        after_step(step, optimizer)
    assert float(gate[0].detach()) == 0.0


def test_the_penalty_is_minimized_where_the_closed_form_says() -> None:
    """Gradient steps on ½(g - c)² with the proximal step come to soft(c, λ)."""
    wanted = torch.tensor([2.0, 0.3, -0.2, -1.0], dtype=torch.float64)
    gate = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
    optimizer, step = torch.optim.SGD([gate], lr=0.1), ProximalStep([gate], 0.25)
    for _ in range(500):
        gate.grad = gate.detach() - wanted
        optimizer.step()
        after_step(step, optimizer)
    assert torch.allclose(gate.data, soft_threshold(wanted, 0.25), atol=1e-12)
    assert float(gate[2].detach()) == 0.0


# What a layer computes


def test_a_layer_adds_the_gated_product(prepared: PreparedModel) -> None:
    generator = torch.Generator().manual_seed(1)
    for layer in layers(prepared):
        base = layer.get_base_layer()
        x = torch.randn(3, base.in_features, generator=generator)
        a, b, gate = weight_of(layer.lora_A), weight_of(layer.lora_B), layer.rank_gate
        expected = base(x) + 16 / 4**0.5 * (x @ a.T * gate) @ b.T
        assert torch.allclose(layer(x), expected, atol=1e-5)


def test_the_model_begins_as_its_base_with_gates_of_unit_variance() -> None:
    found = prepare(build_model("llama"), configured("sora", "rank=24"))
    assert torch.equal(logits(found.model), logits(build_model("llama")))
    values = torch.cat([item.detach() for item in gates(found.model).values()])
    assert values.numel() == 24 * len(layers(found))
    assert float(values.mean()) == pytest.approx(0, abs=4 / values.numel() ** 0.5)
    assert float(values.std()) == pytest.approx(1, abs=4 / (2 * values.numel()) ** 0.5)
    assert all(item.requires_grad for item in gates(found.model).values())


def test_without_a_penalty_gates_of_one_train_as_lora() -> None:
    """The gradients of A and B are those of LoRA, and the gate's is that of its definition."""
    gated, plain = prepare(build_model("llama"), configured("sora")), prepare(build_model("llama"), configured("lora"))
    for of_gated, of_plain in zip(layers(gated), layers(plain), strict=True):
        of_gated.rank_gate.data.fill_(1)
        for factor in ("lora_A", "lora_B"):
            weight = weight_of(getattr(of_plain, factor)).data.normal_(0, 0.1)
            weight_of(getattr(of_gated, factor)).data.copy_(weight)
    for found in (gated, plain):
        found.model(**build_batch("llama")).loss.backward()
    for of_gated, of_plain in zip(layers(gated), layers(plain), strict=True):
        for factor in ("lora_A", "lora_B"):
            ours, theirs = (weight_of(getattr(item, factor)).grad for item in (of_gated, of_plain))
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-7)
        # dL/dg_j = Σ_i B_ij dL/dB_ij at g = 1
        expected = (weight_of(of_gated.lora_B) * weight_of(of_gated.lora_B).grad).sum(0)
        assert torch.allclose(of_gated.rank_gate.grad, expected, rtol=1e-3, atol=1e-6)


# What is saved


def test_folded_factors_have_the_product_of_the_gated_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 7, generator=generator), torch.randn(6, 5, generator=generator)
    gate = torch.tensor([0.5, 0.0, -2.0, 0.0, 1.0])
    a_kept, b_kept = folded(a, b, gate)
    assert (a_kept.shape, b_kept.shape) == ((3, 7), (6, 3))
    assert torch.allclose(b_kept @ a_kept, b @ torch.diag(gate) @ a, atol=1e-6)
    a_kept, b_kept = folded(a, b, torch.zeros(5))
    assert (a_kept.shape, b_kept.shape) == ((1, 7), (6, 1))
    assert not b_kept.any()


@pytest.mark.parametrize("safe", [False, True])
def test_gates_are_not_merged_in_memory(prepared: PreparedModel, safe: bool) -> None:
    with pytest.raises(ValueError, match=r"save the adapter, which folds its gates into B"):
        layers(prepared)[0].merge(safe_merge=safe)


def test_peft_alone_loads_the_pruned_adapter(prepared: PreparedModel, tmp_path: Path) -> None:
    zero_gates(prepared)
    method = method_of(configured("sora", "method.use_rslora=true"))
    method.save(prepared.model, tmp_path, None)
    loaded = PeftModel.from_pretrained(build_model("llama"), str(tmp_path)).eval()
    assert torch.allclose(logits(loaded), logits(prepared.model), atol=1e-5)
    assert [layer.r["default"] for layer in lora_layers(loaded).values()] == [1] + [2] * (len(layers(prepared)) - 1)
    assert all(scaling == 8 for layer in lora_layers(loaded).values() for scaling in layer.scaling.values())
    assert method.saved_size(prepared) == 2
    assert {change.rank for change in read_adapter(tmp_path).values()} == {1, 2}
    total = 4 * len(layers(prepared))
    assert f": {total // 2 + 2} of {total} gates are zero" in method.describe_trained(prepared.model)


def test_a_checkpoint_keeps_every_gate_and_factor(prepared: PreparedModel, tmp_path: Path) -> None:
    zero_gates(prepared)
    method = method_of(configured("sora", "method.use_rslora=true"))
    method.save(prepared.model, tmp_path, None)
    method.save_state(prepared.model, tmp_path)
    again = prepare(build_model("llama"), configured("sora", "method.use_rslora=true"))
    method.restore(again.model, tmp_path, None)
    method.restore_state(again.model, tmp_path)
    expected, found = (dict(item.model.named_parameters()) for item in (prepared, again))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_ranks_from_the_gradient_get_a_gate_each() -> None:
    found = prepare(build_model("llama"), configured("sora", "method.rank_allocation=energy"))
    ranks = [layer.r["default"] for layer in layers(found)]
    assert len(set(ranks)) > 1
    assert [item.numel() for item in gates(found.model).values()] == ranks


def test_what_has_no_gates_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"use_dora=true does not go with method\.type=sora"):
        configured("sora", "method.use_dora=true")
    assert not Sora.trains_pairs
