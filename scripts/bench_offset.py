"""Measures a training step with LoRA-GA's two forms beside a standard LoRA: time, memory, and logits at step 0.

    python scripts/bench_offset.py                GPU: Llama-2-7B's shapes, random bfloat16 weights, rank 8
    python scripts/bench_offset.py --tiny         CPU: the bundled base, in bfloat16

``base``: ``s·B0 A0`` is subtracted from the base's weights. ``adapter``: the base stays as it is, and the adapter
computes the difference form ``s·[ΔB, B0] [A; ΔA] x``. ``LoRA``: PEFT's own, rank 8 from zero. Steps are forward, backward
and AdamW on 1 × 1024 tokens with and without gradient checkpointing, where a GPU waits for the CPU that
launches its kernels, and on 4 × 1024 with it, where it does not (with --tiny: the base's own rows). The forms take turns;
the median and the least time of all rounds are shown, and both divided by those of LoRA. Logits are compared with those of the original base.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import bench_gradient as bench
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lora_ga_cli import estimate_gradients, initialize
from lora_ga_cli.files import resolve_path

RANK, WARM, STEPS, ROUNDS = 8, 3, 8, 4
CASES = ((1, True), (1, False), (4, True))
"""Rows of 1,024 tokens in a batch, and whether activations are checkpointed."""
FORMS = ("LoRA", "base", "adapter")
Build = Callable[[], tuple[Any, list[dict[str, torch.Tensor]]]]


def tiny() -> tuple[torch.nn.Module, list[dict[str, torch.Tensor]]]:
    model = AutoModelForCausalLM.from_pretrained(str(resolve_path("bundled:tiny_base")), dtype=torch.bfloat16)
    _, batches = bench.from_recipe(["recipe=quickstart", "device=cpu"])
    return model, batches


def step_seconds(
    form: str, build: Build, artifact: Any, expected: torch.Tensor, *, rows: int, checkpointing: bool
) -> tuple[list[float], float, float]:
    """Seconds of single steps, peak memory in GiB, and the relative difference of the logits at step 0."""
    model, batches = build()
    device = next(model.parameters()).device
    first = batches[0]["input_ids"]
    if rows > 1:
        names = ("input_ids", "labels")
        batches = [{name: torch.cat([batch[name] for batch in batches[:rows]]) for name in names}]
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    config = LoraConfig(r=RANK, lora_alpha=16, use_rslora=True, target_modules=artifact.target_modules)
    peft = get_peft_model(model, config)
    if form != "LoRA":
        initialize(peft, artifact, offset=form)
    with torch.no_grad():
        actual = peft.eval()(input_ids=first).logits.float()
    off = float((actual - expected.to(device)).norm() / expected.norm())
    trained = [parameter for parameter in peft.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0)
    peft.train()
    seconds = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for number in range(WARM + STEPS):
        bench.synchronize(device)
        began = time.perf_counter()
        peft(**batches[number % len(batches)]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        bench.synchronize(device)
        if number >= WARM:
            seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() / bench.GIB if device.type == "cuda" else 0.0
    return seconds, peak, off


def compare(build: Build, artifact: Any, expected: torch.Tensor, *, rows: int, checkpointing: bool) -> None:
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    peaks, off = {}, {}
    for _ in range(ROUNDS):
        for form in FORMS:
            found, peaks[form], off[form] = step_seconds(
                form, build, artifact, expected, rows=rows, checkpointing=checkpointing
            )
            seconds[form] += found
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    lora = statistics.median(seconds["LoRA"]), min(seconds["LoRA"])
    for form in FORMS:
        median, least = statistics.median(seconds[form]), min(seconds[form])
        print(
            f"| {form} | {rows} | {'yes' if checkpointing else 'no'} | {1000 * median:.0f} ms | {1000 * least:.0f} ms "
            f"| {median / lora[0]:.3f} | {least / lora[1]:.3f} | {peaks[form]:.2f} GiB | {off[form]:.1e} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    build: Build = tiny if parser.parse_args().tiny else bench.llama_7b
    model, batches = build()
    artifact = estimate_gradients(model, batches)
    with torch.no_grad():
        expected = model.eval()(input_ids=batches[0]["input_ids"]).logits.float().cpu()
    del model
    print("| form | rows | checkpointing | median | least | over LoRA | of the least | peak memory | logits off |")
    print("|---|---|---|---|---|---|---|---|---|")
    for rows, checkpointing in CASES:
        compare(build, artifact, expected, rows=1 if build is tiny else rows, checkpointing=checkpointing)


if __name__ == "__main__":
    main()
