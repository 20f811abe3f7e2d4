"""Measures, in one run, what docs/benchmarks.md says of PEFT's LoRA-GA and of loraga's, on the bundled base and data.

    python scripts/compare_peft.py

The first table: first-step alignment by layer (the cosine of the first update with the full gradient, divided by the
best that rank 2·rank allows), and what a loss multiplied by 1000 does to the initial B.

The second table, after three optimizer steps: the logits of the saved adapter on the original base, against those of
the model that was saved; and by how much they change when the saved factors are rounded to bfloat16, as a server of a
bfloat16 base does, divided by what training changed (norms over all logits). PEFT's adapter is saved in three ways:

- ``save_pretrained(folder)``, the first option that PEFT's documentation of LoRA-GA gives;
- ``save_pretrained(folder, path_initial_model_for_weight_conversion=…)`` with a folder of the *model* before its
  initialization, the second option as that documentation writes it;
- the same with a folder of the *adapter* after its initialization, which is what the argument loads.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, LoraGAConfig, PeftModel, get_peft_model
from peft import __version__ as peft_version
from peft.tuners.lora.loraga import preprocess_loraga
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_ga_cli import LoraInit, estimate_gradients, export_adapter, initialize
from lora_ga_cli.data import collate_tokens
from lora_ga_cli.lora.initialization import first_step_alignment
from lora_ga_cli.lora.layers import lora_layers
from lora_ga_cli.paths import resolve_path

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


Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""A0 (rank, d_in) and B0 (d_out, rank) by layer."""


def initial_pairs(model: PeftModel) -> Pairs:
    """The factors of PEFT's model before its first step."""
    return {
        name: (layer.lora_A["default"].weight.detach().clone(), layer.lora_B["default"].weight.detach().clone())
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


def of_loraga(batch: dict[str, Tensor], loss_scale: float = 1.0) -> tuple[PeftModel, LoraInit]:
    model = base_model()
    artifact = estimate_gradients(model, [batch], loss_function=lambda model, batch: loss_scale * model(**batch).loss)
    peft = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=ALPHA, use_rslora=True, target_modules=artifact.target_modules)
    )
    return peft, initialize(peft, artifact)


def train(model: PeftModel, batch: dict[str, Tensor]) -> Tensor:
    """Three optimizer steps; returns the logits afterwards."""
    optimizer = torch.optim.AdamW([item for item in model.parameters() if item.requires_grad], lr=1e-3, weight_decay=0)
    for _ in range(3):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return logits(model, batch)


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def reloaded(folder: Path, batch: dict[str, Tensor]) -> Tensor:
    """The logits of a saved adapter on the original base."""
    return logits(PeftModel.from_pretrained(base_model(), str(folder)).eval(), batch)


def round_factors(folder: Path) -> None:
    """Rounds a saved adapter to bfloat16, in place."""
    file = folder / "adapter_model.safetensors"
    save_file({name: item.bfloat16().float() for name, item in load_file(file).items()}, file)


def report_initialization(name: str, pairs: Pairs, scaled: Pairs, grads: Mapping[str, Tensor]) -> None:
    alignment = [first_step_alignment(grads[layer], *pairs[layer]) for layer in grads]
    growth = [float(scaled[layer][1].norm() / pairs[layer][1].norm()) for layer in grads]
    print(
        f"| {name} | {sum(alignment) / len(alignment):.3f} / {min(alignment):.3f} | ×{sum(growth) / len(growth):.0f} |"
    )


def report_saved(name: str, folder: Path, batch: dict[str, Tensor], trained: Tensor) -> None:
    rank = json.loads((folder / "adapter_config.json").read_text())["r"]
    actual, change = reloaded(folder, batch), trained - logits(base_model(), batch)
    round_factors(folder)
    lost = float((reloaded(folder, batch) - actual).norm() / change.norm())
    off, largest = float((actual - trained).abs().max()), float(trained.abs().max())
    print(f"| {name} | {rank} | {off:.2g} of {largest:.2g} | {100 * lost:.2g} % |")


def save_peft(model: PeftModel, folder: Path, initial: Path | None) -> str:
    """Saves with PEFT; returns what stopped it, or nothing."""
    path = str(initial) if initial is not None else None
    try:
        model.save_pretrained(str(folder), path_initial_model_for_weight_conversion=path)
    except Exception as error:
        return f"refused ({type(error).__name__})"
    return ""


def main() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)  # PEFT's decomposition draws random vectors
    batch = rows_of_quickstart()
    ours, init = of_loraga(batch)
    theirs = of_peft(batch)
    grads = full_gradients(batch, list(init.factors))
    peft = f"PEFT {peft_version}"
    print("| | first-step alignment, mean / worst layer | B at 1000 × the loss |")
    print("|---|---|---|")
    report_initialization(peft, initial_pairs(theirs), initial_pairs(of_peft(batch, 1000)), grads)
    report_initialization("loraga", init.factors, of_loraga(batch, 1000)[1].factors, grads)
    print("\n| saved by | rank | reloaded on the original base: logits off by | lost in bfloat16 |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base_model().save_pretrained(folder / "model")
        theirs.save_pretrained(str(folder / "adapter"))
        trained = train(theirs, batch)
        for name, initial in (("", None), (", initial model", "model"), (", initial adapter", "adapter")):
            saved = folder / f"peft-{initial}"
            problem = save_peft(theirs, saved, folder / initial if initial is not None else None)
            if problem:
                print(f"| {peft}{name} | | {problem} | |")
            else:
                report_saved(f"{peft}{name}", saved, batch, trained)
        trained = train(ours, batch)
        export_adapter(ours, folder / "ours", init)
        report_saved("loraga", folder / "ours", batch, trained)


if __name__ == "__main__":
    main()
