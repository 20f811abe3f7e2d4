"""Measures, in one run, what the README says about LoRA-GA in PEFT and in loraga, on the bundled base and data.

    python scripts/compare_peft.py

For both: first-step alignment by layer (the cosine of the first update with the full gradient, over the best that rank
2·rank allows), what a thousandfold loss does to B, and the logits of the saved adapter on the original base against
those of the model that was saved. PEFT's adapter is saved as its documentation saves it.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, LoraGAConfig, PeftModel, get_peft_model
from peft import __version__ as peft_version
from peft.tuners.lora.loraga import preprocess_loraga
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_ga_cli import estimate_gradients, export_adapter, initialize
from lora_ga_cli.data import collate_tokens
from lora_ga_cli.files import resolve_path
from lora_ga_cli.lora.initialization import first_step_alignment
from lora_ga_cli.lora.layers import lora_layers

RANK, ALPHA, ROWS = 8, 16, 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BASE = str(resolve_path("bundled:tiny_base"))


def rows_of_quickstart() -> dict[str, Tensor]:
    """One batch of the bundled training rows, with loss on the answers."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    rows = []
    for line in resolve_path("bundled:quickstart/train.jsonl").read_text(encoding="utf-8").splitlines()[:ROWS]:
        row = json.loads(line)
        prompt = tokenizer(f"Question: {row['question']}\nAnswer: ")["input_ids"]
        answer = [*tokenizer(row["answer"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return collate_tokens(tokenizer, rows)


def base_model() -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()


def full_gradients(batch: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    model = base_model()
    weights = [model.get_submodule(name).weight for name in names]
    return dict(zip(names, torch.autograd.grad(model(**batch).loss, weights), strict=True))


def factors(model: PeftModel) -> dict[str, tuple[Tensor, Tensor]]:
    """A0 (rank, d_in) and B0 (d_out, rank) by layer."""
    return {
        name: (layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach())
        for name, layer in lora_layers(model).items()
    }


def of_peft(batch: dict[str, Tensor], loss_scale: float = 1.0) -> PeftModel:
    model = base_model()
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()
    )

    def train_step() -> None:
        (loss_scale * model(**batch).loss).backward()

    with torch.enable_grad():
        preprocess_loraga(model, config, train_step)
    return get_peft_model(model, config)


def of_loraga(batch: dict[str, Tensor], loss_scale: float = 1.0):  # type: ignore[no-untyped-def]
    model = base_model()
    artifact = estimate_gradients(model, [batch], loss_function=lambda model, batch: loss_scale * model(**batch).loss)
    peft = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=ALPHA, use_rslora=True, target_modules=artifact.target_modules)
    )
    return peft, initialize(peft, artifact)


def step(model: PeftModel, batch: dict[str, Tensor]) -> Tensor:
    """Three optimizer steps; returns the logits afterwards."""
    optimizer = torch.optim.AdamW([item for item in model.parameters() if item.requires_grad], lr=1e-3, weight_decay=0)
    for _ in range(3):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return model(**batch).logits


def reloaded(folder: str, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return PeftModel.from_pretrained(base_model(), folder).eval()(**batch).logits


def report(
    name: str, initialized: PeftModel, scaled: PeftModel, grads: dict[str, Tensor], trained: Tensor, actual: Tensor
) -> None:
    pairs, others = factors(initialized), factors(scaled)
    alignment = [first_step_alignment(grads[layer], *pairs[layer]) for layer in grads]
    growth = [float(others[layer][1].norm() / pairs[layer][1].norm()) for layer in grads]
    print(
        f"| {name} | {sum(alignment) / len(alignment):.3f} / {min(alignment):.3f} | ×{sum(growth) / len(growth):.0f} | "
        f"{float((actual - trained).abs().max()):.2g} of {float(trained.abs().max()):.2g} |"
    )


def main() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    batch = rows_of_quickstart()
    ours, init = of_loraga(batch)
    grads = full_gradients(batch, list(factors(ours)))
    columns = ["", "first-step alignment, mean / worst layer", "B at 1000 × the loss", "saved, reloaded: logits off by"]
    print(f"| {' | '.join(columns)} |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        theirs = of_peft(batch)
        before = copy.deepcopy(theirs)
        trained = step(theirs, batch)
        theirs.save_pretrained(f"{folder}/peft")
        report(f"PEFT {peft_version}", before, of_peft(batch, 1000), grads, trained, reloaded(f"{folder}/peft", batch))
        before = copy.deepcopy(ours)
        trained = step(ours, batch)
        export_adapter(ours, Path(folder) / "ours", init)
        report("loraga", before, of_loraga(batch, 1000)[0], grads, trained, reloaded(f"{folder}/ours", batch))


if __name__ == "__main__":
    main()
