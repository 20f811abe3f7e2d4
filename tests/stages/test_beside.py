"""Embeddings, heads and new tokens that train beside an adapter: trained, saved, resumed, loaded elsewhere, merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.conftest import build_model, byte_tokenizer
from tests.helpers import Arguments, Loraga, copied_between_two_checkpoints, only_run

NEW = "model.new_tokens=['<think>','</think>']"
EMBEDDINGS = "model.embed_tokens.weight"


@pytest.fixture
def untied_base(tmp_path: Path) -> Path:
    """A Llama with an output head of its own, and more rows than the tokenizer has tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "untied")
    byte_tokenizer().save_pretrained(tmp_path / "untied")
    return tmp_path / "untied"


@pytest.fixture
def thoughts(tmp_path: Path) -> Path:
    """Rows whose answers have the new tokens."""
    file = tmp_path / "thoughts.jsonl"
    rows = [{"prompt": f"{n}+1=", "answer": f"<think>add</think>{n + 1}"} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@torch.no_grad()
def logits(model: torch.nn.Module, text: str, tokenizer: object) -> Tensor:
    return model.eval()(**tokenizer(text, return_tensors="pt")).logits  # type: ignore[operator]


def trained_rows(merged: dict[str, Tensor], base: dict[str, Tensor], name: str) -> list[int]:
    """The rows of a merged matrix that are not bit for bit those of the base, among those that the base has."""
    rows = len(base[name])
    return (merged[name][:rows] != base[name]).any(dim=1).nonzero().flatten().tolist()


@pytest.mark.parametrize("method", ["lora", "lora_ga"])
def test_new_tokens_are_learned_and_loaded_by_peft_alone(
    loraga: Loraga, arguments: Arguments, saved_bases: dict[str, Path], thoughts: Path, method: str
) -> None:
    base = saved_bases["llama"]
    loraga("train", *arguments("llama", f"method={method}", NEW, f"dataset.train_file={thoughts}"))
    loraga("merge", str(only_run()))
    merged_folder = only_run() / "merged"
    tokenizer = AutoTokenizer.from_pretrained(only_run())
    text = "3+1=<think>add</think>4"
    assert tokenizer(text)["input_ids"].count(259) == 1

    merged = AutoModelForCausalLM.from_pretrained(merged_folder, dtype=torch.float32)
    assert merged.config.tie_word_embeddings
    assert merged.config.vocab_size == 261
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert AutoTokenizer.from_pretrained(merged_folder)("<think>")["input_ids"] == [259]
    after, before = load_file(merged_folder / "model.safetensors"), load_file(base / "model.safetensors")
    assert trained_rows(after, before, EMBEDDINGS) == []
    mean = before[EMBEDDINGS].mean(dim=0)
    assert (after[EMBEDDINGS][259:] - mean).abs().max() > 1e-3

    alone = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    alone.resize_token_embeddings(len(tokenizer))
    alone = PeftModel.from_pretrained(alone, only_run())
    torch.testing.assert_close(logits(alone, text, tokenizer), logits(merged, text, tokenizer), atol=1e-4, rtol=1e-4)
    assert "resize_token_embeddings(261)" in (only_run() / "README.md").read_text()


def test_new_tokens_of_an_untied_head_take_rows_that_are_there_already(
    loraga: Loraga, arguments: Arguments, untied_base: Path, thoughts: Path
) -> None:
    options = [f"model.path={untied_base}", NEW, f"dataset.train_file={thoughts}", "method=lora"]
    out = loraga("train", *arguments("llama", *options, "trainer.weight_decay=0.5"))
    assert "with the rows of 2 tokens" in out
    loraga("merge", str(only_run()))
    after = load_file(only_run() / "merged" / "model.safetensors")
    before = load_file(untied_base / "model.safetensors")
    assert trained_rows(after, before, EMBEDDINGS) == [259, 260]
    assert trained_rows(after, before, "lm_head.weight") == [259, 260]
    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(untied_base), only_run())
    merged = AutoModelForCausalLM.from_pretrained(only_run() / "merged")
    tokenizer = AutoTokenizer.from_pretrained(only_run())
    text = "3+1=<think>add</think>4"
    torch.testing.assert_close(logits(alone, text, tokenizer), logits(merged, text, tokenizer), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_tied_weights_that_train_completely_stay_tied(
    loraga: Loraga, arguments: Arguments, saved_bases: dict[str, Path], family: str
) -> None:
    loraga("train", *arguments(family, "method=lora", "method.modules_to_save=[lm_head]"))
    loraga("merge", str(only_run()))
    kind = AutoModelForCausalLM if family != "t5" else __import__("transformers").AutoModelForSeq2SeqLM
    merged = kind.from_pretrained(only_run() / "merged", dtype=torch.float32)
    assert merged.config.tie_word_embeddings
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    base = kind.from_pretrained(saved_bases[family], dtype=torch.float32)
    assert not torch.equal(base.get_input_embeddings().weight, merged.get_input_embeddings().weight)
    alone = PeftModel.from_pretrained(base, only_run())
    inputs = {"input_ids": torch.arange(5, 12)[None]}
    if family == "t5":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(alone.eval()(**inputs).logits, merged.eval()(**inputs).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        ["method.modules_to_save=[embed_tokens]"],
        ["method.trainable_token_indices=[0,'a']", "trainer.weight_decay=0.1"],
    ],
    ids=["modules", "rows"],
)
def test_a_stopped_run_goes_on_to_the_same_bytes(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    command = arguments("llama", "method=lora_ga", "name=run", *options)
    with monkeypatch.context() as patch:
        copied_between_two_checkpoints(patch, "runs", "stopped")
        loraga("train", *command, "output_dir=runs")
    assert not (Path("stopped") / "run" / "README.md").exists()
    shutil.copytree("stopped", "resumed")
    out = loraga("train", *command, "output_dir=resumed")
    assert "resuming after step" in out
    file = Path("run") / "adapter_model.safetensors"
    assert (Path("runs") / file).read_bytes() == (Path("resumed") / file).read_bytes()


def test_only_the_named_rows_change(loraga: Loraga, arguments: Arguments, saved_bases: dict[str, Path]) -> None:
    options = ["method=lora", "method.trainable_token_indices=[10,'+']", "trainer.weight_decay=0.3"]
    loraga("train", *arguments("llama", *options))
    loraga("merge", str(only_run()))
    after = load_file(only_run() / "merged" / "model.safetensors")
    before = load_file(saved_bases["llama"] / "model.safetensors")
    plus = byte_tokenizer().convert_tokens_to_ids("+")
    # a tied head sees every token, so that the row of a token which no text has gets a gradient too
    assert trained_rows(after, before, EMBEDDINGS) == sorted([10, plus])


def test_passes_of_any_size_train_the_same(loraga: Loraga, arguments: Arguments) -> None:
    options = ["method=lora", "method.modules_to_save=[embed_tokens]", "trainer.max_steps=2"]
    weights = []
    for rows in (8, 2):
        name = f"of_{rows}"
        loraga("train", *arguments("llama", *options, f"name={name}", f"trainer.micro_batch_size={rows}"))
        weights.append(load_file(Path("runs") / name / "adapter_model.safetensors"))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["method=lora", "method.modules_to_save=[lm_heed]"], "matches no module (did you mean lm_head?)"),
        (["method=lora", "method.modules_to_save=[q_proj]"], "gets LoRA factors"),
        (["method=lora", "method.modules_to_save=[mlp]"], "contains model.layers.0.mlp.gate_proj"),
        (["method=lora", "method.trainable_token_indices=[259]"], "the embeddings have rows 0 to 258"),
        (["method=lora", "method.trainable_token_indices=['<think>']"], "model.new_tokens"),
        (
            ["method=lora", "method.modules_to_save=[lm_head]", "method.trainable_token_indices=[3]"],
            "trains completely already",
        ),
        (["method=lora", "model.new_tokens=['a']"], "is a token already"),
        (["method=lora", "model.new_tokens=['<x>','<x>']"], "names '<x>' twice"),
        (["method=bitfit", NEW], "does not train the rows of new tokens"),
        (["method=adalora", NEW], "does not train the rows of new tokens"),
        (["method=chain_lora_ga", NEW], "a chain does not go with model.new_tokens"),
        (["method=relora", "method.modules_to_save=[lm_head]"], "a chain does not go with method.modules_to_save"),
    ],
)
def test_what_cannot_train_is_refused_before_the_weights_are_loaded(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("lora_ga_cli.stages.inputs.load_model", load)
    assert message in " ".join(loraga("train", *arguments("llama", *options), code=2).split())


@pytest.mark.parametrize(
    "options",
    [["model.dtype=bfloat16"], ["model.dtype=bfloat16", "model.quantization=nf4"], ["trainer.precision=bf16"]],
    ids=["bfloat16", "nf4", "autocast"],
)
def test_they_train_on_a_base_of_any_type(
    loraga: Loraga, arguments: Arguments, wide_base: Path, thoughts: Path, options: list[str]
) -> None:
    of_new_rows = [NEW, f"model.path={wide_base}", f"dataset.train_file={thoughts}", "method=lora_ga"]
    loraga("train", *arguments("llama", *of_new_rows, *options, "name=rows"))
    modules = "method.modules_to_save=[embed_tokens,lm_head]"
    loraga("train", *arguments("llama", *of_new_rows, *options, modules, "name=modules"))
    for name, count in (("rows", 2), ("modules", 261)):
        saved = load_file(Path("runs") / name / "adapter_model.safetensors")
        trained = [item for key, item in saved.items() if "lora" not in key]
        assert len(trained) == 2  # those of the embeddings and of the head
        assert all(len(item) == count and item.dtype == torch.float32 for item in trained)
        loraga("merge", f"runs/{name}")


def test_a_run_with_new_tokens_is_scored(loraga: Loraga, arguments: Arguments, thoughts: Path) -> None:
    rows = [NEW, f"dataset.train_file={thoughts}", "dataset.validation_fraction=0.2"]
    loraga("train", *arguments("llama", "method=lora", *rows))
    assert "loss" in loraga("eval", str(only_run()))
    out = loraga("train", "--dry-run", *arguments("llama", "method=lora", *rows, "name=other"))
    assert "parameters train" in out


def test_a_classifier_that_has_its_head_trains_it_beside_embeddings(
    loraga: Loraga, arguments: Arguments, tmp_path: Path
) -> None:
    build_model("bert").save_pretrained(tmp_path / "with_head")
    byte_tokenizer().save_pretrained(tmp_path / "with_head")
    options = [f"model.path={tmp_path / 'with_head'}", "method=lora", "method.modules_to_save=[word_embeddings]"]
    out = loraga("train", *arguments("bert", *options))
    assert "reloaded, its logits equal" in out
    config = json.loads((only_run() / "adapter_config.json").read_text())
    assert sorted(config["modules_to_save"]) == ["bert.embeddings.word_embeddings", "classifier"]
    loraga("merge", str(only_run()))


def test_a_token_without_a_row_gets_one(
    loraga: Loraga, arguments: Arguments, saved_bases: dict[str, Path], thoughts: Path, tmp_path: Path
) -> None:
    """The tokenizer of this base has more tokens than its embeddings have rows."""
    shutil.copytree(saved_bases["llama"], tmp_path / "more")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<think>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "more")
    options = [f"model.path={tmp_path / 'more'}", f"dataset.train_file={thoughts}", "method=lora", NEW]
    out = loraga("train", *arguments("llama", *options))
    assert "with the rows of 2 tokens" in out
    assert AutoTokenizer.from_pretrained(only_run()).convert_tokens_to_ids(["<think>", "</think>"]) == [259, 260]


