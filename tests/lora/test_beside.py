"""What trains beside the factors: float32 whatever the base's type, without decay, with PEFT's own values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch.optim import AdamW
from transformers import PreTrainedModel

from lora_ga_cli.lora.beside import embedding_parameters
from lora_ga_cli.lora.export import export_adapter
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.model.vocabulary import Vocabulary, add_rows
from lora_ga_cli.optimizers.base import optimizer_of
from tests.conftest import build_batch, build_model
from tests.helpers import configured, empty, prepare

OPTIONS = {
    "modules": ["method.modules_to_save=[embed_tokens,model.norm]"],
    "rows": ["method.trainable_token_indices=[5,7,100]"],
}


def step(model: torch.nn.Module, rate: float = 1e-2) -> None:
    """One step of plain gradient descent."""
    model(**build_batch("llama")).loss.backward()
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is not None:
            parameter.data -= rate * parameter.grad.to(parameter.dtype)


@pytest.mark.parametrize("kind", OPTIONS)
def test_in_half_precision_what_trains_is_float32_and_peft_loads_what_it_computes(kind: str, tmp_path: Path) -> None:
    base = build_model("llama").to(torch.bfloat16).eval()
    batch = build_batch("llama")
    expected = base(**batch).logits
    model = prepare(build_model("llama").to(torch.bfloat16), configured("lora", *OPTIONS[kind])).model.eval()
    assert torch.equal(model(**batch).logits, expected)
    assert {item.dtype for item in model.parameters() if item.requires_grad} == {torch.float32}
    before = {id(item): item.clone() for item in embedding_parameters(model)}
    step(model)
    for item in embedding_parameters(model):
        changed = (item - before[id(item)]).abs()
        # a step that bfloat16 would round away
        assert 0 < changed.max() < 1e-2
    export_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(build_model("llama").to(torch.bfloat16), tmp_path).eval()
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(("kind", "rows"), [("modules", 259), ("rows", 3)])
def test_the_rows_train_as_those_of_a_model_without_adapters(kind: str, rows: int) -> None:
    """The gradient of tied embeddings, from autograd on the base itself."""
    plain: PreTrainedModel = build_model("llama").eval()
    plain(**build_batch("llama")).loss.backward()
    wanted = plain.model.embed_tokens.weight.grad
    model = prepare(build_model("llama"), configured("lora", *OPTIONS[kind])).model.eval()
    model(**build_batch("llama")).loss.backward()
    (trained,) = embedding_parameters(model)
    assert len(trained) == rows
    torch.testing.assert_close(trained.grad, wanted if kind == "modules" else wanted[[5, 7, 100]])


def test_trained_parameters_count_what_is_tied_once() -> None:
    config = configured("lora", *OPTIONS["modules"])
    factors = prepare(build_model("llama"), configured("lora")).parameters
    assert prepare(build_model("llama"), config).parameters == factors + 259 * 48 + 48
    forecast = sum(item.numel() for item in empty(build_model("llama"), config).parameters() if item.requires_grad)
    assert forecast == factors + 259 * 48 + 48


@pytest.mark.parametrize("optimizer", ["adamw", "lora_pro", "lora_muon"])
def test_embeddings_have_no_weight_decay(optimizer: str) -> None:
    config = configured("lora", *OPTIONS["modules"], f"trainer.optimizer={optimizer}", "trainer.weight_decay=0.5")
    model = prepare(build_model("llama"), config).model
    trained = [item for item in model.parameters() if item.requires_grad]
    adamw = AdamW(trained, lr=0.1, weight_decay=0.5)
    built = optimizer_of(config).build(method_of(config).optimizer(model, adamw), model)
    (embeddings,) = embedding_parameters(model)
    decays = {id(item): group["weight_decay"] for group in built.param_groups for item in group["params"]}
    assert decays.pop(id(embeddings)) == 0
    assert set(decays.values()) == {0.5}
    assert len(decays) == len(trained) - 1


def test_a_new_row_begins_as_the_mean_of_all_older_tokens() -> None:
    model = build_model("llama")
    older = model.model.embed_tokens.weight.detach().clone()
    ids = {str(number): number for number in range(259)} | {"<a>": 259, "<b>": 260}
    add_rows(model, Vocabulary(ids, (259, 260)))
    weight = model.model.embed_tokens.weight
    assert weight is model.lm_head.weight
    assert model.config.vocab_size == 261
    assert torch.equal(weight[:259], older)
    mean = older.double().mean(dim=0).float()
    torch.testing.assert_close(weight[259:], mean.expand(2, -1))


def test_rows_of_a_model_with_room_begin_as_the_mean_too() -> None:
    model = build_model("gpt2")
    ids = {str(number): number for number in range(200)} | {"<a>": 200}
    older = model.transformer.wte.weight.detach().clone()
    add_rows(model, Vocabulary(ids, (200,)))
    torch.testing.assert_close(model.transformer.wte.weight[200], older[:200].mean(dim=0))
    assert torch.equal(model.transformer.wte.weight[201:], older[201:])
