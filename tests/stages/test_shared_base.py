"""Several adapters on one base: the base is loaded once, and each has the score that it has alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig, PrefixTuningConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from lora_ga_cli.methods.switching import switching_obstacle
from lora_ga_cli.stages import inputs as inputs_module
from tests.conftest import byte_tokenizer
from tests.evaluation.models import restless
from tests.helpers import Loraga

ROWS = ["eval.file=rows.jsonl", "eval.limit=6", "eval=exact_match", "eval.metrics=[loss,exact_match]"]
DATA = ["dataset=jsonl", "dataset.train_file=rows.jsonl", "dataset.max_length=64", "model.dtype=float32", "device=cpu"]
OPTIONS = [*ROWS, "eval.max_new_tokens=6", "eval.answer_pattern='(.+)'"]
SHORT = ["eval.file=rows.jsonl", "eval.limit=2"]
RUN = [
    *["model=causal_lm", "model.dtype=float32", "device=cpu", "dataset=jsonl", "dataset.train_file=rows.jsonl"],
    *["dataset.max_length=64", "trainer.max_steps=1", "trainer.learning_rate=0.3", "rank=4", "method=lora"],
]
KINDS: dict[str, dict[str, Any]] = {
    "a": {"r": 4, "target_modules": "all-linear"},
    "b": {"r": 2, "target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "c": {"r": 3, "target_modules": ["v_proj", "gate_proj"], "use_dora": True},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bases, and adapters of PEFT for the first one: ranks, layers and kinds differ."""
    home = tmp_path_factory.mktemp("home")
    for name in ("base", "other"):
        model = restless("llama")
        if name == "other":
            model.model.norm.weight.data *= 2
        model.save_pretrained(home / name)
        byte_tokenizer().save_pretrained(home / name)
    for number, (name, options) in enumerate(KINDS.items()):
        save_adapter(home / "base", home / name, number, **options)
    rows = [{"prompt": f"{number}+1=", "answer": f"{number + 1}"} for number in range(12)]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def save_adapter(base: Path, folder: Path, seed: int, **options: Any) -> None:
    """An adapter by PEFT alone, which changes what the base computes."""
    torch.manual_seed(seed)
    model: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **options)
    )
    for name, weight in model.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            weight.data.normal_(std=0.3)
    model.save_pretrained(folder)


