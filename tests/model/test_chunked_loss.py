"""The loss in chunks is the model's own, in value and gradient, and whole logits never exist."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from peft import AdaLoraConfig, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from lora_ga_cli.methods.prefix import insert
from lora_ga_cli.model.chunked_loss import use_chunked_loss
from lora_ga_cli.model.losses import summed_loss
from lora_ga_cli.model.probe import probe_logits
from lora_ga_cli.model.unsupported import Unsupported
from tests.conftest import build_batch, build_model

VOCABULARY = 259
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GROUPED = COMMON | {"num_key_value_heads": 2, "head_dim": 8}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", GROUPED),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", GROUPED),
    "gemma2": ("Gemma2", GROUPED | {"final_logit_softcapping": 0.05}),
    "gemma3": ("Gemma3Text", GROUPED | {"final_logit_softcapping": 0.05}),
    "granite": ("Granite", GROUPED | {"logits_scaling": 8.0}),
    "cohere": ("Cohere", GROUPED | {"logit_scale": 7.0}),
    "cohere2": ("Cohere2", GROUPED | {"logit_scale": 7.0}),
    "gpt2": ("GPT2", {**build_model("gpt2").config.to_dict(), "n_embd": 32, "dtype": None}),
    "gpt_neox": ("GPTNeoX", COMMON),
    "opt": ("OPT", COMMON | {"ffn_dim": 56, "word_embed_proj_dim": 24}),
    "phi": ("Phi", COMMON),
    "phi3": ("Phi3", GROUPED),
    "llama4": ("Llama4Text", GROUPED | {"intermediate_size_mlp": 56, "num_local_experts": 2}),
    "mixtral": ("Mixtral", GROUPED | {"num_local_experts": 4, "output_router_logits": True}),
    "olmo2": ("Olmo2", GROUPED),
    "glm4": ("Glm4", GROUPED),
    "bloom": ("Bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 2}),
}


def decoder(name: str, **other: Any) -> PreTrainedModel:
    family, settings = DECODERS[name]
    config = getattr(transformers, f"{family}Config")(**settings | other)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # random enough for a soft cap or a bias to matter
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.2)
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        nn.init.normal_(head.bias)
    return model


def padded(rows: int = 4, tokens: int = 12) -> dict[str, Tensor]:
    return build_batch("llama", rows, tokens)


def flattened(rows: int = 4, tokens: int = 12) -> dict[str, Tensor]:
    """The rows of `padded` one after another."""
    batch = padded(rows, tokens)
    parts = [
        {name: value[row][batch["attention_mask"][row].bool()] for name, value in batch.items()} for row in range(rows)
    ]
    for part in parts:
        part["labels"][0] = -100
        part["position_ids"] = torch.arange(len(part["labels"]))
    names = ("input_ids", "labels", "position_ids")
    return {name: torch.cat([part[name] for part in parts])[None] for name in names}


def adapted(model: PreTrainedModel, **other: Any) -> nn.Module:
    """The model with a LoRA whose factors are all random."""
    torch.manual_seed(1)
    settings: dict[str, Any] = {
        "r": 4,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    } | other
    if "llama4" in model.config.model_type:
        settings["exclude_modules"] = ["router"]  # which returns a tuple
    model = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def results(model: nn.Module, batch: dict[str, Any], **other: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss, and gradients by name."""
    model.zero_grad()
    loss = model(**batch | other).loss
    (3 * loss).backward()
    return loss.detach(), {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def assert_equal(actual: Any, expected: Any, tolerance: float = 1e-6) -> None:
    assert distance(actual[0], expected[0]) <= tolerance
    assert actual[1].keys() == expected[1].keys()
    assert expected[1]
    both = [torch.cat([each.flatten() for each in side[1].values()]) for side in (actual, expected)]
    assert distance(*both) <= tolerance


def distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


class Sizes(TorchDispatchMode):
    """Remembers the most positions that a tensor had beside the vocabulary."""

    most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **kwargs or {})
        for tensor in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(tensor, Tensor) and tensor.shape[-1:] == (VOCABULARY,):
                self.most = max(self.most, tensor.numel() // VOCABULARY)
        return output


@pytest.mark.parametrize("rows", [padded, flattened])
@pytest.mark.parametrize("name", DECODERS)
def test_loss_and_gradients_are_the_models_own(name: str, rows: Callable[[], dict[str, Tensor]]) -> None:
    model, batch = adapted(decoder(name)).eval(), rows()
    expected = results(model, batch)
    use_chunked_loss(model.base_model.model, tokens=5)
    assert_equal(results(model, batch), expected)


@pytest.mark.parametrize("name", ["llama", "granite", "mixtral"])
def test_half_precision_differs_by_rounding(name: str) -> None:
    exact, batch = adapted(decoder(name)).eval(), padded()
    half = copy.deepcopy(exact).to(torch.bfloat16)
    exact.load_state_dict({key: value.float() for key, value in half.state_dict().items()})
    truth, plain = results(exact, batch), results(half, batch)
    use_chunked_loss(half.base_model.model, tokens=5)
    chunked = results(half, batch)
    assert chunked[0].dtype == torch.float32
    assert distance(chunked[0], truth[0]) <= 2 * distance(plain[0], truth[0]) + 1e-4
    both = [torch.cat([each.flatten() for each in side[1].values()]) for side in (chunked, plain, truth)]
    assert distance(both[0], both[2]) <= 1.2 * distance(both[1], both[2]) + 1e-3


def test_float16_keeps_gradients_that_are_small_only_by_the_mean() -> None:
    """Of many positions, each has a gradient that float16 would lose if it were divided before the last moment."""
    model = adapted(decoder("llama")).eval()
    batch = padded(rows=64, tokens=100)
    expected = results(model, batch)
    half = copy.deepcopy(model.base_model.model).to(torch.float16)
    use_chunked_loss(half)
    scale = 2.0**14
    loss = scale * half(**batch).loss
    loss.backward()
    assert distance(loss / scale, expected[0]) <= 1e-3
    for name, parameter in half.named_parameters():
        if parameter.grad is not None:
            wanted = 2.0**14 / 3 * expected[1][f"base_model.model.{name}"]
            assert distance(parameter.grad, wanted) <= 2e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_reaches_every_chunk(dtype: torch.dtype) -> None:
    """The head's products are those of autocast: with the weights in float32, its rounding shows."""
    model, batch = adapted(decoder("llama")).eval(), padded()
    exact = results(model, batch)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        expected = results(model, batch)
        use_chunked_loss(model.base_model.model, tokens=5)
        actual = results(model, batch)
    assert distance(actual[0], expected[0]) <= (1e-6 if dtype == torch.float32 else 1e-5)
    assert (distance(expected[0], exact[0]) > 1e-5) == (dtype != torch.float32)
    assert_equal(actual, expected, 1e-6 if dtype == torch.float32 else 1e-2)


def lora_on_the_head(model: PreTrainedModel) -> nn.Module:
    return adapted(model, target_modules=["q_proj", "lm_head"])


def saved_head(model: PreTrainedModel) -> nn.Module:
    return adapted(model, target_modules=["q_proj"], modules_to_save=["lm_head"])


def only_the_head(model: PreTrainedModel) -> nn.Module:
    return adapted(model, target_modules=["lm_head"])


def trained_tokens(model: PreTrainedModel) -> nn.Module:
    """Tied rows of embeddings and head train, in a parameter that does not lie in the head."""
    adapter = adapted(model, target_modules=["q_proj"], trainable_token_indices=[5, 6, 7, 100])
    assert model.get_output_embeddings().weight is not None
    return adapter


def all_weights(model: PreTrainedModel) -> nn.Module:
    return model


HEADS: dict[str, tuple[Callable[[PreTrainedModel], nn.Module], bool]] = {
    "LoRA": (lora_on_the_head, False),
    "LoRA, tied": (lora_on_the_head, True),
    "LoRA on nothing else": (only_the_head, False),
    "saved": (saved_head, False),
    "trained tokens, tied": (trained_tokens, True),
    "all weights": (all_weights, False),
    "all weights, tied": (all_weights, True),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_trains_has_its_gradient(name: str) -> None:
    """Also when what trains comes after the lever."""
    train, tied = HEADS[name]
    model, batch = decoder("llama", tie_word_embeddings=tied), padded()
    other = copy.deepcopy(model)
    use_chunked_loss(other, tokens=5)
    model, other = train(model).eval(), train(other).eval()
    assert_equal(results(other, batch), results(model, batch), 2e-6)


@pytest.mark.parametrize("head", [False, True])
def test_gradient_checkpointing(head: bool) -> None:
    model, batch = (lora_on_the_head if head else adapted)(decoder("llama")).train(), padded()
    expected = results(model, batch)
    base = model.base_model.model
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    base.enable_input_require_grads()
    use_chunked_loss(base, tokens=5)
    assert_equal(results(model, batch), expected)


def test_dropout_on_the_head_is_drawn_once_for_a_chunk() -> None:
    """The second forward pass of a chunk repeats the first one: else the gradient is that of another loss."""
    model, batch = adapted(decoder("llama"), target_modules=["lm_head"], lora_dropout=0.5).train(), padded()
    use_chunked_loss(model.base_model.model, tokens=5)
    factor = model.base_model.model.lm_head.lora_B["default"].weight
    step = torch.randn_like(factor) * 1e-3

    def loss() -> Tensor:
        torch.manual_seed(3)
        return model(**batch).loss.double()

    loss().backward()
    with torch.no_grad():
        above = factor.add_(step) is factor and loss()
        below = factor.sub_(2 * step) is factor and loss()
    assert float(above - below) == pytest.approx(2 * float((factor.grad * step).sum()), rel=2e-2)


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    ],
    ids=["prompt", "prefix"],
)
def test_trained_vectors_before_every_row(config: Any) -> None:
    batch = padded()
    batch["labels"][:, 0] = 9  # predicted from the last of the vectors before it, if they are inputs
    model = get_peft_model(decoder("llama"), config).eval()
    expected = results(model, batch)
    use_chunked_loss(model.base_model, tokens=5)
    assert_equal(results(model, batch), expected)


