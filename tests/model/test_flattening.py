"""Rows one after another give the loss and gradients of padded rows, or the model is refused with the reason."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from lora_ga_cli.data.collate import collate_tokens
from lora_ga_cli.data.flatten import flatten_tokens
from lora_ga_cli.model import flattening, varlen
from lora_ga_cli.model.chunked_loss import use_chunked_loss
from lora_ga_cli.model.flattening import BLOCK_MASK, check_flattening, use_flattening, use_varlen
from lora_ga_cli.model.unsupported import Unsupported

COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GROUPED = COMMON | {"num_key_value_heads": 2, "head_dim": 8}
EXPERTS = GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_EXPERTS = GROUPED | {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "decoder_sparse_step": 1,
}
SHARED = {"shared_expert_intermediate_size": 24}
LATENT = COMMON | {"moe_intermediate_size": 24, "first_k_dense_replace": 1, "n_routed_experts": 4, "n_group": 2}
LATENT |= {"num_experts_per_tok": 2, "topk_group": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "num_key_value_heads": 4}
LATENT |= {"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
EAGER = {"attn_implementation": "eager"}
WINDOW = {"sliding_window": 3}
BOTH = {"layer_types": ["sliding_attention", "full_attention"]}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "pad_token_id": 2}
BLOOM = {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 2}
FALCON = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 2}
MAMBA = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "pad_token_id": 2}
JAMBA = {"num_experts": 2, "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False}
JAMBA |= {"attn_layer_period": 2, "attn_layer_offset": 1}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", GROUPED | WINDOW),
    "qwen2": ("Qwen2", GROUPED | WINDOW | BOTH | {"use_sliding_window": True}),
    "qwen3": ("Qwen3", GROUPED),
    "gemma2": ("Gemma2", GROUPED | WINDOW | BOTH | EAGER),
    "gemma3": ("Gemma3Text", GROUPED | WINDOW | BOTH),
    "phi3": ("Phi3", GROUPED | WINDOW),
    "gpt2": ("GPT2", GPT2),
    "gpt_neox": ("GPTNeoX", COMMON),
    "opt": ("OPT", COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "falcon": ("Falcon", FALCON),
    "falcon_alibi": ("Falcon", FALCON | {"alibi": True}),
    "bloom": ("Bloom", BLOOM | EAGER),
    "olmo2": ("Olmo2", GROUPED),
    "smollm3": ("SmolLM3", GROUPED),
    "granite": ("Granite", GROUPED),
    "deepseek_v3": ("DeepseekV3", LATENT),
    "gpt_oss": ("GptOss", EXPERTS | WINDOW | BOTH | EAGER),
    "mixtral": ("Mixtral", EXPERTS | WINDOW),
    "qwen2_moe": ("Qwen2Moe", QWEN_EXPERTS | SHARED),
    "qwen2_moe_window": ("Qwen2Moe", QWEN_EXPERTS | SHARED | WINDOW | BOTH | {"use_sliding_window": True}),
    "qwen3_moe": ("Qwen3Moe", QWEN_EXPERTS),
    "mamba": ("Mamba", MAMBA | EAGER),
    "jamba": ("Jamba", GROUPED | JAMBA),
}
FLATTENED = "equal to padded rows"
LEAK = "its rows would see each other"
MASKS = "its masks leave out tokens that its layers do not name"
OWN = "its attention is code of its own"
OUTCOMES: dict[str, tuple[str, str]] = {
    "llama": (FLATTENED, FLATTENED),
    "mistral": (FLATTENED, FLATTENED),
    "qwen2": (FLATTENED, FLATTENED),
    "qwen3": (FLATTENED, FLATTENED),
    "gemma2": (FLATTENED, "its attention has a soft cap"),
    "gemma3": (FLATTENED, FLATTENED),
    "phi3": (FLATTENED, FLATTENED),
    "gpt2": (FLATTENED, "its attention has dropout"),
    "gpt_neox": (FLATTENED, FLATTENED),
    "opt": (LEAK, FLATTENED),
    "falcon": (LEAK, OWN),
    "falcon_alibi": (LEAK, OWN),
    "bloom": (LEAK, OWN),
    "olmo2": (FLATTENED, FLATTENED),
    "smollm3": (FLATTENED, FLATTENED),
    "granite": (FLATTENED, FLATTENED),
    "deepseek_v3": (FLATTENED, "its attention has values of another size than queries"),
    "gpt_oss": (LEAK, "its attention has attention sinks"),
    "mixtral": (FLATTENED, FLATTENED),
    "qwen2_moe": (FLATTENED, FLATTENED),
    "qwen2_moe_window": (FLATTENED, MASKS),
    "qwen3_moe": (FLATTENED, FLATTENED),
    "mamba": (LEAK, OWN),
    "jamba": (LEAK, LEAK),
}
"""What becomes of each family with a block mask, and with attention of variable lengths."""


def build(name: str, **options: Any) -> PreTrainedModel:
    family, settings = MODELS[name]
    settings = settings | options
    implementation = settings.pop("attn_implementation", "sdpa")
    config = getattr(transformers, f"{family}Config")(**settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def attend_row_by_row(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float | None, window: int | None
) -> Tensor:
    """What the kernels for variable lengths compute: every row alone."""
    results = []
    for begin, end in pairwise(bounds.tolist()):
        assert end - begin <= longest
        row = (tensor[begin:end].transpose(0, 1) for tensor in (query, key, value))
        age = torch.arange(end - begin)[:, None] - torch.arange(end - begin)
        mask = (age >= 0) & (age < (window or longest))
        attended = functional.scaled_dot_product_attention(*row, attn_mask=mask, scale=scale, enable_gqa=True)
        results.append(attended.transpose(0, 1))
    return torch.cat(results)


def rows() -> list[dict[str, list[int]]]:
    """Rows whose lengths differ, some longer than a window, with and without labels of the first tokens."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for length, prompt in ((9, 3), (4, 0), (1, 0), (12, 5), (2, 1)):
        ids = torch.randint(3, 64, (length,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return made


class Tokenizer:
    """As much of one as padding needs."""

    pad_token_id = 2
    eos_token_id = 1
    padding_side = "right"


def padded() -> dict[str, Any]:
    return collate_tokens(Tokenizer(), rows())


def loss_and_gradients(model: nn.Module, batch: dict[str, Any]) -> list[Tensor]:
    """The loss and the gradient of every parameter that trains, 0 where there is none."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [loss.detach(), *(torch.zeros_like(each) if each.grad is None else each.grad.clone() for each in trained)]


def distance(model: nn.Module, batch: dict[str, Any], expected: list[Tensor]) -> float:
    """The largest relative difference of loss and gradients, each beside the norm of all gradients of its model."""
    actual = loss_and_gradients(model, batch)
    size = float(torch.stack([tensor.norm() for tensor in expected[1:]]).norm())
    parts = [float((one - other).norm()) / size for one, other in zip(actual[1:], expected[1:], strict=True)]
    return max(*parts, abs(float(actual[0] / expected[0]) - 1))


def outcome(model: PreTrainedModel, prepare: Callable[[PreTrainedModel], object]) -> str:
    before = model.config._attn_implementation
    expected = loss_and_gradients(model, padded())
    try:
        prepare(model)
    except Unsupported as reason:
        assert model.config._attn_implementation == before
        assert distance(model, padded(), expected) == 0, "the model is not as before"
        return str(reason)
    assert distance(model, flatten_tokens(rows()), expected) < 1e-5
    assert distance(model, padded(), expected) < 1e-6, "padded rows no longer work"
    return FLATTENED


def with_block_mask(model: PreTrainedModel) -> None:
    assert use_flattening(model, torch.device("cpu")) == BLOCK_MASK


def with_varlen(model: PreTrainedModel) -> None:
    flattening.prepare(model)
    use_varlen(model, attend_row_by_row)
    assert model.config._attn_implementation == varlen.NAME


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The functions that transformers knows are those from before the test."""
    tables = (AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping)
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


@pytest.mark.parametrize("name", MODELS)
def test_rows_with_a_block_mask_are_as_padded_rows_or_refused(name: str) -> None:
    assert outcome(build(name), with_block_mask) == OUTCOMES[name][0]


@pytest.mark.parametrize("name", MODELS)
def test_rows_with_attention_of_variable_lengths_are_as_padded_rows_or_refused(name: str) -> None:
    assert outcome(build(name), with_varlen) == OUTCOMES[name][1]


def test_masks_that_no_layer_names_are_refused() -> None:
    """Llama 4 divides rows into chunks, of which only the mask knows."""
    options = {"attention_chunk_size": 3, "intermediate_size_mlp": 48, "no_rope_layers": [1, 0]}
    config = transformers.Llama4TextConfig(**EXPERTS | options)
    model = transformers.Llama4ForCausalLM._from_config(config, attn_implementation="sdpa")
    with pytest.raises(Unsupported, match=MASKS):
        with_varlen(model.eval())


def test_the_comparison_sees_rows_that_see_each_other() -> None:
    model = build("llama")
    expected = loss_and_gradients(model, padded())
    with_block_mask(model)
    leaking = flatten_tokens(rows())
    leaking |= {"attention_mask": torch.ones_like(leaking["input_ids"])}
    assert distance(model, leaking, expected) > 1e-2


def leak(model: PreTrainedModel) -> None:
    """Has the model take a flattened batch as one row, with the positions of several."""

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if kwargs.get("attention_mask") is None:
            kwargs |= {"attention_mask": torch.ones_like(kwargs["input_ids"])}
        return args, kwargs

    model.base_model.register_forward_pre_hook(before, with_kwargs=True)


@pytest.mark.parametrize("std", [0.02, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral"])
def test_the_check_finds_what_leaks_and_nothing_else(name: str, dtype: torch.dtype, std: float) -> None:
    model = build(name)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=std)
    model.to(dtype)
    with_block_mask(model)
    leak(model)
    with pytest.raises(Unsupported, match=LEAK):
        check_flattening(model)


def test_the_check_compares_with_padded_rows() -> None:
    model = build("llama")
    with_block_mask(model)
    check_flattening(model)
    model.base_model.layers[0].register_forward_pre_hook(lambda _, args: (args[0] * len(args[0]), *args[1:]))
    with pytest.raises(Unsupported, match="differ from those of padded rows by"):
        check_flattening(model)


@pytest.mark.parametrize("prepare", [with_block_mask, with_varlen])
def test_a_flattened_batch_keeps_no_cache(prepare: Callable[[PreTrainedModel], object]) -> None:
    """With one, transformers takes all tokens for one row; generation goes on keeping one."""
    model = build("llama", use_cache=True)
    leaking, separate = flatten_tokens(rows()), padded()
    expected = model(**separate).loss
    assert abs(float(model(**leaking).loss / expected) - 1) > 1e-3
    generated = model.generate(**separate, max_new_tokens=4, do_sample=False)
    prepare(model)
    torch.testing.assert_close(model(**leaking).loss, expected, rtol=1e-5, atol=0)
    assert model(**leaking).past_key_values is None
    assert model(**separate).past_key_values is not None
    assert torch.equal(model.generate(**separate, max_new_tokens=4, do_sample=False), generated)


@pytest.mark.parametrize("prepare", [with_block_mask, with_varlen])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_rows_stay_apart_under_an_adapter(
    prepare: Callable[[PreTrainedModel], object], checkpointing: bool, chunked: bool
) -> None:
    """PEFT calls the forward of the model that it wraps, and not its hooks."""
    base = build("qwen3", use_cache=True)
    prepared = copy.deepcopy(base)
    prepare(prepared)
    if checkpointing:
        prepared.gradient_checkpointing_enable({"use_reentrant": False})
    if chunked:
        use_chunked_loss(prepared, tokens=5)
    models = []
    for model in (base, prepared):
        torch.manual_seed(2)
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        models.append(adapted.train())
    expected = loss_and_gradients(models[0], padded())
    assert distance(models[1], flatten_tokens(rows()), expected) < 1e-5


@pytest.mark.parametrize("prepare", [with_block_mask, with_varlen])
def test_nothing_is_left_of_the_check(prepare: Callable[[PreTrainedModel], object]) -> None:
    model = build("llama")
    model.base_model.layers[1].train()
    modes = [module.training for module in model.modules()]
    before, saved = torch.get_rng_state(), model.config.to_json_string(use_diff=False)
    prepare(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.config.to_json_string(use_diff=False) == saved


def test_a_copy_of_a_prepared_model_is_prepared() -> None:
    model = build("llama", use_cache=True)
    expected = loss_and_gradients(model, padded())
    with_block_mask(model)
    assert distance(copy.deepcopy(model), flatten_tokens(rows()), expected) < 1e-5


def test_a_refused_model_has_no_hook() -> None:
    model = build("bloom")
    with pytest.raises(Unsupported, match=LEAK):
        use_flattening(model, torch.device("cpu"))
    assert not model.base_model._forward_pre_hooks


def test_an_error_of_the_model_is_a_reason() -> None:
    model = build("llama")
    model.base_model.layers[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(
        Unsupported, match=r"does not take rows one after another \(ZeroDivisionError: division by zero"
    ):
        use_flattening(model, torch.device("cpu"))


def test_no_mask_is_made_for_attention_of_variable_lengths() -> None:
    """transformers would wait for the device to find the rows."""
    model = build("gemma3")
    with_varlen(model)

    def mask(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("a mask")

    AttentionMaskInterface.register(varlen.NAME, mask)
    assert model(**flatten_tokens(rows())).loss.isfinite()
    with pytest.raises(AssertionError, match="a mask"):
        model(**padded())


class TestTorchKernel:
    """PyTorch's function, by its documentation, in the place of the one for GPUs."""

    @staticmethod
    def of_2_10(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        is_causal: bool = False,
    ) -> Tensor:
        assert is_causal
        return TestTorchKernel.computed(query, key, value, cu_seq_q, None, -1)

    @staticmethod
    def of_2_11(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
    ) -> Tensor:
        assert window_size[1] == 0
        return TestTorchKernel.computed(query, key, value, cu_seq_q, scale, window_size[0])

    @staticmethod
    def of_2_13(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> Tensor:
        assert window_size[1] == 0
        assert enable_gqa == (query.shape[1] != key.shape[1])
        shared = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        return TestTorchKernel.computed(query, key, value, cu_seq_q, scale, window_size[0])

    @staticmethod
    def computed(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scale: float | None, left: int) -> Tensor:
        """Each token sees itself and ``left`` tokens before it, or all of its row."""
        assert query.dtype in (torch.bfloat16, torch.float16)
        assert query.shape == key.shape == value.shape
        row = torch.bucketize(torch.arange(len(query)), bounds[1:], right=True)
        age = torch.arange(len(query))[:, None] - torch.arange(len(query))
        seen = (age >= 0) & (row[:, None] == row) & ((age <= left) | (left < 0))
        scores = torch.einsum("qhd,khd->hqk", query.double(), key.double())
        scores *= query.shape[-1] ** -0.5 if scale is None else scale
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, value.double()).to(query.dtype)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(
        ("function", "scale", "window"),
        [
            ("of_2_10", None, None),
            ("of_2_10", 8**-0.5, None),
            ("of_2_11", 0.5, 3),
            ("of_2_11", None, None),
            ("of_2_13", 0.5, 3),
            ("of_2_13", None, 100),
        ],
    )
    def test_is_called_as_each_version_wants_it(
        self, monkeypatch: pytest.MonkeyPatch, function: str, scale: float | None, window: int | None, dtype: Any
    ) -> None:
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", getattr(self, function))
        generator = torch.Generator().manual_seed(0)
        query, key, value = (torch.randn(11, heads, 8, generator=generator).to(dtype) for heads in (4, 2, 2))
        bounds = torch.tensor([0, 5, 6, 11], dtype=torch.int32)
        result = varlen.torch_kernel()(query, key, value, bounds, 5, scale, window)
        expected = attend_row_by_row(query.float(), key.float(), value.float(), bounds, 5, scale, window)
        assert result.dtype == dtype
        assert flattening.relative_difference(result, expected) < 1e-2

    @pytest.mark.parametrize(
        ("scale", "window", "reason"), [(0.5, None, "does not scale scores by 0.5"), (None, 3, "has no window")]
    )
    def test_what_a_version_does_not_compute_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, scale: float | None, window: int | None, reason: str
    ) -> None:
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", self.of_2_10)
        tensors = torch.ones(3, 4, 2, 8, dtype=torch.bfloat16)
        with pytest.raises(Unsupported, match=reason):
            varlen.torch_kernel()(*tensors, torch.tensor([0, 4]), 4, scale, window)

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_is_tried_on_a_gpu_in_half_precision(self, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", self.of_2_11)
        model = build("mistral").to(torch.bfloat16)
        said = use_flattening(model, torch.device(device))  # the model itself stays on the CPU
        assert said == (flattening.VARIABLE_LENGTH if device == "cuda" else BLOCK_MASK)
        assert model.config._attn_implementation == ("varlen" if device == "cuda" else "sdpa")

    def test_a_block_mask_takes_its_place_if_it_fails(self) -> None:
        model = build("llama").to(torch.bfloat16)
        assert use_flattening(model, torch.device("cuda")) == BLOCK_MASK
        with pytest.raises(Unsupported, match=r"NotImplementedError.*keeps rows apart by a mask"):
            use_flattening(model, torch.device("cuda"), block_mask=False)
        assert model.config._attn_implementation == "sdpa"
