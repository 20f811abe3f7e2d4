"""Measures the two ways of taking LoRA-GA's start off again, side by side: step time, memory, exactness at step 0.

    python scripts/bench_shift.py                 GPU: Llama-2-7B's shapes, random bfloat16 weights, rank 8
    python scripts/bench_shift.py --tiny          CPU: the bundled base, in bfloat16

``weights``: the base becomes ``W - s·B0·A0``. ``adapter``: the base stays, and a frozen copy of the start rides in the
adapter. ``LoRA``: rank 8 from zero, for comparison. Steps are forward, backward and AdamW on 1 × 1024 tokens (with
--tiny on the base's own rows) with gradient checkpointing; the median of 10 after 3. Logits are compared with those of
the untouched base.
"""

from __future__ import annotations

import argparse
import statistics
import time

import bench_gradient as bench
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lora_ga_cli import estimate_gradients, initialize
from lora_ga_cli.files import resolve_path

RANK, WARM, STEPS = 8, 3, 10


def tiny() -> tuple[torch.nn.Module, list[dict[str, torch.Tensor]]]:
    model = AutoModelForCausalLM.from_pretrained(str(resolve_path("bundled:tiny_base")), dtype=torch.bfloat16)
    _, batches = bench.from_recipe(["recipe=quickstart", "device=cpu"])
    return model, batches


def measure(form: str, build, artifact, expected: torch.Tensor) -> None:  # type: ignore[no-untyped-def]
    model, batches = build()
    cuda = next(model.parameters()).is_cuda
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    config = LoraConfig(r=RANK, lora_alpha=16, use_rslora=True, target_modules=artifact.target_modules)
    peft = get_peft_model(model, config)
    if form != "LoRA":
        initialize(peft, artifact, shift=form)
    with torch.no_grad():
        found = peft.eval()(input_ids=batches[0]["input_ids"]).logits.float()
    off = float((found - expected.to(found.device)).norm() / expected.norm())
    trained = [parameter for parameter in peft.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0)
    peft.train()
    seconds = []
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for number in range(WARM + STEPS):
        bench.synchronize(next(model.parameters()).device)
        began = time.perf_counter()
        peft(**batches[number % len(batches)]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        bench.synchronize(next(model.parameters()).device)
        if number >= WARM:
            seconds.append(time.perf_counter() - began)
    peak = f"{torch.cuda.max_memory_allocated() / bench.GIB:.2f} GiB" if cuda else "–"
    print(f"| {form} | {1000 * statistics.median(seconds):.0f} ms | {peak} | {off:.1e} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    build = tiny if parser.parse_args().tiny else bench.llama_7b
    model, batches = build()
    artifact = estimate_gradients(model, batches)
    with torch.no_grad():
        expected = model.eval()(input_ids=batches[0]["input_ids"]).logits.float().cpu()
    del model
    print("| start | step | peak memory | logits off at step 0 |\n|---|---|---|---|")
    for form in ("LoRA", "weights", "adapter"):
        measure(form, build, artifact, expected)


if __name__ == "__main__":
    main()
