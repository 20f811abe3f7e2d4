"""What all optimizers of LoRA's factors share; an optimizer is tested here by being registered."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.accelerator import Accelerator
from torch import nn
from transformers import TrainingArguments

from lora_ga_cli.cli.app import main
from lora_ga_cli.lora.layers import LoraPair, lora_pairs
from lora_ga_cli.methods.base import Link, method_of
from lora_ga_cli.optimizers.base import optimizer_of
from lora_ga_cli.optimizers.pairs import ForPairs, PairOptimizer
from lora_ga_cli.registry import OPTIMIZERS
from lora_ga_cli.training.order import Order
from lora_ga_cli.training.passes import Limits
from lora_ga_cli.training.trainer import LoragaTrainer
from tests.conftest import build_batch, build_model
from tests.helpers import configured, configured_classifier, prepare
from tests.optimizers.layers import backward, build, change, gradient_of, layer, run

NAMES = [name for name in OPTIMIZERS.names() if issubclass(OPTIMIZERS[name], ForPairs)]
every_optimizer = pytest.mark.parametrize("name", NAMES)


def frozen_for(name: str) -> str:
    """What of a pair is frozen with this optimizer."""
    first: str = OPTIMIZERS[name].frozen_factors[0]
    return first


def layers_for(name: str, *, b: bool = True, dtype: torch.dtype = torch.float64) -> list[LoraPair]:
    """Four layers: two of one shape, and two with another rank, shape and scaling."""
    shapes = [(7, 9, 3, 1.7), (7, 9, 3, 0.5), (5, 8, 2, 1.7), (8, 5, 4, 3.0)]
    pairs = []
    for seed, shape in enumerate(shapes):
        pair = layer(seed, *shape, b=b)
        factors = [nn.Parameter(item.detach().to(dtype)) for item in (pair.delta_a, pair.delta_b)]
        factors[0].requires_grad_(frozen_for(name) != "A")
        pairs.append(LoraPair(pair.name, factors[0], factors[1], None, None, pair.scaling))
    return pairs


def without_limits(name: str) -> dict[str, Any]:
    """Options that turn off whatever compares gradients with fixed numbers."""
    return {key: 0.0 for key in ("clip", "skip") if key in OPTIMIZERS[name].Options.model_fields}


def weights(pairs: list[LoraPair]) -> list[torch.Tensor]:
    return [item.detach().clone() for pair in pairs for item in (pair.delta_a, pair.delta_b)]


def all_equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


def test_the_optimizers_of_pairs_are_registered() -> None:
    assert {"lora_pro", "lora_rite", "lora_muon", "scaled_adamw", "lora_fa"} <= set(NAMES)


@every_optimizer
def test_it_goes_down_from_zero_b(name: str) -> None:
    """Every step is finite, and in the end every layer is nearer to its target."""
    pairs = layers_for(name, b=False)
    before = [float(gradient_of(pair, number).norm()) for number, pair in enumerate(pairs)]
    optimizer = build(name, pairs, lr=0.02, **without_limits(name))
    for _ in range(30):
        run(optimizer)
        assert all(item.isfinite().all() for item in weights(pairs))
    for number, pair in enumerate(pairs):
        assert float(gradient_of(pair, number).norm()) < before[number] - 0.05


@every_optimizer
def test_a_zero_gradient_makes_no_step(name: str) -> None:
    pairs = layers_for(name)
    before = weights(pairs)
    optimizer = build(name, pairs)
    for _ in range(2):
        backward(pairs, times=0.0)
        optimizer.step()
    assert all_equal(weights(pairs), before)


@every_optimizer
def test_the_schedule_is_obeyed(name: str) -> None:
    """At rate 0 nothing changes, weight decay included, and a step is proportional to the rate."""
    moved = []
    for rate in (0.0, 1e-6, 2e-6):
        pairs = layers_for(name)
        before = weights(pairs)
        optimizer = build(name, pairs, lr=1.0, weight_decay=0.1)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _, rate=rate: rate)  # type: ignore[misc]
        run(optimizer)
        moved.append([after - begin for after, begin in zip(weights(pairs), before, strict=True)])
    assert not any(item.any() for item in moved[0])
    for once, twice in zip(moved[1], moved[2], strict=True):
        assert torch.allclose(2 * once, twice, rtol=1e-5, atol=1e-13)


@every_optimizer
@pytest.mark.parametrize("fused", [False, True])
def test_a_run_resumes_to_the_bit(name: str, fused: bool) -> None:
    """Through ``torch.save``, and as accelerate puts a state back."""
    pairs, again = layers_for(name, dtype=torch.float32), layers_for(name, dtype=torch.float32)
    optimizer = build(name, pairs, fused=fused, **without_limits(name))
    run(optimizer, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    for item, value in zip([i for pair in again for i in (pair.delta_a, pair.delta_b)], weights(pairs), strict=True):
        item.data.copy_(value)
    file.seek(0)
    resumed = build(name, again, lr=123.0, fused=fused)
    wrapped = Accelerator(cpu=True).prepare_optimizer(resumed)
    wrapped.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.param_groups[-1]["lr"] == optimizer.param_groups[-1]["lr"]
    run(optimizer, 3)
    run(resumed, 3)
    assert all_equal(weights(again), weights(pairs))


@every_optimizer
def test_layers_are_stepped_together_as_each_would_be_alone(name: str) -> None:
    """Each with its own rank and scaling. (Clipping, which looks at all layers, is off.)"""
    off = without_limits(name)
    together, alone = layers_for(name), layers_for(name)
    run(build(name, together, **off), 4)
    for number, pair in enumerate(alone):
        optimizer = build(name, [pair], **off)
        for _ in range(4):
            backward([pair], first=number)
            optimizer.step()
        assert torch.allclose(change(pair), change(together[number]), rtol=1e-10, atol=1e-12)


@every_optimizer
def test_the_loss_times_a_number_changes_nothing_but_for_epsilon(name: str) -> None:
    small, large = (
        run(build(name, layers_for(name), eps=1e-30, **without_limits(name)), 5, times=times) for times in (1.0, 1000.0)
    )
    for one, other in zip(small, large, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-11)


@every_optimizer
def test_differences_from_initial_factors_train_as_the_factors_do(name: str) -> None:
    plain, offset = layers_for(name), []
    for pair in layers_for(name):
        zeros = [nn.Parameter(torch.zeros_like(item), item.requires_grad) for item in (pair.delta_a, pair.delta_b)]
        initial = pair.delta_a.detach(), pair.delta_b.detach()
        offset.append(LoraPair(pair.name, zeros[0], zeros[1], *initial, pair.scaling))
    for found, right in zip(run(build(name, offset), 5), run(build(name, plain), 5), strict=True):
        assert torch.allclose(found, right, rtol=1e-10, atol=1e-12)


@every_optimizer
def test_other_parameters_are_trained_by_adamw_to_the_bit(name: str) -> None:
    heads = [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))]
    optimizer, adamw = build(name, layers_for(name), others=heads[:1]), torch.optim.AdamW(heads[1:], 1e-2)
    adamw.param_groups[0]["weight_decay"] = optimizer.param_groups[0]["weight_decay"] = 0.3
    for number in range(3):
        for head in heads:
            head.grad = torch.full((3, 4), number - 0.5)
        run(optimizer)
        adamw.step()
    assert torch.equal(*heads)


@every_optimizer
def test_a_frozen_factor_stays_as_it_is(name: str) -> None:
    for frozen in set(OPTIMIZERS[name].frozen_factors) & {"A", "B"}:
        pairs = layers_for(name)
        before = weights(pairs)
        for pair in pairs:
            pair.delta_a.requires_grad_(frozen != "A")
            pair.delta_b.requires_grad_(frozen != "B")
        run(build(name, pairs, **without_limits(name)))
        stayed = [torch.equal(after, begin) for after, begin in zip(weights(pairs), before, strict=True)]
        assert stayed == [frozen == "A", frozen == "B"] * len(pairs)


@every_optimizer
def test_the_forecast_counts_what_is_kept(name: str) -> None:
    """Gradients and every tensor of the state but the counters of steps, for a model with a trained head."""
    options = [f"trainer.optimizer={name}", f"method.frozen_factor={frozen_for(name)}", "method.use_dora=true"]
    config = configured("lora", *options)
    model = prepare(build_model("llama"), config).model
    model(**build_batch("llama")).loss.backward()
    trained = [item for item in model.parameters() if item.requires_grad]
    configured_optimizer = optimizer_of(config)
    optimizer = configured_optimizer.build(torch.optim.AdamW(trained, 1e-3), model)
    optimizer.step()
    kept = sum(tensor.numel() for state in optimizer.state.values() for key, tensor in state.items() if key != "step")
    assert configured_optimizer.state_bytes(model) == 4 * (sum(item.numel() for item in trained) + kept)


def trainers_optimizer(model: Any, config: Any, folder: Path, **arguments: Any) -> PairOptimizer:
    """What the Trainer steps."""
    given = TrainingArguments(
        str(folder), learning_rate=1e-3, weight_decay=0.1, use_cpu=True, report_to="none", **arguments
    )
    order, limits = Order([1], 1, seed=0), Limits(None, None, padded=True)
    trainer = LoragaTrainer(
        model=model, args=given, method=method_of(config), link=Link.only(1), order=order, limits=limits
    )
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, PairOptimizer)
    return optimizer


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_the_trainers_groups_and_settings_survive(tmp_path: Path, optim: str) -> None:
    """Weight decay of a new head's weight and not of its bias, magnitudes, and AdamW's fused steps."""
    model: Any = build_model("bert")
    model.newly_initialized = ["classifier"]
    config = configured_classifier("lora", "trainer.optimizer=scaled_adamw", "method.use_dora=true")
    trained = prepare(model, config).model
    optimizer = trainers_optimizer(trained, config, tmp_path, optim=optim, adam_beta2=0.99)
    names = {id(item): name for name, item in trained.named_parameters()}
    groups = [{names[id(item)] for item in group["params"]} for group in optimizer.param_groups]
    *others, factors = groups
    assert factors == {name for name in names.values() if ".lora_A." in name or ".lora_B." in name}
    assert set.union(*groups) == {name for name, item in trained.named_parameters() if item.requires_grad}
    decays = {
        name: group["weight_decay"] for group, of in zip(optimizer.param_groups, groups, strict=True) for name in of
    }
    assert {name for name, decay in decays.items() if decay == 0} == {n for n in decays if n.endswith("bias")}
    assert any("classifier" in name for names_of in others for name in names_of)
    assert any("magnitude" in name for names_of in others for name in names_of)
    for group in optimizer.param_groups:
        assert group["lr"] == 1e-3
        assert group["betas"] == (0.9, 0.99)
        assert bool(group["fused"]) == (optim == "adamw_torch_fused" and not group["pairs"])
    assert optimizer.param_groups[-1]["damping"] == 1e-2


def test_every_layer_has_its_own_scaling_and_rank(tmp_path: Path) -> None:
    config = configured("lora_muon", "rank_pattern={q_proj: 2}")
    model = prepare(build_model("llama"), config).model
    pairs = trainers_optimizer(model, config, tmp_path).pairs
    assert {(pair.delta_b.shape[1], pair.scaling) for pair in pairs} == {(2, 16 / 2**0.5), (4, 16 / 2)}
    assert pairs == lora_pairs(model)  # type: ignore[arg-type]


def test_a_gradient_that_is_not_finite_stops_the_run() -> None:
    pairs = layers_for("lora_muon")
    optimizer = build("lora_muon", pairs)
    backward(pairs, times=float("nan"))
    with pytest.raises(Exception, match="gradient of LoRA's factors is not finite"):
        optimizer.step()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["trainer.optimizer=lora_rit"], "trainer.optimizer=lora_rit names no optimizer; did you mean lora_rite?"),
        (["trainer.optimizer=lora_rite", "trainer.optimizer_options={clp: 0}"], "no option 'clp'; did you mean clip?"),
        (["trainer.optimizer=lora_rite", "trainer.optimizer_options={clip: -1}"], "trainer.optimizer_options.clip"),
        (
            ["trainer.optimizer=lora_rite", "trainer.optimizer_options={clip: x}"],
            "trainer.optimizer_options.clip=x should be a number",
        ),
        (["trainer.optimizer_options={clip: 0}"], "adamw has no options"),
        (["trainer.optimizer=lora_rite", "method=full"], "has none: use trainer.optimizer=adamw"),
        (["trainer.optimizer=lora_fa"], "trainer.optimizer=lora_fa needs method.frozen_factor=A, not none"),
        (["trainer.optimizer=lora_fa", "method=lora_ga"], "an option that method.type=lora_ga does not have"),
        (["method=lora_pro", "method.frozen_factor=A"], "lora_pro needs method.frozen_factor=none, not A"),
    ],
)
def test_what_an_optimizer_cannot_do_is_refused(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    method = [] if any(item.startswith("method=") for item in given) else ["method=lora"]
    assert main(["train", "recipe=quickstart", *method, *given]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1
