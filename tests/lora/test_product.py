"""What LoRA layers compute, beside PEFT's own layers and beside autograd in float64; and in which types."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lora_ga_cli import estimate_gradients, initialize
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.lora.adapter_dtype import set_adapter_dtype
from lora_ga_cli.lora.difference import Direct
from lora_ga_cli.lora.initialization import random_factors
from lora_ga_cli.lora.layers import ADAPTER, lora_layers, lora_pairs, weight_of
from lora_ga_cli.lora.offset import compute_init, install, train_directly
from lora_ga_cli.lora.product import AddProduct, Factors
from lora_ga_cli.model.unsupported import Unsupported
from tests.conftest import build_batch, build_model
from tests.helpers import configured, prepare

FAMILIES = ("llama", "gpt2", "t5", "bert")
RANK = 3
"""Not a power of two, so that neither is s."""


def in_type(family: str, dtype: torch.dtype) -> Any:
    """A base in a type, without dropout."""
    return nn.Module.to(build_model(family), dtype).eval()


def peft_model(family: str = "llama", dtype: torch.dtype = torch.float32, **options: Any) -> PeftModel:
    """PEFT's own LoRA on a base in a type, with float32 factors of which neither is zero."""
    torch.manual_seed(1)
    base: Any = in_type(family, dtype)
    targets = ["c_attn", "c_fc"] if family == "gpt2" else "all-linear"
    task = "SEQ_CLS" if family == "bert" else None
    described = LoraConfig(
        r=RANK, use_rslora=True, target_modules=targets, fan_in_fan_out=family == "gpt2", task_type=task, **options
    )
    model = get_peft_model(base, described)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            weight_of(layer.lora_B).normal_(std=0.05)
    return model


def direct_model(family: str = "llama", dtype: torch.dtype = torch.float32, **options: Any) -> PeftModel:
    """The same model, with loraga's product."""
    model = peft_model(family, dtype, **options)
    train_directly(model)
    return model


