"""Every method that ships: trained, cut off and resumed, saved, loaded by PEFT alone, merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_ga_cli.config.locations import Locations
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import TargetError
from lora_ga_cli.methods.base import method_of
from tests.conftest import build_model
from tests.helpers import Arguments, Loraga, configured, copied_between_two_checkpoints, empty, only_run


def selected() -> list[Any]:
    """Every method of ``conf/method``; those whose every step another one of them takes too are slow."""
    seen: set[tuple[str, str]] = set()
    methods = []
    configs = {name: configured(name) for name in sorted(Locations().choices("method"))}
    # a method that is called as its type comes before the variants of it
    for name, config in sorted(configs.items(), key=lambda item: item[0] != item[1].method.type):
        steps = (config.model.quantization or config.method.type, method_of(config).output.label)
        methods.append(pytest.param(name, marks=[pytest.mark.slow] if steps in seen else []))
        seen.add(steps)
    return methods


def family_for(config: Config) -> str:
    """A model that has something for the method to train: Llama has no bias, for one."""
    try:
        empty(build_model("llama"), config)
    except TargetError:
        return "gpt2"
    return "llama"


def loss_by(model: torch.nn.Module, tokenizer: object, file: Path, rows: int) -> float:
    """The mean loss of answer tokens, a row at a time, from logits alone."""
    total, count = 0.0, 0
    for line in file.read_text().splitlines()[:rows]:
        row = json.loads(line)
        prompt = tokenizer(row["prompt"])["input_ids"]  # type: ignore[operator]
        answer = [*tokenizer(row["answer"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]  # type: ignore[operator, attr-defined]
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            found = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
        found = found[-ids.shape[1] :]  # a trained prefix has logits too
        for position in range(len(prompt), ids.shape[1]):
            total -= float(found[position - 1, ids[0, position]])
            count += 1
    return total / count


@pytest.mark.parametrize("method", selected())
def test_a_method_trains_resumes_reloads_and_merges(
    loraga: Loraga,
    arguments: Arguments,
    saved_bases: dict[str, Path],
    wide_base: Path,
    sums_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    config = configured(method)
    quantized, family = config.model.quantization is not None, family_for(config)
    base = wide_base if quantized else saved_bases[family]
    options = [f"method={method}", f"model.path={base}", *method_of(config).example]
    with monkeypatch.context() as patch:
        copied_between_two_checkpoints(patch, "uninterrupted", "runs")
        loraga("train", *arguments(family, *options, "output_dir=uninterrupted"))
    assert "resuming after step 2" in loraga("train", *arguments(family, *options))
    uninterrupted, run = only_run("uninterrupted"), only_run()
    losses = [json.loads((folder / "manifest.json").read_text())["training_loss"] for folder in (uninterrupted, run)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    for file in uninterrupted.glob("*.safetensors"):
        resumed = load_file(run / file.name)
        assert all(torch.equal(resumed[name], tensor) for name, tensor in load_file(file).items())

    loraga("eval", str(run), f"eval.file={sums_file}", "eval.limit=8")
    scored = json.loads((run / "eval.json").read_text())["values"]["loss"]
    output, tokenizer = method_of(config).output, AutoTokenizer.from_pretrained(base)
    if output.loads_in == "PEFT" and not quantized:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), run).eval()
        assert loss_by(model, tokenizer, sums_file, 8) == pytest.approx(scored, rel=1e-4)
    if not output.mergeable:
        assert "cannot be merged" in loraga("merge", str(run), code=2)
        return
    loraga("merge", str(run))
    merged = AutoModelForCausalLM.from_pretrained(run / "merged", dtype=torch.float32).eval()
    # merging into a quantized base would round, so it goes into the base before that
    allowed = 0.1 if quantized else 1e-4
    assert loss_by(merged, tokenizer, sums_file, 8) == pytest.approx(scored, rel=allowed)
