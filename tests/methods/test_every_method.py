"""Every method that ships: trained, killed and resumed, saved, loaded by PEFT alone, merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lora_ga_cli.methods.forms import FORMS
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_ga_cli.config.locations import Locations
from tests.helpers import Arguments, Loraga, between_two_checkpoints, killed, only_run
from tests.methods.test_build import configured

METHODS = sorted(Locations().choices("method"))
FAMILY = {"bitfit": "gpt2"}
"""Llama has no bias to train."""
OPTIONS = {
    "full_top_layers": ["method.top_layers=1"],
    "prefix_embedding": ["method.prefix_length=3"],
    "prefix_layer": ["method.prefix_length=3"],
    "adalora": ["method.adalora.interval=1"],
}
NEEDS_64 = ("qlora", "qlora_ga")
"""On a CPU, bitsandbytes packs NF4 rows of multiples of 64 only."""


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


ALIKE = {
    "full",
    "full_top_layers",
    "rslora",
    "lora_plus",
    "lora_gaussian",
    "lora_so",
    "lora_ga_unscaled",
    "lora_ga_plus",
    "qlora",
}
"""Methods whose every step another method here takes too."""


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in METHODS]
)
def test_a_method_trains_resumes_reloads_and_merges(
    loraga: Loraga,
    arguments: Arguments,
    saved_bases: dict[str, Path],
    wide_base: Path,
    sums_file: Path,
    method: str,
) -> None:
    family = FAMILY.get(method, "llama")
    base = wide_base if method in NEEDS_64 else saved_bases[family]
    options = [f"method={method}", f"model.path={base}", *OPTIONS.get(method, [])]
    loraga("train", *arguments(family, *options, "output_dir=whole"))
    killed(arguments(family, *options), between_two_checkpoints)
    assert "resuming after step 2" in loraga("train", *arguments(family, *options))
    whole, run = only_run("whole"), only_run()
    losses = [json.loads((folder / "manifest.json").read_text())["training_loss"] for folder in (whole, run)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)

    loraga("eval", str(run), f"eval.file={sums_file}", "eval.limit=8")
    scored = json.loads((run / "eval.json").read_text())["values"]["loss"]
    form = FORMS[configured(method).method.adapter]
    tokenizer = AutoTokenizer.from_pretrained(base)
    if form.loads_in == "PEFT" and method not in NEEDS_64:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), run).eval()
        assert loss_by(model, tokenizer, sums_file, 8) == pytest.approx(scored, rel=1e-4)
    if not form.merges:
        assert "cannot be merged" in loraga("merge", str(run), code=2)
        return
    loraga("merge", str(run))
    merged = AutoModelForCausalLM.from_pretrained(run / "merged", dtype=torch.float32).eval()
    # merging into a quantized base would round, so it goes into the base before that
    allowed = 0.1 if method in NEEDS_64 else 1e-4
    assert loss_by(merged, tokenizer, sums_file, 8) == pytest.approx(scored, rel=allowed)
