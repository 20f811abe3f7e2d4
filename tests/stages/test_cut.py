"""`loraga export --rank`: a lower rank for PEFT alone, with the errors that dense matrices and real inputs have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lora_ga_cli.inspection.changes import decompose
from lora_ga_cli.inspection.cuts import cut
from lora_ga_cli.lora.layers import ADAPTER, lora_layers
from lora_ga_cli.lora.saved import read_saved
from lora_ga_cli.stages.cut import write_cut
from lora_ga_cli.stages.inputs import prepare_inputs
from lora_ga_cli.stages.layer_inputs import without_head
from lora_ga_cli.stages.trained import stored_config
from lora_ga_cli.training.run_folder import RunFolder
from tests.conftest import build_batch, build_model
from tests.helpers import Loraga
from tests.mixtures import build_mixture
from tests.stages.inspect.runs import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, saved_bases: dict[str, Path]) -> Path:
    """A LoRA-GA of rank 4, whose saved adapter has rank 8."""
    return train(tmp_path_factory.mktemp("cut"), saved_bases["llama"], "ga", "method=lora_ga")


def base_of(saved_bases: dict[str, Path]) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(saved_bases["llama"])
    return model.eval()


def changes_of(model: PeftModel) -> dict[str, np.ndarray]:
    """ΔW of every layer, as PEFT computes it."""
    return {
        name: layer.get_delta_weight(ADAPTER).detach().double().numpy() for name, layer in lora_layers(model).items()
    }


def truncated(change: np.ndarray, rank: int) -> np.ndarray:
    u, singular, vh = np.linalg.svd(change, full_matrices=False)
    return np.asarray((u[:, :rank] * singular[:rank]) @ vh[:rank])


def as_json(text: str) -> Any:
    return json.loads(next(line for line in text.splitlines() if line.startswith("{")))


def test_peft_alone_loads_a_cut_and_computes_what_the_cut_changes_do(
    loraga: Loraga, run: Path, saved_bases: dict[str, Path]
) -> None:
    """The expected logits are those of the base with numpy's truncated SVD of every dense change in its weights."""
    result = as_json(loraga("export", str(run), "--rank", "3", "--output", "small", "--json"))
    whole = changes_of(PeftModel.from_pretrained(base_of(saved_bases), run))
    base, batch = base_of(saved_bases), build_batch("llama")
    with torch.no_grad():
        for name, change in whole.items():
            base.get_submodule(name).weight += torch.from_numpy(truncated(change, 3)).float()
        cut_model = PeftModel.from_pretrained(base_of(saved_bases), "small").eval()
        torch.testing.assert_close(cut_model(**batch).logits, base(**batch).logits, rtol=1e-4, atol=1e-5)
    lost = {name: np.linalg.norm(change - truncated(change, 3)) for name, change in whole.items()}
    for name, change in whole.items():
        assert result["layers"][name]["weights"] == pytest.approx(lost[name] / np.linalg.norm(change), rel=1e-4)
    norms = [np.linalg.norm(change) for change in whole.values()]
    assert result["errors"]["weights"] == pytest.approx(
        np.linalg.norm(list(lost.values())) / np.linalg.norm(norms), 1e-3
    )
    assert result["errors"]["outputs"] is None
    described = json.loads(Path("small/adapter_config.json").read_text())
    assert (described["r"], described["lora_alpha"], described["rank_pattern"]) == (3, 3.0, {})
    assert json.loads(Path("small/cut.json").read_text())["errors"] == result["errors"]


