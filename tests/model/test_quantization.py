"""Base models that bitsandbytes quantizes: their gradient, the initialization on them, and a complete run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lora_ga_cli import GradientArtifact, estimate_gradients, initialize
from lora_ga_cli.config.compose import compose
from lora_ga_cli.config.schema import ModelConfig
from lora_ga_cli.errors import GradientError, TargetError
from lora_ga_cli.gradient.estimators.exact import ExactEstimator
from lora_ga_cli.lora.layers import lora_layers, lora_pairs
from lora_ga_cli.methods.base import PreparedModel
from lora_ga_cli.model.loading import load_model
from lora_ga_cli.model.quantization import count_parameters, dense
from lora_ga_cli.model.targets import find_targets, fingerprint
from lora_ga_cli.stages.inputs import prepare_inputs
from lora_ga_cli.stages.trained import load_trained
from lora_ga_cli.training.run_folder import RunFolder
from tests.conftest import build_batch, byte_tokenizer
from tests.gradient import FULL_CAPACITY, autograd, cosine, multiplied, relative, split_batch
from tests.helpers import Arguments, Loraga, configured, only_run, points, prepare

KINDS: dict[str, dict[str, Any]] = {
    "nf4": {"quantization": "nf4"},
    "nf4, double": {"quantization": "nf4", "double_quantization": True},
    "int8": {"quantization": "int8"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
ROUNDING = {"nf4": 1e-3, "nf4, double": 1e-3, "int8": 5e-2}
"""Of gradients: that of float16 factors; and with int8 that of every layer's inputs, which are rounded to integers."""
RANK = 4


WIDTH, INNER = 64, 128
"""Multiples of NF4's blocks: on a CPU, bitsandbytes 0.50 mixes up the numbers of narrower layers."""
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
    ]
)
"""The 16 numbers of QLoRA (arXiv 2305.14314), appendix E."""


def build_base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 2, "vocab_size": 259}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **ids, tie_word_embeddings=True)).eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base on disk, with a tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    build_base().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def load(base: Path, kind: str, dtype: str = "float32") -> PreTrainedModel:
    config = ModelConfig(path=str(base), dtype=dtype, **KINDS[kind])  # type: ignore[arg-type]
    return load_model(config, torch.device("cpu"))


def rounded(weight: Tensor, kind: str) -> Tensor:
    """A weight (d_out, d_in) as the papers say that it is rounded."""
    if kind == "int8":  # of LLM.int8: each row is scaled so that its largest number is 127
        steps = weight.abs().amax(1, keepdim=True) / 127
        return (weight / steps).round() * steps
    blocks = weight.reshape(-1, 64)
    scales = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks / scales).unsqueeze(-1).sub(NF4).abs().argmin(-1)
    return (NF4[nearest] * scales).reshape(weight.shape)


def float_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A model of plain linear layers that computes with the same rounded weights, by bitsandbytes' own formulas."""
    plain = build_base()
    with torch.no_grad():
        for name, target in find_targets(model).items():
            weight: Any = target.weight
            if weight.dtype == torch.int8:
                restored = weight.data * weight.SCB[:, None] / 127
            else:
                restored = dequantize_4bit(weight.data, weight.quant_state)
            plain.get_submodule(name).weight.copy_(restored)
    return plain


@every_kind
def test_the_gradient_is_that_of_the_weights_it_computes_with(base: Path, kind: str) -> None:
    model, batch = load(base, kind), build_batch("llama", rows=6)
    targets = find_targets(model)
    assert len(targets) == 14
    assert all(target.quantized for target in targets.values())
    expected = autograd(float_copy(model), batch)
    before = {name: item.clone() for name, item in model.state_dict().items()}
    artifact = estimate_gradients(model, split_batch(batch, 2), capacity=FULL_CAPACITY)
    assert set(artifact.factors) == set(expected)
    for name, grad in expected.items():
        assert artifact.factors[name].shape == grad.shape
        assert relative(multiplied(artifact.factors[name]), grad) < ROUNDING[kind], name
    assert len(before) > 14  # scales count, too
    assert all(torch.equal(item, before[name]) for name, item in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["nf4", "nf4, double"])
def test_the_gradient_differs_from_that_of_unquantized_weights(base: Path, kind: str) -> None:
    """Quantizing moves the gradient by far more than the sketch errs, so the test above says something."""
    rounding = autograd(float_copy(load(base, kind)), build_batch("llama"))
    exact = autograd(build_base(), build_batch("llama"))
    assert min(relative(rounding[name], grad) for name, grad in exact.items()) > 20 * ROUNDING[kind]