def offset_model(dtype: torch.dtype = torch.float32, *, moved: float = 0.01, offset: str = "adapter") -> PeftModel:
    """A model in the difference form, with random initial factors, and differences of a size."""
    model = peft_model("llama", dtype)

    def pair(name: str, target: Any, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
        return random_factors(target.shape, rank, factor=1.0, seed=len(name))

    install(model, compute_init(model, pair, offset=offset))
    torch.manual_seed(2)
    with torch.no_grad():
        for found in lora_pairs(model):
            found.delta_a.normal_().mul_(moved)
            found.delta_b.normal_().mul_(moved)
    return model


FORMS: dict[str, Callable[[torch.dtype], PeftModel]] = {
    "direct": lambda dtype: direct_model("llama", dtype),
    "difference": offset_model,
}
every_form = pytest.mark.parametrize("form", list(FORMS))


def gradients(model: PeftModel, batch: dict[str, Tensor]) -> list[Tensor]:
    """Those of all factors, after one pass."""
    model.zero_grad()
    model(**batch).loss.backward()
    found = [item.grad for pair in lora_pairs(model) for item in (pair.delta_a, pair.delta_b)]
    assert all(item is not None for item in found)
    return [item for item in found if item is not None]


def distance(actual: list[Tensor], expected: list[Tensor]) -> float:
    """The relative distance of several tensors together."""
    one, other = (torch.cat([item.detach().double().flatten() for item in items]) for items in (actual, expected))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_direct_product_is_pefts(family: str) -> None:
    """Logits, and the gradients of A, B and everything else that trains, in float32."""
    batch, expected, actual = build_batch(family), peft_model(family), direct_model(family)
    assert all(isinstance(layer.lora_variant[ADAPTER], Direct) for layer in lora_layers(actual).values())
    torch.testing.assert_close(actual(**batch).logits, expected(**batch).logits, rtol=1e-6, atol=1e-6)
    actual(**batch).loss.backward()
    expected(**batch).loss.backward()
    for (name, one), other in zip(actual.named_parameters(), expected.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None and other.grad is not None:
            assert distance([one.grad], [other.grad]) < 1e-5, name


def test_dropout_draws_what_pefts_does() -> None:
    batch, logits = build_batch("llama"), []
    for build in (peft_model, direct_model):
        model = build(lora_dropout=0.3).train()
        torch.manual_seed(3)
        logits.append(model(**batch).logits.detach())
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(logits[0], direct_model()(**batch).logits, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merging_and_disabling_are_pefts(family: str) -> None:
    batch, model = build_batch(family), direct_model(family)
    with torch.no_grad():
        trained, base = model(**batch).logits, build_model(family).eval()(**batch).logits
        with model.disable_adapter():
            assert torch.equal(model(**batch).logits, base)
        for safe in (True, False):
            model.merge_adapter(safe_merge=safe)
            torch.testing.assert_close(model(**batch).logits, trained, rtol=1e-4, atol=1e-5)
            model.unmerge_adapter()
            torch.testing.assert_close(model(**batch).logits, trained, rtol=1e-4, atol=1e-5)
        merged, expected = direct_model(family).merge_and_unload(), peft_model(family).merge_and_unload()
        for one, other in zip(merged.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}], ids=["dora", "bias"])
def test_layers_that_compute_something_else_are_left_as_they_are(options: dict[str, Any]) -> None:
    model, before = direct_model(**options), peft_model(**options)
    assert torch.equal(model(**build_batch("llama")).logits, before(**build_batch("llama")).logits)


def test_the_direct_product_has_the_gradients_of_autograd() -> None:
    """In float64, for x, A and B, and for a result that cannot be written in place."""
    draw = torch.Generator().manual_seed(0)
    x, a, b, result = (
        torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()
        for shape in ((2, 5, 7), (3, 7), (6, 3), (2, 5, 6))
    )
    expected = result + 1.7 * (x @ a.T @ b.T)
    factors = Factors(a.detach(), b.detach(), 1.7, (a._version, b._version))
    weights = torch.randn(2, 5, 6, generator=draw, dtype=torch.float64)
    inputs = (result, x, a, b)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    for base in (result, result * 1, (result * 1).view(10, 6).view(2, 5, 6)):
        actual = AddProduct.apply(base, x, a, b, factors)
        torch.testing.assert_close(actual, expected)
        for one, other in zip(torch.autograd.grad((actual * weights).sum(), inputs), wanted, strict=True):
            torch.testing.assert_close(one, other)


@every_form
def test_products_in_bfloat16_have_nearly_the_gradients_of_float32(form: str) -> None:
    """On a base in float32, so that nothing but the products is rounded; what trains stays in float32."""
    batch, expected, actual = build_batch("llama"), FORMS[form](torch.float32), FORMS[form](torch.float32)
    set_adapter_dtype(actual, torch.bfloat16)
    wanted, found = gradients(expected, batch), gradients(actual, batch)
    assert 0 < distance(found, wanted) < 1e-2
    assert {item.dtype for item in found} == {torch.float32}
    assert all(item.dtype == torch.float32 for item in actual.parameters() if item.requires_grad)
    assert distance([actual(**batch).logits], [expected(**batch).logits]) < 1e-2
    set_adapter_dtype(actual, None)
    assert torch.equal(actual(**batch).logits, expected(**batch).logits)


@every_form
def test_gradients_of_several_passes_add_up_in_float32(form: str) -> None:
    model, batch = FORMS[form](torch.bfloat16), build_batch("llama")
    set_adapter_dtype(model, torch.bfloat16)
    other = build_batch("llama", seed=5)
    apart = [[item.clone() for item in gradients(model, rows)] for rows in (batch, other)]
    gradients(model, batch)
    model(**other).loss.backward()
    for pair, first, second in zip(lora_pairs(model), apart[0][::2], apart[1][::2], strict=True):
        found = pair.delta_a.grad
        assert found is not None
        assert torch.equal(found, first + second)
        assert not torch.equal(found, (first + second).bfloat16().float())


def test_nothing_changes_at_step_0_with_products_in_bfloat16() -> None:
    batch, model = build_batch("llama"), offset_model(torch.bfloat16, moved=0.0)
    set_adapter_dtype(model, torch.bfloat16)
    with torch.no_grad():
        expected = in_type("llama", torch.bfloat16)(**batch).logits
        assert torch.equal(model(**batch).logits, expected)
    assert all(item.norm() > 0 for item in gradients(model, batch))


def layer_of(model: PeftModel) -> Any:
    """A layer that is wider than it is high."""
    return lora_layers(model)["model.layers.0.mlp.down_proj"]


def saved_by(layer: Any, x: Tensor) -> list[Tensor]:
    """What autograd keeps of one layer for its backward pass, besides parameters."""
    kept: list[Tensor] = []
    weights = {item.data_ptr() for item in layer.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x).sum().backward()
    return kept


@every_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_a_layer_keeps_its_input_and_a_product_of_its_rank(form: str, dtype: torch.dtype | None) -> None:
    """The input itself, not a copy. PEFT's own layer keeps a copy in float32."""
    model = FORMS[form](torch.bfloat16)
    set_adapter_dtype(model, dtype)
    x = torch.randn(2, 7, 80, dtype=torch.bfloat16, requires_grad=True)
    kept, hidden = saved_by(layer_of(model), x)
    assert kept.data_ptr() == x.data_ptr()
    assert hidden.shape == (14, 2 * RANK if form == "difference" else RANK)
    assert hidden.dtype == (dtype or torch.float32)
    of_peft = saved_by(layer_of(peft_model("llama", torch.bfloat16)), x)
    assert any(item.dtype == torch.float32 and item.numel() == x.numel() for item in of_peft)


def test_a_frozen_a_needs_no_input() -> None:
    layer = layer_of(direct_model("llama", torch.bfloat16))
    layer.lora_A[ADAPTER].requires_grad_(False)
    (hidden,) = saved_by(layer, torch.randn(2, 7, 80, dtype=torch.bfloat16, requires_grad=True))
    assert hidden.shape == (14, RANK)


@every_form
def test_autocasts_type_comes_first(form: str) -> None:
    model = FORMS[form](torch.float32)
    set_adapter_dtype(model, torch.float32)
    x = torch.randn(2, 7, 80, requires_grad=True)
    for autocast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            kept = saved_by(layer_of(model), x)
        hidden = [item for item in kept if item.shape[-1] in (RANK, 2 * RANK) and len(item) == 14]
        assert [item.dtype for item in hidden] == [expected]


@every_form
def test_float32_parameters_do_not_lose_small_steps(form: str) -> None:
    """Steps of a 10,000th of a number, which AdamW on parameters in bfloat16 drops."""
    model = FORMS[form](torch.bfloat16)
    set_adapter_dtype(model, torch.bfloat16)
    assert share_moved(model) > 0.8
    assert share_moved(FORMS[form](torch.bfloat16).to(torch.bfloat16)) < 0.01


def share_moved(model: PeftModel) -> float:
    """The share of numbers, all 0.1 large, that 20 steps of AdamW move by at least half of what they could."""
    parameters = [item for item in model.parameters() if item.requires_grad]
    with torch.no_grad():
        for item in parameters:
            item.copy_(torch.where(item < 0, -0.1, 0.1))
    before = [item.detach().clone() for item in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0)
    for _ in range(20):
        model(**build_batch("llama")).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = [(after.detach() - one).abs().flatten() for after, one in zip(parameters, before, strict=True)]
    return float((torch.cat(moved) > 0.5 * 20 * 1e-5).float().mean())


class Operations(TorchDispatchMode):
    """Counts the operations that launch something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and "empty" not in func.name():
            self.found[func.name()] += 1
        return func(*args, **(kwargs or {}))


def operations(model: PeftModel) -> Counter[str]:
    """Those of a forward and a backward pass, after a first one."""
    model.train()
    gradients(model, build_batch("llama"))
    model.zero_grad()
    with Operations() as counted:
        model(**build_batch("llama")).loss.backward()
    return counted.found


def test_the_difference_form_takes_one_operation_more_in_each_layer() -> None:
    counts = []
    for form in FORMS.values():
        model = form(torch.bfloat16)
        set_adapter_dtype(model, torch.bfloat16)
        counts.append(operations(model))
    direct, difference = counts
    layers, shapes = len(lora_layers(offset_model())), 3
    per_pass = 2 + 2 * shapes  # the factors of all layers
    assert difference.total() == direct.total() + layers + per_pass
    of_peft = operations(peft_model("llama", torch.bfloat16)).total()
    assert direct.total() + 5 * layers <= of_peft


@every_form
def test_an_input_is_never_cast(form: str) -> None:
    """In bfloat16, no more is cast than gradients, which are as small as factors, and what the base itself casts."""
    model = FORMS[form](torch.bfloat16)
    set_adapter_dtype(model, torch.bfloat16)
    layers = len(lora_layers(model))
    found = operations(model)["aten::_to_copy"]
    with model.disable_adapter():
        for item in model.parameters():
            item.requires_grad_(True)
        of_base = operations_of_base(model)["aten::_to_copy"]
    assert found <= of_base + 2 * layers


def operations_of_base(model: PeftModel) -> Counter[str]:
    """Those of the base alone."""
    with Operations() as counted:
        model(**build_batch("llama")).loss.backward()
    return counted.found


def test_a_copy_of_a_model_computes_with_its_own_factors() -> None:
    """Even after a change that torch is not told of."""
    batch, model = build_batch("llama"), direct_model()
    set_adapter_dtype(model, torch.bfloat16)
    with torch.no_grad():
        before = model(**batch).logits
        other = copy.deepcopy(model)
        for pair in lora_pairs(other):
            pair.delta_b.data.mul_(2)
        changed = other(**batch).logits
        assert torch.equal(model(**batch).logits, before)
        assert distance([changed], [before]) > 1e-3


@every_form
def test_a_forward_pass_that_failed_does_not_keep_old_factors(form: str) -> None:
    model, batch = FORMS[form](torch.float32), build_batch("llama")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    backbone: Any = model.get_base_model().model
    with torch.no_grad():
        before = backbone(**inputs).last_hidden_state
        with pytest.raises(TypeError, match="must be Tensor"):
            model.get_base_model()(input_ids="no tensor")
        for pair in lora_pairs(model):
            pair.delta_b.data.mul_(2)
        assert distance([backbone(**inputs).last_hidden_state], [before]) > 1e-4


@every_form
def test_checkpointed_blocks_have_the_same_gradients(form: str) -> None:
    batch, found = build_batch("llama"), []
    for checkpointing in (False, True):
        model = FORMS[form](torch.bfloat16).train()
        set_adapter_dtype(model, torch.bfloat16)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        found.append(gradients(model, batch))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@every_form
def test_a_compiled_layer_computes_the_same(form: str) -> None:
    """In one graph, without a break."""
    model = FORMS[form](torch.float32)
    layer = layer_of(model)
    trained = [layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]
    x = torch.randn(2, 7, 80, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    weights = torch.randn(2, 7, 48)
    for one, other in zip(
        torch.autograd.grad((compiled(x) * weights).sum(), [x, *trained]),
        torch.autograd.grad((layer(x) * weights).sum(), [x, *trained]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_type_is_refused_where_products_are_not_loragas_or_must_cancel() -> None:
    batch = build_batch("llama")
    refused = {
        "no LoRA layers": build_model("llama"),
        "PEFT": direct_model(use_dora=True),
        "subtracted from the base's weights": offset_model(offset="base"),
    }
    for reason, model in refused.items():
        with torch.no_grad():
            before = model(**batch).logits
            with pytest.raises(Unsupported, match=reason):
                set_adapter_dtype(model, torch.bfloat16)
            set_adapter_dtype(model, torch.float32)
            set_adapter_dtype(model, None)
            assert torch.equal(model(**batch).logits, before)


@pytest.mark.parametrize("method", ["lora", "rslora", "lora_plus", "eva", "lora_one", "lora_ga", "pissa", "lora_fa"])
def test_every_method_of_pairs_takes_a_type(method: str) -> None:
    """As the method prepares its model."""
    if method == "lora_fa":
        config = configured("lora", "trainer.optimizer=lora_fa", "method.frozen_factor=A")
    else:
        config = configured(method, *(["method.offset=adapter"] if method in ("lora_ga", "pissa") else []))
    model: Any = prepare(build_model("llama").eval(), config).model
    batch = build_batch("llama")
    with torch.no_grad():
        for pair in lora_pairs(model):
            pair.delta_b.add_(0.02)
        expected = model(**batch).logits
        set_adapter_dtype(model, torch.bfloat16)
        assert 0 < distance([model(**batch).logits], [expected]) < 1e-2


@pytest.fixture(scope="module")
def artifact() -> GradientArtifact:
    return estimate_gradients(build_model("llama"), [build_batch("llama")])


def test_a_model_with_initial_factors_from_its_gradient_learns_in_bfloat16(artifact: GradientArtifact) -> None:
    """As far down as with products in float32, in 30 steps."""
    batch, fallen = build_batch("llama"), []
    for dtype in (torch.bfloat16, None):
        base = in_type("llama", torch.bfloat16).train()
        model = get_peft_model(base, LoraConfig(r=4, use_rslora=True, target_modules=artifact.target_modules))
        initialize(model, artifact, offset="adapter")
        set_adapter_dtype(model, dtype)
        optimizer, losses = torch.optim.AdamW([item for item in model.parameters() if item.requires_grad], lr=2e-3), []
        for _ in range(30):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        fallen.append(losses[0] - losses[-1])
    assert fallen[1] > 0.5
    assert fallen[0] == pytest.approx(fallen[1], rel=0.03)
