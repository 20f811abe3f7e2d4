"""Liger's kernels in a model: what changes, for which models, and that no other model changes with it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers.models.llama import modeling_llama

from lora_ga_cli.model import kernels
from lora_ga_cli.model.kernels import use_liger, use_torch
from lora_ga_cli.model.unsupported import Unsupported
from tests.conftest import build_batch, build_model

Calls = list[dict[str, Any]]


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """A package that does what Liger's does to transformers' module of Llama, and records how it is called."""
    calls: Calls = []

    def apply_to_llama(
        rope: bool = True,
        cross_entropy: bool = False,
        fused_linear_cross_entropy: bool = True,
        rms_norm: bool = True,
        swiglu: bool = True,
        model: Any = None,
    ) -> None:
        replaced = {"rope": rope, "rms_norm": rms_norm, "swiglu": swiglu}
        losses = {"cross_entropy": cross_entropy, "fused_linear_cross_entropy": fused_linear_cross_entropy}
        calls.append({"model": model, **replaced, **losses})
        modeling_llama.apply_rotary_pos_emb = lambda q, k, *_, **__: (-q, -k)  # type: ignore[assignment]
        modeling_llama.LlamaRMSNorm = modeling_llama.LlamaMLP = torch.nn.Identity  # type: ignore[assignment, misc]

    names = ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch")
    for name in names:
        module: Any = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    patches: Any = sys.modules[names[-1]]
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": apply_to_llama}
    sys.modules[names[1]].monkey_patch = patches  # type: ignore[attr-defined]
    for name in ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP"):  # so that the test puts them back
        monkeypatch.setattr(modeling_llama, name, getattr(modeling_llama, name))
    return calls


def pretend_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "on_cuda", lambda _: True)


def test_norms_gates_and_positions_are_replaced_and_the_loss_is_not(
    liger: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_cuda(monkeypatch)
    model = build_model("llama")
    use_liger(model)
    (call,) = liger
    assert call.pop("model") is model
    wanted = {"rope": True, "rms_norm": True, "swiglu": True}
    assert call == {**wanted, "cross_entropy": False, "fused_linear_cross_entropy": False}


def test_other_models_keep_their_classes_and_cpus_their_positions(
    liger: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Liger replaces the classes of its architecture, so that a model that is loaded later would have them too."""
    pretend_cuda(monkeypatch)
    expected = build_model("llama").eval()(**build_batch("llama")).logits
    classes = modeling_llama.LlamaMLP, modeling_llama.LlamaRMSNorm
    use_liger(build_model("llama"))
    assert (modeling_llama.LlamaMLP, modeling_llama.LlamaRMSNorm) == classes
    assert torch.equal(build_model("llama").eval()(**build_batch("llama")).logits, expected)


def test_positions_on_a_gpu_are_ligers(liger: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu(torch.Tensor):
        is_cuda = True

    pretend_cuda(monkeypatch)
    use_liger(build_model("llama"))
    query = torch.ones(1, 2, 3, 4).as_subclass(OnGpu)
    cos, sin = torch.ones(1, 3, 4), torch.zeros(1, 3, 4)
    assert modeling_llama.apply_rotary_pos_emb(query, query, cos, sin)[0].sum() == -24
    plain = torch.ones(1, 2, 3, 4)
    assert modeling_llama.apply_rotary_pos_emb(plain, plain, cos, sin)[0].sum() == 24


def test_positions_are_torchs_again_for_a_run_without_liger(liger: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a sweep follow one another in a process, and so do the links of a chain."""
    pretend_cuda(monkeypatch)
    before = modeling_llama.apply_rotary_pos_emb
    for _ in range(3):
        use_liger(build_model("llama"))
    use_torch(build_model("llama"))
    assert modeling_llama.apply_rotary_pos_emb is before


def test_gates_of_another_activation_stay(liger: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Liger's gate computes SiLU, and does not look whether the model does."""
    pretend_cuda(monkeypatch)
    model = build_model("llama")
    model.config.hidden_act = "gelu"
    use_liger(model)
    assert liger[0]["swiglu"] is False
    assert liger[0]["rms_norm"] is True


def code_of_its_own() -> Any:
    class Mine(torch.nn.Linear):
        config = build_model("llama").config

    return Mine(2, 2)


@pytest.mark.parametrize(
    ("build", "message"),
    [(lambda: build_model("gpt2"), "no kernels for models of type gpt2"), (code_of_its_own, "for the code of Mine")],
)
def test_models_that_liger_does_not_know(
    liger: Calls, monkeypatch: pytest.MonkeyPatch, build: Callable[[], Any], message: str
) -> None:
    pretend_cuda(monkeypatch)
    with pytest.raises(Unsupported, match=message):
        use_liger(build())
    assert not liger


def test_a_cpu_has_no_triton(liger: Calls) -> None:
    with pytest.raises(Unsupported, match="need a CUDA device"):
        use_liger(build_model("llama"))
    assert not liger


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(Unsupported, match=r"pip install 'loraga\[fast\]'"):
        use_liger(build_model("llama"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Liger's kernels run on a GPU")
def test_liger_computes_what_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("liger_kernel")
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", modeling_llama.apply_rotary_pos_emb)
    model = build_model("llama").to("cuda")
    batch = {name: item.to("cuda") for name, item in build_batch("llama").items()}
    expected = gradients(model, batch)
    use_liger(model)
    for name, gradient in gradients(model, batch).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def gradients(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
