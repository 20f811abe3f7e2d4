"""Forecasts from shapes alone against what a model really keeps and computes."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lora_ga_cli.gradient.estimators.sketch import QUEUE_BYTES, queue_bytes, sketch_bytes
from lora_ga_cli.gradient.sketch_batch import SketchBatch
from lora_ga_cli.model.activations import activation_bytes, kept_bytes
from lora_ga_cli.model.forecast import (
    Pace,
    Work,
    forward_work,
    measure_pace,
    state_bytes,
    weight_bytes,
)
from lora_ga_cli.model.quantization import DOUBLE_BITS
from lora_ga_cli.model.speed import Speed
from lora_ga_cli.model.targets import find_targets
from tests.conftest import FAMILIES, TASKS, build_batch, build_model

WIDTH, INNER, LAYERS, VOCABULARY = 256, 688, 4, 1000


def llama(device: str = "cpu", dtype: torch.dtype = torch.float32, vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "vocab_size": vocabulary}
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(num_attention_heads=8, **sizes))
    return model.to(dtype).eval()


def kept_by_autograd(model: nn.Module, batch: dict[str, Tensor]) -> int:
    """Bytes that a real forward pass saves, each storage once, without the weights."""
    sizes: dict[int, int] = {}
    alive = []
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model(**batch)
    return sum(sizes.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_what_a_real_forward_pass_keeps(family: str) -> None:
    """Up to what attention kernels keep beside."""
    batch = build_batch(family, rows=8, tokens=64)
    del batch["attention_mask"]  # a mask makes some CPU attention keep weights that accelerators do not
    model = build_model(family).eval().requires_grad_(False)
    for target in find_targets(model).values():
        target.weight.requires_grad_(True)
    real = kept_by_autograd(model, batch)
    assert kept_bytes(model.to("meta"), 8, 64, task=TASKS[family]).total == pytest.approx(real, rel=0.15)


def test_attention_weights_are_not_counted() -> None:
    """Four times the tokens keep four times as much, not sixteen: attention kernels keep no weights."""
    short, long = (activation_bytes(llama("meta"), 1, tokens, task="causal_lm") for tokens in (512, 2048))
    assert long / short == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_checkpointed_block_keeps_its_input_and_one_is_computed_again(every: int) -> None:
    tokens = 512
    kept = kept_bytes(llama("meta"), 1, tokens, task="causal_lm")
    total, checkpointed = (
        activation_bytes(llama("meta"), 1, tokens, task="causal_lm", checkpoint_every=number) for number in (0, every)
    )
    again = -(-LAYERS // every)
    block = kept.blocks[1]
    assert total - checkpointed == pytest.approx(again * (block - tokens * WIDTH * 4) - block, rel=0.02)


def test_a_loss_in_chunks_needs_no_logits_of_all_tokens() -> None:
    in_chunks, all_at_once = (
        activation_bytes(
            llama("meta", vocabulary=100_000), 1, 4096, task="causal_lm", speed=Speed(chunked_loss=chunked)
        )
        for chunked in (True, False)
    )
    assert all_at_once - in_chunks > 4096 * 100_000 * 4


def test_ligers_norms_and_gates_keep_less() -> None:
    plain, liger = (
        activation_bytes(llama("meta", torch.bfloat16), 1, 512, task="causal_lm", speed=Speed(liger=liger))
        for liger in (False, True)
    )
    assert liger < 0.9 * plain


def test_work_is_two_operations_a_weight_and_token() -> None:
    """And what attention takes: 4 · tokens² · width a layer."""
    model, tokens = llama("meta"), 128
    weights = sum(target.shape[0] * target.shape[1] for target in find_targets(model).values()) + WIDTH * VOCABULARY
    work = forward_work(model, 2, tokens, task="causal_lm")
    assert work.flops == pytest.approx(2 * (2 * weights * tokens + LAYERS * 4 * tokens**2 * WIDTH), rel=0.01)
    assert work.calls > 10 * LAYERS


def test_time_is_computing_or_launching_whichever_is_longer() -> None:
    pace = Pace(flops=1e12, call=1e-5)
    assert pace.seconds(Work(1e13, 10), 2) == pytest.approx(2 * pace.seconds(Work(1e13, 10), 1))
    assert pace.seconds(Work(1e13, 10), 1) > 10
    assert pace.seconds(Work(1.0, 10_000), 1) > 0.1


def test_a_device_has_a_pace() -> None:
    pace = measure_pace(torch.device("cpu"), torch.float32)
    assert pace.flops > 1e8
    assert 0 < pace.call < 1e-2


def test_quantized_weights_take_their_bits() -> None:
    model = llama("meta", torch.bfloat16)
    targets = [target.weight for target in find_targets(model).values()]
    numbers = sum(weight.numel() for weight in targets)
    saved = weight_bytes(model) - weight_bytes(model, targets, DOUBLE_BITS)
    assert saved == pytest.approx(numbers * (2 - DOUBLE_BITS / 8), rel=1e-6)


def test_adapters_have_gradients_and_two_moments() -> None:
    with torch.device("meta"):
        model = get_peft_model(llama("meta", torch.bfloat16), LoraConfig(r=4, target_modules=["q_proj"]))
    assert state_bytes(model) == 3 * 4 * LAYERS * 4 * (WIDTH + WIDTH)


def test_the_memory_of_a_sketch_is_that_of_its_tensors() -> None:
    shape, layers = (96, 64), 3
    sketches = SketchBatch([str(number) for number in range(layers)], shape, torch.device("cpu"), 16, seed=0)
    total, _ = sketch_bytes([shape] * layers, 16, 128, 4, limit=QUEUE_BYTES)
    batch = [torch.zeros(layers, side, sketches.k) for side in shape]
    sums = [torch.zeros(layers, side, sketches.k) for side in shape]
    probes = [tensor for name, tensor in vars(sketches).items() if name.endswith("_probes")]
    assert len(probes) == 2
    assert total == sum(tensor.nbytes for tensor in [*batch, *sums, *probes])


def test_what_waits_is_bounded() -> None:
    """By all calls of a micro-batch, and by the limit."""
    shapes = [(4096, 4096)] * 4
    few, many = (sketch_bytes(shapes, 32, tokens, 2, limit=QUEUE_BYTES)[1] for tokens in (16, 100_000))
    assert few == pytest.approx(1.2 * 16 * 4 * 8192 * 2)
    assert many == pytest.approx(1.2 * QUEUE_BYTES)
    assert queue_bytes(torch.device("cpu"), checkpointed=False) == QUEUE_BYTES
