"""QA-LoRA: the adapter, its merge into zero points, and the file that holds the grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora.variants import QALoraLinearVariant
from torch import Tensor, nn

from lora_ga_cli.errors import InvalidInput, RunError, TargetError
from lora_ga_cli.methods import custom
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.methods.loading import load_adapter
from lora_ga_cli.methods.qa_lora import GroupedLora
from lora_ga_cli.model.grid import GRID_FILE, quantize, read_grids
from lora_ga_cli.model.targets import find_targets
from tests.conftest import build_batch, build_model
from tests.helpers import Arguments, Loraga, configured, only_run, prepare

GROUP = 8
OPTIONS = (f"method.group_size={GROUP}",)


def generated(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moved(family: str = "llama", *overrides: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model with the method, whose factors moved away from their start."""
    base = build_model(family)
    base.to(dtype)  # type: ignore[arg-type]
    model = prepare(base, configured("qa_lora", *OPTIONS, *overrides)).model
    with torch.no_grad():
        for number, item in enumerate(model.parameters()):
            if item.requires_grad:
                item.copy_(0.1 * generated(*item.shape, seed=number))
    return model.eval()


def logits(model: nn.Module, family: str = "llama") -> Tensor:
    with torch.no_grad():
        return model(**build_batch(family)).logits.double()


def test_the_adapter_is_lora_whose_columns_of_a_are_repeated() -> None:
    """In float64: ``s · B A pool(x) = s · B Ã x``, where à has every column of A ``group_size`` times."""
    adapter = GroupedLora(quantize(generated(6, 24), 4, GROUP), (6, 24), 2, 0.7, 0.0, torch.device("cpu")).double()
    adapter.b.data = generated(6, 2, seed=1).double()
    x = generated(5, 3, 24, seed=2).double()
    repeated = adapter.a.repeat_interleave(GROUP, dim=1)
    assert (adapter(x) - 0.7 * x @ (adapter.b @ repeated).T).abs().max() < 1e-14


def test_peft_multiplies_the_mean_by_the_number_of_groups() -> None:
    """Why its variant is not used here: the sum of 8 inputs would be their mean times 8, and it takes 3."""
    a, b = nn.Linear(3, 2, bias=False), nn.Linear(2, 6, bias=False)
    module: Any = nn.Module()
    module.lora_A, module.lora_B = nn.ModuleDict({"x": a}), nn.ModuleDict({"x": b})
    module.lora_dropout, module.in_features = nn.ModuleDict({"x": nn.Identity()}), 24
    module.scaling, module.qalora_group_size = {"x": 1.0}, {"x": GROUP}
    x = generated(5, 24)
    sums = x.unflatten(-1, (3, GROUP)).sum(-1)
    found = QALoraLinearVariant.forward(module, "x", x, torch.zeros(5, 6))
    assert torch.allclose(found, b(a(sums)) * 3 / GROUP, atol=1e-6)


def test_the_base_is_rounded_and_nothing_is_added_before_the_first_step() -> None:
    plain = {name: target.weight.detach().clone() for name, target in find_targets(build_model("llama")).items()}
    model = prepare(build_model("llama"), configured("qa_lora", *OPTIONS, "method.bits=3")).model
    rounded = build_model("llama")
    for name, target in find_targets(rounded).items():
        target.weight.data = quantize(plain[name], 3, GROUP).dense()
    assert torch.equal(logits(model.eval()), logits(rounded.eval()))
    assert not torch.equal(logits(rounded), logits(build_model("llama").eval()))


def test_a_begins_as_loras_and_b_at_zero() -> None:
    model = prepare(build_model("llama"), configured("qa_lora", *OPTIONS)).model
    for name, item in model.named_parameters():
        if name.endswith("qa_lora.b"):
            assert not item.any()
        elif name.endswith("qa_lora.a"):
            bound = (GROUP * item.shape[1]) ** -0.5
            assert 0.8 * bound < float(item.detach().abs().max()) <= bound


