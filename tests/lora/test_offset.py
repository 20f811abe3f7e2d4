"""LoRA-GA's initial factors on real models: they are aligned with the gradient, and the model does not change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from lora_ga_cli import GradientArtifact, estimate_gradients, export_adapter, initialize
from lora_ga_cli.errors import GradientError, RunError, TargetError
from lora_ga_cli.gradient.estimator import Estimator
from lora_ga_cli.gradient.estimators.exact import ExactEstimator
from lora_ga_cli.gradient.estimators.sketch import SketchEstimator
from lora_ga_cli.lora.difference import difference_form
from lora_ga_cli.lora.layers import base_targets, lora_pairs
from lora_ga_cli.lora.offset import LoraInit, install
from lora_ga_cli.lora.product import AddProduct, Factors
from lora_ga_cli.model.targets import find_targets, fingerprint
from tests.conftest import FAMILIES, build_batch, build_model
from tests.gradient import HALF

RANK = 4


def wrapped(family: str, artifact: GradientArtifact, rank: int = RANK) -> PeftModel:
    model = build_model(family).eval()
    config = LoraConfig(
        r=rank, use_rslora=True, target_modules=artifact.target_modules, fan_in_fan_out=family == "gpt2"
    )
    return get_peft_model(model, config)


@pytest.fixture(scope="module")
def artifacts() -> dict[str, GradientArtifact]:
    """The gradient of each family on one batch."""
    return {family: estimate_gradients(build_model(family), [build_batch(family)]) for family in FAMILIES}


def first_step(model: PeftModel, family: str) -> dict[str, np.ndarray]:
    """Each weight's movement in plain gradient descent of A and B, by autograd, per unit of learning rate."""
    pairs = lora_pairs(model)
    factors = [factor for pair in pairs for factor in (pair.delta_a, pair.delta_b)]
    grads = iter(torch.autograd.grad(model(**build_batch(family)).loss, factors))
    moved = {}
    for pair in pairs:
        a, b = pair.a.detach().double(), pair.b.detach().double()
        grad_a, grad_b = next(grads).double(), next(grads).double()
        moved[pair.name] = (b @ grad_a + grad_b @ a).numpy()
    return moved