def test_losses_that_are_added_stay() -> None:
    """AdaLoRA's, which PEFT adds outside of the model, and that of a mixture's routers inside of it."""
    batch = padded()
    model = decoder("llama")
    settings = AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], total_step=10, orth_reg_weight=3.0)
    model = get_peft_model(model, settings)
    expected = results(model, batch)
    with model.disable_adapter():
        without = model.base_model.model(**batch).loss
    assert distance(expected[0], without) > 0.01
    use_chunked_loss(model.base_model.model, tokens=5)
    assert_equal(results(model, batch), expected)

    model = decoder("mixtral", router_aux_loss_coef=0.5)
    use_chunked_loss(model, tokens=5)
    assert float(model(**batch).aux_loss) > 1
    assert distance(model(**batch).loss, model(**batch, output_router_logits=False).loss) > 0.01


def test_prefixes_of_every_block() -> None:
    batch, (model, other) = padded(), (decoder("llama").eval(), decoder("llama").eval())
    use_chunked_loss(other, tokens=5)
    for each in (model, other):
        torch.manual_seed(1)
        insert(each, 3)
    assert_equal(results(other, batch), results(model, batch))


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_no_logits_outlive_their_chunk(head: bool, flat: bool) -> None:
    model = (lora_on_the_head if head else adapted)(decoder("llama")).train()
    batch = flattened(8, 30) if flat else padded(8, 30)
    with Sizes() as plain:
        results(model, batch)
    assert plain.most >= 8 * 30 - 3
    use_chunked_loss(model.base_model.model, tokens=16)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel() if tensor.shape[-1:] == (VOCABULARY,) else 0)
        return tensor

    with Sizes() as chunked, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**batch).loss
    weights = VOCABULARY * 32
    assert chunked.most <= max(16, weights // VOCABULARY)
    with chunked:
        loss.backward()
    assert chunked.most <= 32  # the head's weight itself, transposed, has 32 rows
    assert max(kept) <= weights
    with Sizes() as evaluated, torch.no_grad():
        model(**batch)
    assert evaluated.most <= 32


@pytest.mark.parametrize("head", [False, True])
def test_the_product_of_a_frozen_head_is_computed_once(head: bool) -> None:
    model, batch = (lora_on_the_head if head else adapted)(decoder("llama")).eval(), padded()
    use_chunked_loss(model.base_model.model, tokens=5)
    positions: list[int] = []
    model.base_model.model.lm_head.register_forward_hook(lambda _, args, output: positions.append(args[0].shape[1]))
    results(model, batch)
    labelled = int((batch["labels"][:, 1:] != -100).sum())
    assert sum(positions) == 1 + (2 if head else 1) * labelled
    positions.clear()
    with torch.no_grad():
        model(**batch)
    assert sum(positions) == 1 + labelled


def test_a_number_of_labels_from_the_caller_leaves_nothing_to_wait_for() -> None:
    model, batch = adapted(decoder("llama")).eval(), padded()
    labelled = int((batch["labels"][:, 1:] != -100).sum())

    class Waits(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = function.overloadpacket
            self.count += name in (torch.ops.aten.nonzero, torch.ops.aten._local_scalar_dense)
            return function(*args, **kwargs or {})

    expected = results(model, batch)
    with Waits() as plain:
        results(model, batch)
    use_chunked_loss(model.base_model.model, tokens=5)
    for given, more in (({}, 1), ({"num_labelled": labelled}, 0), ({"num_labelled": labelled + 9}, 0)):
        with Waits() as seen:
            actual = results(model, batch, **given)
        assert seen.count == plain.count + more
        assert_equal(actual, expected)
    with pytest.raises(RuntimeError):
        model(**batch, num_labelled=labelled - 1)


@pytest.mark.parametrize("bound", [None, 0, 3])
@pytest.mark.parametrize("head", [False, True])
def test_a_batch_without_labels_has_no_loss(head: bool, bound: int | None) -> None:
    """Every weight that trains has a gradient, which other processes wait for."""
    model, batch = (lora_on_the_head if head else adapted)(decoder("llama")).eval(), padded()
    names = results(model, batch)[1].keys()
    use_chunked_loss(model.base_model.model)
    batch["labels"][:] = -100
    loss, gradients = results(model, batch, **({} if bound is None else {"num_labelled": bound}))
    assert float(loss) == 0
    assert gradients.keys() == names
    assert all(not gradient.any() for gradient in gradients.values())


def test_a_sum_is_divided_by_the_number_that_is_given() -> None:
    model, batch = decoder("llama"), padded()
    expected = [model(**batch, num_items_in_batch=items).loss for items in (7, torch.tensor(7))]
    use_chunked_loss(model, tokens=5)
    for items, loss in zip((7, torch.tensor(7)), expected, strict=True):
        torch.testing.assert_close(model(**batch, num_items_in_batch=items).loss, loss)


def test_calls_for_logits_are_the_models_own() -> None:
    model, batch = decoder("gemma2").eval(), padded()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits, probed = model(**inputs).logits, probe_logits(model, batch)
    last, (loss, first) = (
        model(**batch | {"labels": None}, logits_to_keep=2).logits,
        model(**batch, return_dict=False)[:2],
    )
    signature = inspect.signature(model.forward)
    use_chunked_loss(model)
    assert inspect.signature(model.forward) == signature
    assert torch.equal(model(**inputs).logits, logits)
    assert torch.equal(model(**inputs, logits_to_keep=2).logits, last)
    assert torch.equal(probe_logits(model, batch), probed)
    again = model(**batch, return_dict=False)
    assert torch.equal(again[0], loss)
    assert torch.equal(again[1], first)
    chunked = model(batch["input_ids"], batch["attention_mask"], labels=batch["labels"])
    assert chunked.logits is None
    assert "logits" not in chunked
    assert type(chunked) is type(model(**inputs))
    torch.testing.assert_close(chunked.loss, loss)
    generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(generated, decoder("gemma2").eval().generate(**inputs, max_new_tokens=3, do_sample=False))


def test_the_loss_of_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = adapted(decoder("llama")).train(), [padded(), padded(2, 20)]
    expected = summed_loss(model, batches)
    use_chunked_loss(model.base_model.model, tokens=5)
    monkeypatch.setattr(torch.autograd, "grad", None)  # an evaluation has no use for gradients
    actual = summed_loss(model, batches)
    assert actual[1] == expected[1]
    assert actual[0] == pytest.approx(expected[0], rel=1e-6)
    assert model.training


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_the_check_leaves_no_traces(name: str) -> None:
    model = decoder(name).train()
    model.get_output_embeddings().eval()
    modes = [module.training for module in model.modules()]
    state, keys = torch.get_rng_state(), set(vars(model))
    with torch.autocast("cpu", torch.bfloat16):
        use_chunked_loss(model)
        assert torch.is_autocast_enabled("cpu")
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert set(vars(model)) - keys == {"_chunking", "forward"}


def test_a_copy_is_a_model_of_its_own() -> None:
    model, batch = decoder("llama").eval(), padded()
    use_chunked_loss(model)
    use_chunked_loss(model, tokens=5)  # the later number counts
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.zero_()
    assert float(other(**batch).loss.detach()) == pytest.approx(torch.tensor(VOCABULARY).log().item(), rel=1e-5)
    assert float(model(**batch).loss.detach()) > 6


def test_a_forward_that_accelerate_wraps() -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Counts(ModelHook):
        calls = 0

        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return args, kwargs

    model, batch, counts = decoder("llama").eval(), padded(), Counts()
    expected = model(**batch).loss
    add_hook_to_module(model, counts)
    use_chunked_loss(model, tokens=5)
    counts.calls = 0
    output = model(**batch)
    torch.testing.assert_close(output.loss, expected)
    assert output.logits is None
    assert counts.calls == 1


class Smoothed(transformers.LlamaForCausalLM):
    """A model whose loss is another one."""

    @property
    def loss_function(self) -> Any:
        def loss(logits: Tensor, labels: Tensor, vocab_size: int, **_: Any) -> Tensor:
            wanted = functional.pad(labels, (0, 1), value=-100)[..., 1:].reshape(-1)
            return functional.cross_entropy(logits.view(-1, vocab_size), wanted, label_smoothing=0.1)

        return getattr(self, "_loss_function", loss)


class Inline(transformers.LlamaForCausalLM):
    """A model that computes its loss in its forward."""

    def forward(self, input_ids: Tensor, attention_mask: Any = None, labels: Any = None, **other: Any) -> Any:  # type: ignore[override]
        output = super().forward(input_ids, attention_mask, **other)
        if labels is not None:
            output.loss = output.logits.logsumexp(-1).mean()
        return output


def masked() -> PreTrainedModel:
    config = transformers.BertConfig(**COMMON)
    return transformers.BertForMaskedLM(config)


def from_llama(kind: type[PreTrainedModel]) -> PreTrainedModel:
    return kind(decoder("llama").config)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: build_model("t5"), "has an encoder"),
        (lambda: build_model("bert"), "no head"),
        (masked, "loss"),
        (lambda: from_llama(Smoothed), "not the cross entropy"),
        (lambda: from_llama(Inline), "without transformers' loss functions"),
    ],
    ids=["encoder and decoder", "classifier", "masked", "smoothed", "inline"],
)
def test_models_that_cannot_say_why_and_stay_as_they_are(build: Callable[[], PreTrainedModel], reason: str) -> None:
    model = build().train()
    keys = set(vars(model))
    with pytest.raises(Unsupported, match=reason):
        use_chunked_loss(model)
    assert set(vars(model)) == keys
    assert model.training


def test_a_replaced_forward_is_not_replaced_again() -> None:
    model = decoder("llama")
    forward = model.forward
    model.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    with pytest.raises(Unsupported, match="replaced"):
        use_chunked_loss(model)
