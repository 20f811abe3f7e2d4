"""Measures what a rank costs: time and memory of a training step at several ranks, over those of PEFT at rank 8.

    python scripts/bench_rank.py                  GPU: Llama-2-7B's shapes, random bfloat16 weights (30 GiB)
    python scripts/bench_rank.py --tiny           CPU: the bundled base, in bfloat16

``PEFT`` is PEFT's own LoRA, from zero, and ``LoRA`` the same with loraga's product. ``offset`` has initial factors that
are subtracted in the adapter, as LoRA-GA has them on a bfloat16 base. Products are computed in float32 or in bfloat16
(``trainer.adapter_dtype``); what trains is in float32. A step is forward, backward and AdamW on 4 × 1024 tokens with
gradient checkpointing (with --tiny on the base's own rows). PEFT at rank 8 is measured first and last, since a GPU's
clock changes. The memory is the peak of everything on the GPU: weights, adapter, optimizer, activations.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from typing import Any

import bench_gradient as bench
import torch
from bench_offset import Batch, tiny
from peft import LoraConfig, get_peft_model

from lora_ga_cli.lora.adapter_dtype import set_adapter_dtype
from lora_ga_cli.lora.initialization import layer_seed, random_factors
from lora_ga_cli.lora.offset import compute_init, install, train_directly

RANKS, WARM, STEPS, ROWS = (8, 32, 64, 128), 2, 8, 4
REFERENCE = ("PEFT", 8, torch.float32)
CASES = [
    REFERENCE,
    *(
        (form, rank, dtype)
        for dtype in (torch.float32, torch.bfloat16)
        for rank in RANKS
        for form in ("LoRA", "offset")
    ),
    REFERENCE,
]


def adapted(model: Any, form: str, rank: int, dtype: torch.dtype) -> Any:
    """The model with an adapter of a rank on all linear layers, whose products are in a type."""
    config = LoraConfig(r=rank, lora_alpha=16, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM")
    peft: Any = get_peft_model(model, config)
    if form == "offset":

        def pair(name: str, target: Any, rank: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
            return random_factors(target.shape, rank, factor=1.0, seed=layer_seed(0, name))

        install(peft, compute_init(peft, pair, offset="adapter"))
    elif form == "LoRA":
        train_directly(peft)
    set_adapter_dtype(peft, dtype)
    return peft.train()


def measure(model: Any, batches: list[Batch]) -> tuple[float, float]:
    """Median seconds of a step, and the peak of memory in GiB."""
    device = next(model.parameters()).device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    seconds = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for number in range(WARM + STEPS):
        bench.synchronize(device)
        began = time.perf_counter()
        model(**batches[number % len(batches)]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        bench.synchronize(device)
        seconds += [time.perf_counter() - began] if number >= WARM else []
    memory = torch.cuda.max_memory_allocated() / bench.GIB if device.type == "cuda" else 0.0
    return statistics.median(seconds), memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    build = tiny if parser.parse_args().tiny else bench.llama_7b
    first: tuple[float, float] | None = None
    print("| form | rank | products | step | over PEFT r=8 | memory | over PEFT r=8 |")
    print("|---|---|---|---|---|---|---|")
    for form, rank, dtype in CASES:
        model, batches = build()
        if build is not tiny:
            batches = [{name: torch.cat([batch[name] for batch in batches[:ROWS]]) for name in batches[0]}]
        seconds, memory = measure(adapted(model, form, rank, dtype), batches)
        first = first or (seconds, memory)
        over = memory / first[1] if first[1] else float("nan")
        print(
            f"| {form} | {rank} | {str(dtype).removeprefix('torch.')} | {1000 * seconds:.0f} ms "
            f"| {seconds / first[0]:.3f} | {memory:.2f} GiB | {over:.3f} |",
            flush=True,
        )
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