@pytest.mark.parametrize(
    ("direction", "offset"), [("ArB2r", "base"), ("A2rBr", "base"), ("ArBr", "base"), ("ArB2r", "adapter")]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_steps_along_its_gradient(
    artifacts: dict[str, GradientArtifact], family: str, direction: str, offset: str
) -> None:
    """Against the full gradient and its decomposition by numpy in float64; Conv1D (GPT-2) included."""
    base = build_model(family).eval()
    targets = find_targets(base)
    grads = torch.autograd.grad(base(**build_batch(family)).loss, [target.weight for target in targets.values()])
    model = wrapped(family, artifacts[family])
    initialize(model, artifacts[family], direction=direction, offset=offset)
    moved = first_step(model, family)
    assert set(moved) == set(targets)
    for (name, target), grad in zip(targets.items(), grads, strict=True):
        full = target.oriented(grad).double().numpy()
        singular = np.linalg.svd(full, compute_uv=False)
        best = np.linalg.norm(singular[: 2 * RANK]) / np.linalg.norm(singular)
        cosine = (moved[name] * full).sum() / np.linalg.norm(moved[name]) / np.linalg.norm(full)
        assert cosine / best >= 0.9999, name


@pytest.mark.parametrize("scale", ["stable", "unit", "gd", "weight_svd"])
@pytest.mark.parametrize("offset", ["base", "adapter"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_changes_at_step_0(
    artifacts: dict[str, GradientArtifact], family: str, offset: str, scale: str
) -> None:
    batch = build_batch(family)
    with torch.no_grad():
        expected = build_model(family).eval()(**batch).logits
        model = wrapped(family, artifacts[family])
        initialize(model, artifacts[family], scale=scale, offset=offset)
        found = model(**batch).logits
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize(("estimator", "rounding"), [(ExactEstimator, 1e-4), (SketchEstimator, HALF)])
def test_initial_factors_are_the_same_to_the_bit_and_from_a_thousand_times_the_loss(
    estimator: Callable[[], Estimator], rounding: float
) -> None:
    """The sketch gives its directions in float16, and a number between two of them may round to either."""
    model, batches = build_model("llama"), [build_batch("llama")]
    artifact = estimate_gradients(model, batches, estimator=estimator())
    thousandfold = estimate_gradients(
        model, batches, estimator=estimator(), loss_function=lambda model, batch: 1000 * model(**batch).loss
    )
    one, again = (initialize(wrapped("llama", artifact), artifact) for _ in range(2))
    scaled = initialize(wrapped("llama", artifact), thousandfold)
    for name, pair in one.factors.items():
        for first, second, third in zip(pair, again.factors[name], scaled.factors[name], strict=True):
            assert torch.equal(first, second)
            torch.testing.assert_close(first, third, rtol=rounding, atol=1e-5)
    assert one.installed_base == again.installed_base


def test_one_artifact_serves_every_rank_up_to_half_its_capacity(artifacts: dict[str, GradientArtifact]) -> None:
    assert artifacts["llama"].max_rank == 16
    for rank in (1, 2, 8):
        init = initialize(wrapped("llama", artifacts["llama"], rank), artifacts["llama"])
        assert {a0.shape[0] for a0, _ in init.factors.values()} == {rank}
    with pytest.raises(GradientError, match="serves ranks up to 16, not rank=17: estimate with a capacity of 34"):
        initialize(wrapped("llama", artifacts["llama"], 17), artifacts["llama"])


def test_errors_come_before_anything_is_modified(artifacts: dict[str, GradientArtifact]) -> None:
    artifact = artifacts["llama"]
    lacking = dict(artifact.factors)
    del lacking["model.layers.1.self_attn.v_proj"]
    model = wrapped("llama", artifact)
    before = fingerprint(base_targets(model))
    with pytest.raises(GradientError, match=r"no gradient for model\.layers\.1\.self_attn\.v_proj"):
        initialize(model, GradientArtifact(lacking, 32))
    with pytest.raises(TargetError, match=r"rank=13 needs 26 singular vectors.*k_proj \(d_out 24, d_in 48\).*rank=12"):
        initialize(wrapped("llama", artifact, 13), artifact)
    assert fingerprint(base_targets(model)) == before
    with pytest.raises(TargetError, match="no LoRA layer"):
        initialize(build_model("llama"), artifact)  # type: ignore[arg-type]


@pytest.mark.parametrize("offset", ["base", "adapter"])
@pytest.mark.parametrize(
    "options",
    [{"rank_pattern": {"q_proj": 2}}, {"alpha_pattern": {"q_proj": 2}}, {"use_dora": True}],
    ids=["ranks", "alphas", "dora"],
)
def test_ranks_alphas_and_magnitudes_of_layers(
    artifacts: dict[str, GradientArtifact], tmp_path: Path, options: dict[str, object], offset: str
) -> None:
    """Nothing changes at step 0, and what a few steps train loads in PEFT alone on the original base model."""
    batch, artifact = build_batch("llama"), artifacts["llama"]
    with torch.no_grad():
        expected = build_model("llama").eval()(**batch).logits
    config = LoraConfig(r=RANK, use_rslora=True, target_modules=artifact.target_modules, **options)
    model = get_peft_model(build_model("llama").eval(), config)
    init = initialize(model, artifact, offset=offset)
    torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-4, atol=1e-5)
    optimizer = torch.optim.Adam([item for item in model.parameters() if item.requires_grad], 1e-2)
    for _ in range(3):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    export_adapter(model, tmp_path, init)
    loaded = PeftModel.from_pretrained(build_model("llama"), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, rtol=1e-4, atol=1e-5)


def test_a_lora_bias_is_refused(artifacts: dict[str, GradientArtifact]) -> None:
    artifact = artifacts["gpt2"]
    config = LoraConfig(r=RANK, target_modules=artifact.target_modules, lora_bias=True, fan_in_fan_out=True)
    with pytest.raises(TargetError, match="LoRA bias"):
        initialize(get_peft_model(build_model("gpt2"), config), artifact)


def test_a_stored_initialization_is_installed_again_to_the_bit(
    artifacts: dict[str, GradientArtifact], tmp_path: Path
) -> None:
    first = wrapped("gpt2", artifacts["gpt2"])
    init = initialize(first, artifacts["gpt2"])
    init.save(tmp_path / "init.safetensors")
    second = wrapped("gpt2", artifacts["gpt2"])
    install(second, LoraInit.load(tmp_path / "init.safetensors"))
    for (name, one), (_, other) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(one, other), name


def test_a_stored_initialization_refuses_another_base(artifacts: dict[str, GradientArtifact]) -> None:
    init = initialize(wrapped("llama", artifacts["llama"]), artifacts["llama"])
    other = wrapped("llama", artifacts["llama"])
    with torch.no_grad():
        next(iter(base_targets(other).values())).weight[0, 0] += 1e-3
    with pytest.raises(RunError, match="base model is not the one"):
        install(other, init)


def test_a_half_precision_base_is_left_as_it_is(artifacts: dict[str, GradientArtifact]) -> None:
    """Shifting bfloat16 weights moves the logits by more than rounding; carrying the init does not move them."""
    batch, differences = build_batch("llama"), {}
    for offset in ("base", "adapter", "auto"):
        base = build_model("llama").to(torch.bfloat16).eval()
        with torch.no_grad():
            expected = base(**batch).logits.float()
            model = get_peft_model(
                base, LoraConfig(r=RANK, use_rslora=True, target_modules=artifacts["llama"].target_modules)
            )
            initialize(model, artifacts["llama"], offset=offset)
            found = model(**batch).logits.float()
        differences[offset] = float((found - expected).norm() / expected.norm())
    assert differences["adapter"] == differences["auto"] == 0
    assert differences["base"] > 1e-3


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_both_forms_train_the_same_adapter(artifacts: dict[str, GradientArtifact], decay: float) -> None:
    """A few steps of AdamW in either form give the same ΔA and ΔB; weight decay pulls towards the initialization."""
    batch, trained, logits = build_batch("llama"), {}, {}
    for offset in ("base", "adapter"):
        model = wrapped("llama", artifacts["llama"])
        initialize(model, artifacts["llama"], offset=offset)
        optimizer = torch.optim.AdamW(
            [item for item in model.parameters() if item.requires_grad], 1e-2, weight_decay=decay
        )
        for _ in range(4):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        logits[offset] = model(**batch).logits.detach()
        trained[offset] = {pair.name: (pair.delta_a.detach(), pair.delta_b.detach()) for pair in lora_pairs(model)}
    # Adam turns the sign of a gradient near zero into a step, so single numbers may differ
    assert float((logits["base"] - logits["adapter"]).norm() / logits["base"].norm()) < 1e-3
    for name, deltas in trained["base"].items():
        for one, other in zip(deltas, trained["adapter"][name], strict=True):
            assert float((one - other).norm() / one.norm()) < 0.02


def test_the_difference_form_has_the_gradients_of_autograd(artifacts: dict[str, GradientArtifact]) -> None:
    """Against the same product written with autograd's own operations, in float64, for x, ΔA and ΔB."""
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    x, delta_a, delta_b = (random(*shape).requires_grad_() for shape in ((2, 5, 7), (3, 7), (6, 3)))
    a0, b0, scaling = random(3, 7), random(6, 3), 1.7
    expected = scaling * (x @ (a0 + delta_a).T @ (b0 + delta_b).T - x @ a0.T @ b0.T)
    right, left = difference_form(delta_a.detach(), delta_b.detach(), a0, b0)
    factors = Factors(right, left, scaling, (delta_a._version, delta_b._version))
    actual = AddProduct.apply(torch.zeros(2, 5, 6).double(), x, delta_a, delta_b, factors)
    torch.testing.assert_close(actual, expected)
    weights = random(*expected.shape)
    inputs = (x, delta_a, delta_b)
    for one, other in zip(
        torch.autograd.grad((actual * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_a_training_model_merges_as_it_computes(artifacts: dict[str, GradientArtifact]) -> None:
    """PEFT's own merge of a model in training, in both forms."""
    batch = build_batch("llama")
    for offset in ("base", "adapter"):
        model = wrapped("llama", artifacts["llama"])
        initialize(model, artifacts["llama"], offset=offset)
        with torch.no_grad():
            for pair in lora_pairs(model):
                pair.delta_b.add_(0.01)
            expected = model(**batch).logits
            merged = model.merge_and_unload()(**batch).logits
        torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)


def test_two_forward_passes_before_a_backward_pass_count_twice(artifacts: dict[str, GradientArtifact]) -> None:
    model, batch = wrapped("llama", artifacts["llama"]), build_batch("llama")
    initialize(model, artifacts["llama"], offset="adapter")
    (model(**batch).loss + model(**batch).loss).backward()
    twice = [pair.delta_b.grad.clone() for pair in lora_pairs(model)]
    model.zero_grad()
    model(**batch).loss.backward()
    for pair, found in zip(lora_pairs(model), twice, strict=True):
        torch.testing.assert_close(found, 2 * pair.delta_b.grad)


def test_a_factor_that_changes_before_the_backward_pass_is_refused(artifacts: dict[str, GradientArtifact]) -> None:
    model, batch = wrapped("llama", artifacts["llama"]), build_batch("llama")
    initialize(model, artifacts["llama"], offset="adapter")
    loss = model(**batch).loss
    with torch.no_grad():
        lora_pairs(model)[0].delta_b.add_(1.0)
    with pytest.raises(RuntimeError, match="changed between the forward and the backward pass"):
        loss.backward()


def test_a_backbone_alone_computes_with_what_was_trained_last(artifacts: dict[str, GradientArtifact]) -> None:
    """Even after an optimizer that writes into memory without telling torch."""
    batch = build_batch("llama")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for offset in ("base", "adapter"):
        model = wrapped("llama", artifacts["llama"])
        initialize(model, artifacts["llama"], offset=offset)
        with torch.no_grad():
            model(**batch)
            for pair in lora_pairs(model):
                pair.delta_b.data.add_(0.01)
            hidden = model.get_base_model().model(**inputs).last_hidden_state
            logits = model.get_base_model().lm_head(hidden)
            torch.testing.assert_close(logits, model(**batch).logits)