def test_a_complete_model_with_new_tokens_is_scored_and_merged(
    loraga: Loraga, arguments: Arguments, thoughts: Path
) -> None:
    rows = [NEW, f"dataset.train_file={thoughts}", "dataset.validation_fraction=0.2"]
    loraga("train", *arguments("llama", "method=full", *rows))
    assert "loss" in loraga("eval", str(only_run()))
    loraga("merge", str(only_run()), "--output", "plain")
    assert AutoTokenizer.from_pretrained("plain").convert_tokens_to_ids(["<think>", "</think>"]) == [259, 260]
    loraga("merge", *arguments("llama", "method=full", *rows), "--output", "again")


def test_new_tokens_of_an_own_tokenizer_keep_the_spare_rows_that_they_got(
    loraga: Loraga, arguments: Arguments, thoughts: Path, tmp_path: Path
) -> None:
    """The embeddings of this base have more rows than its tokenizer has tokens."""
    base = build_model("llama")
    base.resize_token_embeddings(320)
    base.save_pretrained(tmp_path / "spare")
    for name in ("spare", "own"):
        byte_tokenizer().save_pretrained(tmp_path / name)
    rows = [NEW, f"dataset.train_file={thoughts}", "dataset.validation_fraction=0.2", "method=lora"]
    places = [f"model.path={tmp_path / 'spare'}", f"model.tokenizer={tmp_path / 'own'}"]
    loraga("train", *arguments("llama", *rows, *places))
    shutil.rmtree(tmp_path / "own")
    assert "loss" in loraga("eval", str(only_run()))
    loraga("merge", str(only_run()), "--output", "plain")
    assert AutoTokenizer.from_pretrained("plain").convert_tokens_to_ids(["<think>", "</think>"]) == [259, 260]