def test_rank_times_groups_and_outputs_train() -> None:
    shapes = {name: target.shape for name, target in find_targets(build_model("llama")).items()}
    options = (*OPTIONS, "rank_pattern={q_proj: 2}")
    prepared = prepare(build_model("llama"), configured("qa_lora", *options))
    ranks = {name: 2 if name.endswith("q_proj") else 4 for name in shapes}
    expected = sum(ranks[name] * (d_in // GROUP + d_out) for name, (d_out, d_in) in shapes.items())
    assert prepared.parameters == expected
    method = method_of(configured("qa_lora", *options))
    assert method.built_size(prepared.model) == list(ranks.values())
    assert method.describe(prepared.model) == f"rank 2 to 4, {len(shapes)} layers"


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("family", ["llama", "gpt2"])  # GPT-2 stores its weights transposed, and has biases
def test_merging_gives_the_adapted_logits_and_weights_on_the_same_grid(tmp_path: Path, family: str, bits: int) -> None:
    model, plain = moved(family, f"method.bits={bits}"), build_model(family)
    expected = logits(model, family)
    write = method_of(configured("qa_lora", *OPTIONS)).merge(model, torch.float32)  # type: ignore[arg-type]
    assert write is not None
    difference = (logits(model, family) - expected).norm() / expected.norm()
    assert difference < 1e-6
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in plain.named_parameters()}
    assert write(tmp_path) == tmp_path / GRID_FILE
    grids, targets = read_grids(tmp_path / GRID_FILE), find_targets(plain)
    assert set(grids) == set(targets)
    for name, target in find_targets(model).items():
        grid, before = grids[name], quantize(targets[name].oriented(targets[name].weight.detach()), bits, GROUP)
        assert torch.equal(grid.q, before.q)
        assert torch.equal(grid.scale, before.scale)
        assert torch.equal(target.oriented(target.weight), grid.dense())
        steps = target.oriented(target.weight).unflatten(-1, (-1, GROUP)) / grid.scale[..., None] + grid.zero[..., None]
        assert (steps - steps.round()).abs().max() < 1e-3


def test_a_merge_in_half_precision_rounds_the_grid_once(tmp_path: Path) -> None:
    model = moved(dtype=torch.bfloat16)
    write = method_of(configured("qa_lora", *OPTIONS)).merge(model, torch.bfloat16)  # type: ignore[arg-type]
    assert write is not None
    grids = read_grids(write(tmp_path))
    for name, target in find_targets(model).items():
        assert torch.equal(target.weight, grids[name].dense().to(torch.bfloat16))


def test_factors_are_float32_on_a_base_in_half_precision() -> None:
    model = moved(dtype=torch.bfloat16)
    assert {item.dtype for item in model.parameters() if item.requires_grad} == {torch.float32}


def test_both_factors_train_and_reach_the_best_change_of_a_group() -> None:
    """On ``½‖W - W*‖²`` with full rank, gradient descent ends at the means of each group of ``W* - W``."""
    grid, wanted = quantize(generated(6, 24), 4, GROUP), generated(6, 24, seed=1).double()
    adapter = GroupedLora(grid, (6, 24), 3, 1.0, 0.0, torch.device("cpu")).double()
    optimizer = torch.optim.LBFGS(adapter.parameters(), max_iter=500, line_search_fn="strong_wolfe")
    identity = torch.eye(24, dtype=torch.float64)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (grid.dense().double() + adapter(identity).T - wanted).square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    best = (wanted - grid.dense().double()).unflatten(-1, (3, GROUP)).mean(-1)
    assert (adapter.b @ adapter.a - best).abs().max() < 1e-4


def test_dropout_is_on_inputs_and_in_training_only() -> None:
    model = moved("llama", "adapter_dropout=0.5")
    assert torch.equal(logits(model), logits(model))
    assert not torch.equal(logits(model.train()), logits(model))


def test_a_saved_adapter_goes_on_the_original_base(tmp_path: Path) -> None:
    model = moved()
    method_of(configured("qa_lora", *OPTIONS)).save(model, tmp_path, None)  # type: ignore[arg-type]
    assert torch.equal(logits(load_adapter(build_model("llama"), tmp_path, "cpu")), logits(model))
    file = tmp_path / custom.CONFIG_FILE
    stored = json.loads(file.read_text())
    for change in ({"bits": 0}, {"group_size": "8"}, {"ranks": {"q_proj": 0}}, {"ranks": 3}, {"alpha": None}):
        file.write_text(json.dumps(stored | {"settings": stored["settings"] | change}))
        with pytest.raises(RunError, match="not the settings of such an adapter"):
            load_adapter(build_model("llama"), tmp_path, "cpu")


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(TargetError, match=r"q_proj \(d_in 48\): method\.group_size=32 does not .*size=24, or leave"):
        prepare(build_model("llama"), configured("qa_lora"))
    with pytest.raises(TargetError, match=r"q_proj: rank=4, and .* \(rank, 3 groups\) has at most rank 3: choose"):
        prepare(build_model("llama"), configured("qa_lora", "method.group_size=16"))
    with pytest.raises(InvalidInput, match="group_size"):
        configured("qa_lora", "method.group_size=6")
    with pytest.raises(InvalidInput, match=r"quantization=nf4 goes with PEFT's adapters"):
        configured("qa_lora", "model.quantization=nf4")


def test_the_commands_say_what_rounding_changes_and_write_the_grid(loraga: Loraga, arguments: Arguments) -> None:
    out = loraga("merge", *arguments("llama", "method=qa_lora", *OPTIONS, "trainer.max_steps=2"))
    assert "weights rounded to 4 bits in groups of 8, B zero; logits already differ from the base's (relative" in out
    merged = only_run() / "merged"
    assert f"{GRID_FILE} is written too" in out
    reloaded = type(build_model("llama")).from_pretrained(merged, dtype=torch.float32)
    grids = read_grids(merged / GRID_FILE)
    for name, target in find_targets(reloaded).items():
        assert torch.equal(target.weight, grids[name].dense())