@pytest.fixture(autouse=True)
def laid_out(home: Path) -> None:
    for name in ("base", "other", "rows.jsonl", *KINDS):
        (shutil.copytree if (home / name).is_dir() else shutil.copy)(home / name, name)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The bases that were loaded."""
    loaded: list[str] = []
    load = inputs_module.load_model

    def counting(config: Any, *arguments: Any, **options: Any) -> Any:
        loaded.append(Path(config.path).name)
        return load(config, *arguments, **options)

    monkeypatch.setattr(inputs_module, "load_model", counting)
    return loaded


def scored(name: str) -> tuple[dict[str, float], str]:
    """The values and the answers of the only result of a target."""
    (result,) = Path(f"runs/eval-{name}").rglob("*.json")
    (lines,) = Path(f"runs/eval-{name}").rglob("*.jsonl")
    return json.loads(result.read_text())["values"], lines.read_text()


def test_adapters_on_one_base_score_as_each_alone(loraga: Loraga, loads: list[str]) -> None:
    """To the last digit, whatever was in the base before; and the base too, after adapters were in it."""
    alone = {}
    for name in ("base", *KINDS):
        loraga("eval", name, *OPTIONS, *DATA)
        alone[name] = scored(name)
    assert loads == ["base"] * 4
    assert len({json.dumps(found) for found in alone.values()}) == 4, "an adapter changes nothing"
    shutil.rmtree("runs")
    loads.clear()
    out = loraga("eval", "a", "c", "base", "b", *OPTIONS, *DATA)
    assert "base is loaded once, for a, c, base, b" in out
    assert loads == ["base"]
    assert {name: scored(name) for name in alone} == alone


def test_a_base_is_scored_beside_the_adapters_on_it(loraga: Loraga, home: Path, loads: list[str]) -> None:
    """Runs and PEFT's adapters; a kind that cannot be switched is loaded apart, and the user is told."""
    save_adapter(home / "base", Path("head"), 5, r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    loraga("train", *RUN, "name=mine", "model.path=./base")
    loads.clear()
    out = loraga("eval", "base", "--adapters", "head,b", *SHORT, *DATA[-1:], code=2)
    assert "no data set to score on" in out
    out = loraga("eval", "base", "--adapters", "head,b", *SHORT, *DATA)
    assert "base is loaded once, for base, b" in out
    assert "head is loaded apart: lm_head was trained with it (modules_to_save)" in out
    assert loads == ["base"] * 2
    table = out[out.index(" run ") :].splitlines()
    assert [line.split()[0] for line in table[2:5]] == ["base", "head", "b"]
    loads.clear()
    out = loraga("eval", "base", "--adapters", "a,runs/mine", *SHORT, "device=cpu")
    assert "a is scored on the rows of mine" in out
    assert loads == ["base"]
    assert "base is loaded once, for base, a, mine" in out
    out = loraga("eval", "other", "--adapters", "runs/mine,a", *SHORT, *DATA[-1:], code=2)
    assert re.search(r"runs/mine was trained on \./base, and the files of \S+/other are others", out)


def test_an_adapter_of_another_base_is_an_error_that_names_both(loraga: Loraga, loads: list[str]) -> None:
    out = loraga("eval", "other", "--adapters", "a,b", *SHORT, *DATA, code=2)
    for name in "ab":
        assert re.search(rf"{name} is an adapter of \S+/base, and \S+/other is another base", out)
    assert loads == []


def test_what_is_no_adapter_is_refused_with_everything_else(loraga: Loraga, loads: list[str]) -> None:
    out = loraga("eval", "base", "--adapters", "other,nothing,base", *SHORT, *DATA, code=2)
    assert "other: no adapter" in out
    assert "nothing: no such run folder or adapter" in out
    assert "no base is named" in loraga("eval", "--adapters", "a", *SHORT, code=2)
    assert "2 bases are named" in loraga("eval", "base", "other", "--adapters", "a", *SHORT, code=2)
    assert "the base is named already" in loraga("eval", "base", "--adapters", "a", "model.path=./other", *DATA, code=2)
    assert "holds an adapter, and no base" in loraga("eval", "a", "--adapters", "b", *SHORT, *DATA, code=2)
    assert "names none" in loraga("eval", "base", "--adapters", ",", *SHORT, code=2)
    assert "no such base" in loraga("eval", "./basee", "--adapters", "b", *SHORT, *DATA, code=2)
    assert loads == []


def described(folder: str, config: PeftConfig) -> None:
    """The folder of an adapter, with a readable file in place of its weights."""
    config.save_pretrained(folder)
    save_file({"none": torch.zeros(1)}, f"{folder}/adapter_model.safetensors")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, ""),
        ({"use_dora": True, "rank_pattern": {"q_proj": 7}, "init_lora_weights": "orthogonal"}, ""),
        ({"modules_to_save": ["embed_tokens"]}, "embed_tokens was trained with it"),
        ({"trainable_token_indices": [3]}, "rows of the embeddings"),
        ({"bias": "lora_only"}, "biases of the base"),
        ({"init_lora_weights": "pissa"}, "PEFT changes the base's weights"),
        ({"target_parameters": ["experts.down_proj"]}, "no linear layers"),
        ({"layer_replication": [(0, 1), (0, 2)]}, "layer_replication"),
    ],
)
def test_adapters_that_cannot_share_a_base_are_known_by_their_description(options: Any, reason: str) -> None:
    described("described", LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **options))
    found = switching_obstacle(Path("described"))
    assert reason in found
    assert bool(found) == bool(reason)


def test_other_kinds_of_peft_do_not_share_a_base_with_lora() -> None:
    described("prefix", PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    options = {"total_step": 9, "tinit": 1, "tfinal": 1}
    described("adalora", AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **options))
    assert "PREFIX_TUNING is not switched with LoRA" in switching_obstacle(Path("prefix"))
    assert "ADALORA is not switched with LoRA" in switching_obstacle(Path("adalora"))
    Path("custom").mkdir()
    Path("custom/custom_adapter.json").write_text("{}")
    assert "PEFT does not load" in switching_obstacle(Path("custom"))