def test_a_cut_by_rows_has_the_errors_of_the_inputs_of_these_rows(
    loraga: Loraga, run: Path, saved_bases: dict[str, Path]
) -> None:
    """The inputs are collected from PEFT's model alone, and the errors are those of dense products."""
    result = as_json(loraga("export", str(run), "--rank", "2", "--rows", "500", "--output", "small", "--json"))
    model = PeftModel.from_pretrained(base_of(saved_bases), run).eval()
    inputs: dict[str, list[Tensor]] = {}
    for name, layer in lora_layers(model).items():
        assert isinstance(layer, nn.Module)
        layer.register_forward_pre_hook(
            lambda _, given, name=name: inputs.setdefault(name, []).append(given[0].flatten(0, 1).double())
        )
    for row in prepare_inputs(stored_config(RunFolder(run)), ("train",)).train.rows:
        with torch.no_grad():
            model(input_ids=torch.tensor([row["input_ids"]]))
    whole = changes_of(model)
    small = changes_of(PeftModel.from_pretrained(base_of(saved_bases), "small"))
    lost = [np.linalg.norm(torch.cat(inputs[name]).numpy() @ (item - small[name]).T) for name, item in whole.items()]
    added = [np.linalg.norm(torch.cat(inputs[name]).numpy() @ item.T) for name, item in whole.items()]
    assert result["errors"]["outputs"] == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(added), rel=1e-4)
    for name, change in whole.items():
        x = torch.cat(inputs[name]).numpy()

        def relative(kept: np.ndarray, x: np.ndarray = x, change: np.ndarray = change) -> float:
            return float(np.linalg.norm(x @ (change - kept).T) / np.linalg.norm(x @ change.T))

        errors = result["layers"][name]
        assert errors["outputs"] == pytest.approx(relative(small[name]), rel=1e-4)
        assert errors["outputs_by_weight"] == pytest.approx(relative(truncated(change, 2)), rel=1e-4)
        assert errors["outputs"] <= errors["outputs_by_weight"]
        assert errors["weights"] >= errors["weights_by_weight"]
    assert result["errors"]["outputs"] < 0.95 * result["errors"]["outputs_by_weight"]
    assert (result["rows"], result["rows_used"]) == (500, 23)
    kept = json.loads(Path("small/cut.json").read_text())
    assert (kept["rows"], kept["rows_used"]) == (500, 23)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_inputs_of_layers_are_seen_without_the_head(family: str) -> None:
    """The last layer before the head is reached, and the head is not."""
    model = get_peft_model(build_model(family), LoraConfig(r=2, target_modules="all-linear"))
    assert isinstance(model, PeftModel)
    calls: list[str] = []
    head = model.get_base_model().get_output_embeddings()
    assert head is not None
    head.register_forward_hook(lambda *_: calls.append("head"))
    for name, layer in lora_layers(model).items():
        assert isinstance(layer, nn.Module)
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
    with without_head(model) as forward:
        forward(build_batch(family))
    assert set(calls) == set(lora_layers(model))
    model(**build_batch(family))
    assert "head" in calls


def test_a_head_that_has_an_adapter_is_seen() -> None:
    model = get_peft_model(build_model("llama"), LoraConfig(r=2, target_modules=["lm_head", "q_proj"]))
    assert isinstance(model, PeftModel)
    seen: list[str] = []
    for name, layer in lora_layers(model).items():
        assert isinstance(layer, nn.Module)
        layer.register_forward_pre_hook(lambda *_, name=name: seen.append(name))
    with without_head(model) as forward:
        forward(build_batch("llama"))
    assert set(seen) == set(lora_layers(model))


def save(folder: Path, model: PreTrainedModel, **options: Any) -> PeftModel:
    """PEFT alone writes an adapter with random factors."""
    wrapped = get_peft_model(model.eval(), LoraConfig(lora_alpha=5, **options))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, item in wrapped.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                item.normal_(std=0.1)
    wrapped.save_pretrained(str(folder))
    assert isinstance(wrapped, PeftModel)
    return wrapped


def cut_folder(source: Path, folder: Path, rank: int, empty: PreTrainedModel) -> None:
    saved = read_saved(source, lambda: empty)
    write_cut(folder, saved, {name: cut(decompose(item), rank).change for name, item in saved.changes.items()}, rank)


def test_layers_below_the_rank_stay_and_ranks_differ(tmp_path: Path) -> None:
    ranks = {"q_proj": 2, "layers.1.self_attn.v_proj": 7}
    options: dict[str, Any] = {"r": 5, "target_modules": ["q_proj", "v_proj"], "rank_pattern": ranks}
    before = changes_of(save(tmp_path / "a", build_model("llama"), use_rslora=True, **options))
    cut_folder(tmp_path / "a", tmp_path / "b", 4, build_model("llama"))
    after = changes_of(PeftModel.from_pretrained(build_model("llama"), tmp_path / "b"))
    for name, change in before.items():
        np.testing.assert_allclose(after[name], truncated(change, 4), atol=1e-6)
    rows = {name: len(item) for name, item in load_file(tmp_path / "b" / "adapter_model.safetensors").items()}
    assert {count for name, count in rows.items() if "lora_A" in name} == {2, 4}


def test_experts_are_cut_one_by_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"r": 4, "target_modules": [], "target_parameters": ["experts.down_proj"]}
    before = changes_of(save(tmp_path / "a", build_mixture("mixtral"), **options))
    with torch.device("meta"):
        empty = build_mixture("mixtral")
    cut_folder(tmp_path / "a", tmp_path / "b", 2, empty)
    after = changes_of(PeftModel.from_pretrained(build_mixture("mixtral"), tmp_path / "b"))
    for name, changes in before.items():
        expected = np.stack([truncated(change, 2) for change in changes])
        np.testing.assert_allclose(after[name], expected, atol=1e-6)


def test_what_is_beside_the_factors_stays(tmp_path: Path) -> None:
    save(tmp_path / "a", build_model("llama"), r=4, target_modules=["q_proj"], use_dora=True)
    cut_folder(tmp_path / "a", tmp_path / "b", 2, build_model("llama"))
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    magnitudes = [name for name in before if name.endswith("lora_magnitude_vector")]
    assert magnitudes
    assert all(torch.equal(before[name], after[name]) for name in magnitudes)
    PeftModel.from_pretrained(build_model("llama"), tmp_path / "b")


