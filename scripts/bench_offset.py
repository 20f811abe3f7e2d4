"""Measures a training step with LoRA-GA's two forms beside a standard LoRA: time, memory, and logits at step 0.

    python scripts/bench_offset.py                GPU: Llama-2-7B's shapes, random bfloat16 weights, rank 8 (60 GiB)
    python scripts/bench_offset.py --tiny         CPU: the bundled base, in bfloat16

``PEFT``: PEFT's own LoRA, from zero. ``LoRA``: the same, with loraga's product. ``base``: ``s·B0 A0`` is subtracted
from the base's weights. ``adapter``: the base stays as it is, and the adapter computes the difference form
``s·[ΔB, B0] [A; ΔA] x``. The rank is 8, and products are computed in float32 and in bfloat16
(``trainer.adapter_dtype``); what trains is in float32. A step is forward, backward and AdamW on 1 × 1024 tokens, with
and without gradient checkpointing (there a GPU waits for the CPU that launches its kernels), and on 4 × 1024 with it
(there it does not wait); with --tiny on the base's own rows. The forms of one type take turns, a few steps each. Shown
are the median and the least time; the median divided by that of LoRA in the same type, and by that of PEFT; the memory
that a step takes above weights and optimizer; and by how much the logits at step 0 differ from the original base's.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bench_gradient as bench
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lora_ga_cli import estimate_gradients, initialize
from lora_ga_cli.lora.adapter_dtype import set_adapter_dtype
from lora_ga_cli.lora.offset import train_directly
from lora_ga_cli.paths import resolve_path

RANK, WARM, STEPS, ROUNDS = 8, 1, 4, 8
CASES = ((1, True), (1, False), (4, True))
"""Rows of 1,024 tokens in a batch, and whether activations are checkpointed."""
FORMS = {torch.float32: ("PEFT", "LoRA", "base", "adapter"), torch.bfloat16: ("PEFT", "LoRA", "adapter")}
"""By the type of the products. PEFT's own are in float32 in both, to compare the types with."""
Batch = dict[str, torch.Tensor]
Build = Callable[[], tuple[Any, list[Batch]]]


def tiny() -> tuple[torch.nn.Module, list[Batch]]:
    model = AutoModelForCausalLM.from_pretrained(str(resolve_path("bundled:tiny_base")), dtype=torch.bfloat16)
    _, batches = bench.from_recipe(["recipe=quickstart", "device=cpu"])
    return model, batches


@dataclass
class Contestant:
    """A model in one form, with what was measured of it in the present case."""

    form: str
    dtype: torch.dtype
    model: Any
    optimizer: torch.optim.Optimizer
    off: float
    seconds: list[float]
    above: float = 0.0

    @classmethod
    def prepare(cls, form: str, dtype: torch.dtype, build: Build, artifact: Any, expected: torch.Tensor) -> Contestant:
        model, batches = build()
        config = LoraConfig(r=RANK, lora_alpha=16, use_rslora=True, target_modules=artifact.target_modules)
        peft = get_peft_model(model, config)
        if form in ("base", "adapter"):
            initialize(peft, artifact, offset=form)
        elif form == "LoRA":
            train_directly(peft)
        dtype = torch.float32 if form == "PEFT" else dtype
        set_adapter_dtype(peft, dtype)
        with torch.no_grad():
            actual = peft.eval()(input_ids=batches[0]["input_ids"]).logits.float().cpu()
        off = float((actual - expected).norm() / expected.norm())
        trained = [parameter for parameter in peft.parameters() if parameter.requires_grad]
        return cls(form, dtype, peft.train(), torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0), off, [])

    def run(self, batches: list[Batch]) -> None:
        """A few steps, of which the first do not count."""
        device = next(self.model.parameters()).device
        for number in range(WARM + STEPS):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            bench.synchronize(device)
            began = time.perf_counter()
            self.model(**batches[number % len(batches)]).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            bench.synchronize(device)
            if number >= WARM:
                self.seconds.append(time.perf_counter() - began)
                if device.type == "cuda":
                    self.above = (torch.cuda.max_memory_allocated() - before) / bench.GIB


def compare(contestants: list[Contestant], batches: list[Batch], rows: int, checkpointing: bool) -> None:
    if rows > 1:
        names = ("input_ids", "labels")
        batches = [{name: torch.cat([batch[name] for batch in batches[:rows]]) for name in names}]
    for one in contestants:
        one.seconds = []
        if checkpointing:
            one.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            one.model.gradient_checkpointing_disable()
    for _ in range(ROUNDS):
        for one in contestants:
            one.run(batches)
    medians = {one.form: statistics.median(one.seconds) for one in contestants}
    for one in contestants:
        median, least = medians[one.form], min(one.seconds)
        print(
            f"| {one.form} | {str(one.dtype).removeprefix('torch.')} | {rows} | {'yes' if checkpointing else 'no'} "
            f"| {1000 * median:.0f} ms | {1000 * least:.0f} ms | {median / medians['LoRA']:.3f} "
            f"| {median / medians['PEFT']:.3f} | {one.above:.2f} GiB | {one.off:.1e} |",
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
    print("| form | products | rows | checkpointing | median | least | over LoRA | over PEFT | memory | logits off |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for dtype, forms in FORMS.items():
        contestants = [Contestant.prepare(form, dtype, build, artifact, expected) for form in forms]
        for rows, checkpointing in CASES:
            compare(contestants, batches, 1 if build is tiny else rows, checkpointing)
        del contestants
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