@every_kind
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_read_back_as_they_were_rounded(base: Path, kind: str, dtype: str) -> None:
    """By the papers' formulas; double quantization rounds the scales again."""
    model, plain = load(base, kind, dtype), build_base()
    allowed = {"nf4": 1e-6 if dtype == "float32" else 1e-2, "nf4, double": 3e-2, "int8": 1e-2}[kind]
    for name, target in find_targets(model).items():
        weight = plain.get_submodule(name).weight.detach().to(getattr(torch, dtype)).float()
        found = dense(target)
        assert found.is_floating_point()
        assert found.shape == target.shape == weight.shape
        assert relative(found, rounded(weight, kind)) < allowed, name
    numbers = sum(item.numel() for item in plain.parameters())
    assert count_parameters(model) == count_parameters(plain) == numbers


@every_kind
def test_reading_a_weight_leaves_the_layer_as_it_is(base: Path, kind: str) -> None:
    """PEFT's reading of 8-bit weights loses their scales on a CPU."""
    model, batch = load(base, kind), build_batch("llama")
    with torch.no_grad():
        expected = model(**batch).logits
        for target in find_targets(model).values():
            dense(target)
        assert torch.equal(model(**batch).logits, expected)


def adapted(base: Path, kind: str, method: str) -> PreparedModel:
    config = configured(method, f"model.path={base}", f"model.quantization={kind}", f"rank={RANK}")
    return prepare(load(base, kind), config, steps=1)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_pissa_is_initialized_from_quantized_weights(base: Path, kind: str) -> None:
    """At the leading triplets of the weights it computes with, and nothing changes."""
    batch, quantized = build_batch("llama"), load(base, kind)
    prepared = adapted(base, kind, "pissa")
    with torch.no_grad():
        expected = quantized(**batch).logits
        found = prepared.model(**batch).logits
    assert relative(found, expected) < (1e-2 if kind == "int8" else 1e-5)
    targets, init = find_targets(quantized), prepared.init
    assert init is not None
    assert set(init.factors) == set(targets)
    for name, (a0, b0) in init.factors.items():
        left, singular, right = torch.linalg.svd(dense(targets[name]).double(), full_matrices=False)
        best = left[:, :RANK] * singular[:RANK] @ right[:RANK]
        assert relative(init.scalings[name] * (b0.double() @ a0.double()), best) < 1e-3, name


def test_dora_refuses_8_bit_weights_on_a_cpu(base: Path) -> None:
    with pytest.raises(TargetError, match=r"q_proj: PEFT's DoRA cannot read 8-bit weights on a CPU.*nf4"):
        adapted(base, "int8", "dora")
    adapted(base, "nf4", "dora")


@every_kind
def test_the_fingerprint_sees_scales(base: Path, tmp_path: Path, kind: str) -> None:
    """Twice the weights are the same numbers in memory, on scales twice as large."""
    double = build_base()
    with torch.no_grad():
        for target in find_targets(double).values():
            target.weight.mul_(2)
    double.save_pretrained(tmp_path)
    one, other = (fingerprint(find_targets(load(folder, kind))) for folder in (base, tmp_path))
    assert one != other


@every_kind
def test_the_exact_estimator_refuses_and_names_the_other(base: Path, kind: str) -> None:
    with pytest.raises(GradientError, match=r"q_proj.*quantized.*gradient=sketch") as error:
        estimate_gradients(load(base, kind), [build_batch("llama")], estimator=ExactEstimator())
    assert "\n" not in str(error.value)


def wrapped(model: PreTrainedModel, artifact: GradientArtifact) -> PeftModel:
    config = LoraConfig(r=RANK, use_rslora=True, target_modules=artifact.target_modules)
    peft = get_peft_model(model, config)
    assert isinstance(peft, PeftModel)
    return peft


@every_kind
def test_the_offset_is_subtracted_in_the_adapter_and_nothing_changes(base: Path, kind: str) -> None:
    model, batch = load(base, kind), build_batch("llama")
    artifact = estimate_gradients(model, [batch])
    before = {name: target.weight.detach().clone() for name, target in find_targets(model).items()}
    with torch.no_grad():
        expected = model(**batch).logits
        peft = wrapped(model, artifact)
        init = initialize(peft, artifact)
        found = peft(**batch).logits
    assert init.offset == "adapter"
    assert relative(found, expected) < (1e-2 if kind == "int8" else 1e-5)
    for name, layer in lora_layers(peft).items():
        a0, b0 = init.factors[name]
        assert float(a0.norm()) > 0.1
        assert float(b0.norm()) > 0.1
        assert torch.equal(layer.get_base_layer().weight, before[name])


@every_kind
def test_nothing_can_be_subtracted_from_quantized_weights(base: Path, kind: str) -> None:
    model = load(base, kind)
    artifact = estimate_gradients(model, [build_batch("llama")])
    peft = wrapped(model, artifact)
    with pytest.raises(TargetError, match=r"q_proj is quantized.*offset=adapter"):
        initialize(peft, artifact, offset="base")