def test_a_layer_without_a_change_is_written_as_zeros(tmp_path: Path) -> None:
    """As PEFT makes an adapter, B is zero."""
    model = get_peft_model(build_model("llama"), LoraConfig(r=4, target_modules=["q_proj"]))
    model.save_pretrained(str(tmp_path / "a"))
    cut_folder(tmp_path / "a", tmp_path / "b", 2, build_model("llama"))
    after = PeftModel.from_pretrained(build_model("llama"), tmp_path / "b")
    assert all(not change.any() for change in changes_of(after).values())
    assert {layer.r[ADAPTER] for layer in lora_layers(after).values()} == {2}


def test_a_cut_is_cut_again_and_its_base_need_not_be_there(
    loraga: Loraga, run: Path, saved_bases: dict[str, Path]
) -> None:
    """Rank 8 to 4 and 4 to 2 is the cut from 8 to 2: both are truncated decompositions."""
    whole = changes_of(PeftModel.from_pretrained(base_of(saved_bases), run))
    loraga("export", str(run), "--rank", "4", "--output", "four")
    described = json.loads(Path("four/adapter_config.json").read_text())
    Path("four/adapter_config.json").write_text(json.dumps(described | {"base_model_name_or_path": "moved/away"}))
    again = as_json(loraga("export", "four", "--rank", "2", "--json"))
    assert again["adapter"] == "four"
    assert again["folder"] == "four/peft-r2"
    small = changes_of(PeftModel.from_pretrained(base_of(saved_bases), "four/peft-r2"))
    for name, change in whole.items():
        np.testing.assert_allclose(small[name], truncated(change, 2), atol=1e-6)


def test_an_adapter_of_peft_alone_is_cut(loraga: Loraga) -> None:
    before = changes_of(save(Path("theirs"), build_model("llama"), r=5, target_modules=["q_proj"]))
    loraga("export", "theirs", "--rank", "2")
    after = changes_of(PeftModel.from_pretrained(build_model("llama"), "theirs/peft-r2"))
    for name, change in before.items():
        np.testing.assert_allclose(after[name], truncated(change, 2), atol=1e-6)
    out = loraga("export", "theirs", "--rank", "0", "--rows", "4", "--base", "x", code=2)
    assert "--rows: theirs is no run, which would have training rows" in out
    assert "--rank: 0" in out


def test_the_base_of_an_adapter_on_parameters_is_named(loraga: Loraga, tmp_path: Path) -> None:
    options: dict[str, Any] = {"r": 4, "target_modules": [], "target_parameters": ["experts.down_proj"]}
    save(Path("theirs"), build_mixture("mixtral"), **options)
    build_mixture("mixtral").save_pretrained("base")
    described = json.loads(Path("theirs/adapter_config.json").read_text())
    Path("theirs/adapter_config.json").write_text(json.dumps(described | {"base_model_name_or_path": None}))
    out = loraga("export", "theirs", "--rank", "2", code=2)
    assert "names no base model: give it with --base" in out
    assert as_json(loraga("export", "theirs", "--rank", "2", "--base", "base", "--json"))["rank"] == 2


def test_the_variable_of_llama_cpp_does_not_stop_a_cut_and_the_option_does(
    loraga: Loraga, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAGA_LLAMA_CPP", "somewhere")
    loraga("export", str(run), "--rank", "4", "--format", "peft", "--output", "four")
    for form in ([], ["--format", "peft"]):
        out = loraga("export", str(run), "--rank", "4", *form, "--llama-cpp", "x", "--output", "other", code=2)
        assert "--llama-cpp does not go with --rank" in out


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ([], ["what should be written? (--format gguf, --format gguf-lora, or --rank R)"]),
        (["--format", "peft"], ["--format peft needs --rank"]),
        (
            ["--format", "gguf", "--rank", "2", "--type", "f32"],
            ["does not go with --format gguf", "--type does not go"],
        ),
        (["--format", "gguf", "--rows", "2"], ["--rows does not go with --format gguf"]),
        (["--rank", "4", "--base", "x"], ["--base: does nothing here: without --rows no base is read (leave it out)"]),
        (
            ["--rank", "0", "--rows", "0", "--output", "taken"],
            ["--rank: 0", "--rows: 0", "taken: exists and is not empty"],
        ),
        (["--rank", "9"], ["--rank: 9, and the adapter has rank 8 (give a lower one)"]),
    ],
)
def test_options_that_do_not_go_together_are_all_said(
    loraga: Loraga, run: Path, options: list[str], messages: list[str]
) -> None:
    Path("taken").mkdir()
    Path("taken/file").touch()
    out = loraga("export", str(run), *options, code=2)
    assert all(message in out for message in messages), out