@pytest.mark.parametrize("scale", ["stable", "weight_svd"])
def test_the_first_step_follows_the_gradient(base: Path, scale: str) -> None:
    """Plain gradient descent on A and B, by autograd, moves each product along the gradient of the float copy."""
    model, batch = load(base, "nf4"), build_batch("llama")
    grads = autograd(float_copy(model), batch)
    artifact = estimate_gradients(model, [batch], capacity=FULL_CAPACITY)
    peft = wrapped(model, artifact)
    initialize(peft, artifact, scale=scale)
    peft(**batch).loss.backward()
    for pair in lora_pairs(peft):
        moved = pair.b.detach() @ pair.delta_a.grad + pair.delta_b.grad @ pair.a.detach()
        singular = torch.linalg.svdvals(grads[pair.name].double())
        best = float(singular[: 2 * RANK].norm() / singular.norm())
        assert cosine(moved, grads[pair.name]) / best > 0.999, pair.name


def loaded_by_peft_alone(base: Path, adapter: Path) -> PeftModel:
    """With gradients to its inputs: without, some CPUs compute in bfloat16, which loraga keeps them from."""
    quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    options = {"quantization_config": quantized, "dtype": torch.float32, "device_map": {"": "cpu"}}
    model = AutoModelForCausalLM.from_pretrained(base, **options)
    model.enable_input_require_grads()
    return PeftModel.from_pretrained(model, adapter).eval()


def test_a_run_trains_resumes_evaluates_and_merges(
    loraga: Loraga, arguments: Arguments, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after the first checkpoint, the same command ends with the same adapter, to the bit."""
    from lora_ga_cli.training.trainer import LoragaTrainer

    overrides = (f"model.path={base}", "model.quantization=nf4", "trainer.save_steps=2")
    printed = loraga("train", *arguments("llama", *overrides, "output_dir=uninterrupted"))
    assert "offset subtracted in the adapter" in printed
    full_run = only_run("uninterrupted")
    losses = [point["loss"] for point in points(full_run) if "loss" in point]
    assert losses[-1] < losses[0]

    one_pass, calls = LoragaTrainer._pass, []

    def interrupted(*given: Any, **options: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 7:  # in the fourth step, of two micro-batches each
            raise KeyboardInterrupt
        return one_pass(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LoragaTrainer, "_pass", interrupted)
        loraga("train", *arguments("llama", *overrides), code=130)
    assert "restored" in loraga("train", *arguments("llama", *overrides))
    run = only_run()
    resumed, uninterrupted = (load_file(folder / "adapter_model.safetensors") for folder in (run, full_run))
    assert set(resumed) == set(uninterrupted)
    assert all(torch.equal(tensor, uninterrupted[name]) for name, tensor in resumed.items())

    loraga("eval", str(run))
    values = json.loads((run / "eval.json").read_text())["values"]
    manifest = json.loads((run / "manifest.json").read_text())
    assert values["loss"] == pytest.approx(manifest["validation_loss"], rel=1e-4)
    batch, inputs = build_batch("llama"), prepare_inputs(compose(arguments("llama", *overrides)))
    through_peft = loaded_by_peft_alone(base, run)(**batch).logits
    through_loraga = load_trained(inputs, RunFolder(run))(**batch).logits
    untrained = load(base, "nf4")(**batch).logits
    assert torch.equal(through_peft, through_loraga)
    assert relative(through_peft, untrained) > 1e-2  # training did something

    printed = loraga("merge", str(run))
    assert "not quite the same" in " ".join(printed.split())
    merged = AutoModelForCausalLM.from_pretrained(run / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = PeftModel.from_pretrained(build_base(), run).eval()(**batch).logits
        found = merged(**batch).logits
    assert getattr(merged.config, "quantization_config", None) is None
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=full"], "quantized weights cannot be trained"),
        (["method.offset=base"], "method.offset=adapter"),
        (["gradient=exact"], "gradient=sketch"),
        (["model.quantization=int8", "model.double_quantization=true"], "goes with model.quantization=nf4"),
        (["model.quantization=null", "model.double_quantization=true"], "goes with model.quantization=nf4"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_do_not_go_together_are_one_line_each(
    loraga: Loraga, arguments: Arguments, overrides: list[str], message: str
) -> None:
    printed = loraga("train", *arguments("llama", "model.quantization=nf4", *overrides), code=2)
    (line,) = printed.splitlines()
    assert line.startswith("error  ")
    assert message in line
    assert not Path("runs").exists()


def test_all_conflicts_are_reported_at_once(loraga: Loraga, arguments: Arguments) -> None:
    conflicts = ["model.quantization=int8", "model.double_quantization=true", "method.offset=base", "gradient=exact"]
    printed = loraga("train", *arguments("llama", *conflicts), code=2)
    assert len(printed.splitlines()) == 3
