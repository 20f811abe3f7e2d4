"""Measures estimators of the gradient side by side, in one run: time, memory, artifact, first-step alignment.

    python scripts/bench_gradient.py minilm --model FOLDER --rows cola/train.tsv.gz
    python scripts/bench_gradient.py tiny
    python scripts/bench_gradient.py 7b
    python scripts/bench_gradient.py nf4

minilm: a CPU, MiniLM-L6 with a new head on CoLA, 8 × 8 rows. tiny: a CPU, the bundled base on its rows, 8 × 8 rows.
7b: a GPU, Llama-2-7B's shapes with random bfloat16 weights, 8 × 1 × 1024 random tokens. nf4: the same, quantized.

Time is the median of three runs after a first one, with the factors that an initialization needs. Memory is the
accelerator's peak above what the weights take. Alignment is that of the initialization of rank 8, by layer (mean,
worst), with the exact gradient: the cosine of the first step, over the best of its rank (1 is optimal). ``floor``:
forward and backward pass without any weight's gradient. ``autograd``: with all of them, added up in the weights' type,
and no factors.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lora_ga_cli.config.compose import compose
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.estimate import estimate_gradients, prepare_model
from lora_ga_cli.gradient.estimator import Estimator
from lora_ga_cli.gradient.estimators.exact import ExactEstimator
from lora_ga_cli.gradient.estimators.sketch import SketchEstimator
from lora_ga_cli.gradient.factors import Factors, truncated_svd
from lora_ga_cli.lora.initialization import first_step_alignment, initial_factors
from lora_ga_cli.model.targets import find_targets
from lora_ga_cli.stages.estimate import sample
from lora_ga_cli.stages.inputs import prepare_inputs

RANK, CAPACITY, RUNS = 8, 32, 3
GIB = 2**30


@dataclass
class Case:
    """A model, its micro-batches, and the exact gradient (d_out, d_in) of each target, where it can be had."""

    model: nn.Module
    batches: list[dict[str, Tensor]]
    grads: dict[str, Tensor]
    best: dict[str, float]
    """``‖G_2r‖ / ‖G‖`` by target."""
    methods: dict[str, Callable[[Case], Any]]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


class Remembering(ExactEstimator):
    """The exact estimator, which also keeps the mean gradients."""

    def factors(self, total: float) -> Iterator[tuple[str, Factors]]:
        self.grads = dict(self.means(total))
        return ((name, truncated_svd(grad, 2 * RANK)) for name, grad in self.grads.items())


def estimated(estimator: Callable[[], Estimator]) -> Callable[[Case], GradientArtifact]:
    return lambda case: estimate_gradients(case.model, case.batches, capacity=CAPACITY, estimator=estimator())


def floor(case: Case) -> None:
    first = case.model.get_input_embeddings()
    with prepare_model(case.model, dropout=False):
        handle = first.register_forward_hook(lambda _, __, output: output.requires_grad_(True))
        for batch in case.batches:
            case.model(**batch).loss.backward()
        handle.remove()


def autograd(case: Case) -> None:
    targets = find_targets(case.model)
    with prepare_model(case.model, dropout=False):
        for target in targets.values():
            target.weight.requires_grad_(True)
        for batch in case.batches:
            case.model(**batch).loss.backward()


def of_peft(case: Case) -> dict[str, tuple[Tensor, Tensor]] | None:
    """PEFT's estimation; with its initial factors, where their full decompositions end within minutes."""
    from peft import LoraConfig, LoraGAConfig, get_peft_model
    from peft.tuners.lora.loraga import preprocess_loraga

    from lora_ga_cli.lora.layers import lora_layers

    small = case.device.type == "cpu"
    model = copy.deepcopy(case.model) if small else case.model
    names = list(find_targets(model))
    config = LoraConfig(
        r=RANK, lora_alpha=16, target_modules=names, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()
    )

    def train_step() -> None:
        for batch in case.batches:
            (model(**batch).loss / len(case.batches)).backward()

    model.eval().requires_grad_(True)
    began = time.perf_counter()
    preprocess_loraga(model, config, train_step)
    synchronize(case.device)
    of_peft.seconds = time.perf_counter() - began  # type: ignore[attr-defined]
    if not small:
        for module in model.modules():
            vars(module).pop("_peft_loraga_grad", None)
        model.zero_grad(set_to_none=True)
        return None
    return {
        name: (layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach())
        for name, layer in lora_layers(get_peft_model(model, config)).items()
    }


def alignments(case: Case, result: Any) -> str:
    if result is None or not case.grads:
        return "–"
    if isinstance(result, GradientArtifact):
        result = {name: initial_factors(factors, RANK) for name, factors in result.factors.items()}
    values = [first_step_alignment(grad, *result[name], best=case.best[name]) for name, grad in case.grads.items()]
    return f"{statistics.mean(values):.4f} / {min(values):.4f}"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(case: Case, method: Callable[[Case], Any]) -> tuple[float, float, Any]:
    """Seconds (median), peak memory in bytes above the weights, and the last result."""
    seconds, result, peak, cuda = [], None, 0.0, case.device.type == "cuda"
    for number in range(RUNS + 1):
        result = None
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        synchronize(case.device)
        began = time.perf_counter()
        result = method(case)
        synchronize(case.device)
        if number:
            seconds.append(time.perf_counter() - began)
        if cuda:
            peak = torch.cuda.max_memory_allocated() - before
    return statistics.median(seconds), peak, result


def artifact_size(result: Any) -> str:
    if not isinstance(result, GradientArtifact):
        return "–"
    with tempfile.TemporaryDirectory() as folder:
        result.save(Path(folder) / "artifact")
        size = sum(file.stat().st_size for file in (Path(folder) / "artifact").iterdir())
    return f"{size / GIB:.3f} GiB" if size > GIB / 100 else f"{size / 2**20:.2f} MiB"


def report(title: str, case: Case) -> None:
    parameters = sum(target.shape[0] * target.shape[1] for target in find_targets(case.model).values())
    memory = (
        torch.cuda.memory_allocated() - sum(grad.nbytes for grad in case.grads.values())
        if case.device.type == "cuda"
        else 0
    )
    device = torch.cuda.get_device_name() if case.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    layers = len(find_targets(case.model))
    print(f"\n{title}: {layers} layers, {parameters:,} weights; {device}; torch {torch.__version__}")
    if memory:
        print(f"the weights take {memory / GIB:.2f} GiB")
    print("| | time | over the floor | above the weights | artifact | alignment at rank 8, mean / worst |")
    print("|---|---|---|---|---|---|")
    base = 0.0
    for name, method in case.methods.items():
        seconds, peak, result = measure(case, method)
        if name.startswith("floor"):
            base = seconds
        if method is of_peft:
            seconds = of_peft.seconds  # type: ignore[attr-defined]
        memory = f"{peak / GIB:.2f} GiB" if case.device.type == "cuda" else "–"
        print(
            f"| {name} | {seconds:.2f} s | × {seconds / base:.2f} | {memory} | {artifact_size(result)} | "
            f"{alignments(case, result)} |",
            flush=True,
        )


def from_recipe(overrides: list[str], micro_batch: int = 8) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    inputs = prepare_inputs(compose([*overrides, "gradient.samples=64"]))
    rows, model = sample(inputs), inputs.load_model()
    parts = [rows[begin : begin + micro_batch] for begin in range(0, len(rows), micro_batch)]
    return model, [inputs.collator(part) for part in parts]


def cola(model: str, rows: str) -> list[str]:
    """What composes MiniLM with a new head on CoLA, from a folder and a file."""
    overrides = ["model=classifier", f"model.path={model}", "dataset=classification", "device=cpu"]
    overrides += [f"dataset.train_file={rows}", "dataset.column_names=[source,label,mark,sentence]"]
    return [*overrides, "dataset.text='{sentence}'", "dataset.max_length=128"]


def small(overrides: list[str]) -> Case:
    torch.set_num_threads(2)
    model, batches = from_recipe(overrides)
    methods: dict[str, Callable[[Case], Any]] = {
        "floor": floor,
        "autograd": autograd,
        "PEFT (without its decompositions)": of_peft,
        "exact": estimated(ExactEstimator),
        "sketch": estimated(SketchEstimator),
        "sketch, 2 passes": estimated(lambda: SketchEstimator(passes=2)),
        "sketch, 3 passes": estimated(lambda: SketchEstimator(passes=3)),
    }
    return Case(model, batches, *reference(model, batches), methods)


def llama_7b() -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """Llama-2-7B's shapes with random weights, and 8 batches of one row of 1,024 random tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig())
        rows = [torch.randint(0, 32000, (1, 1024)) for _ in range(8)]
    torch.set_default_dtype(torch.float32)
    return model, [{"input_ids": row, "labels": row} for row in rows]


def checkpointed(method: Callable[[Case], Any], reentrant: bool = True) -> Callable[[Case], Any]:
    def inner(case: Case) -> Any:
        case.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        try:
            return method(case)
        finally:
            case.model.gradient_checkpointing_disable()

    return inner


def reference(model: nn.Module, batches: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Exact gradients, and the share of their norm that rank 2·RANK can hold."""
    remember = Remembering()
    began = time.perf_counter()
    artifact = estimate_gradients(model, batches, estimator=remember, capacity=2 * RANK)
    print(f"exact gradients with their decompositions, once: {time.perf_counter() - began:.1f} s", flush=True)
    best = {name: factors.energy(2 * RANK) ** 0.5 for name, factors in artifact.factors.items()}
    return remember.grads, best


def large() -> Case:
    model, batches = llama_7b()
    sketch, twice = estimated(SketchEstimator), estimated(lambda: SketchEstimator(passes=2))
    methods = {
        "floor": floor,
        "autograd": autograd,
        "PEFT (without its decompositions)": of_peft,
        "sketch": sketch,
        "sketch, 2 passes": twice,
        "floor, checkpointed": checkpointed(floor),
        "sketch, checkpointed": checkpointed(sketch),
        "sketch, checkpointed, not reentrant": checkpointed(sketch, reentrant=False),
    }
    return Case(model, batches, *reference(model, batches), methods)


def quantize(model: nn.Module) -> None:
    """Replaces every target by its NF4 form, as transformers loads it."""
    import bitsandbytes as bnb

    for name, target in find_targets(model).items():
        new = bnb.nn.Linear4bit(*reversed(target.shape), bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
        data = target.weight.data
        new.weight = bnb.nn.Params4bit(data, requires_grad=False, quant_type="nf4").to(data.device)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
    torch.cuda.empty_cache()


def nf4() -> Case:
    model, batches = llama_7b()
    quantize(model)
    methods = {
        "floor": floor,
        "sketch": estimated(SketchEstimator),
        "floor, checkpointed": checkpointed(floor),
        "sketch, checkpointed": checkpointed(estimated(SketchEstimator)),
    }
    return Case(model, batches, {}, {}, methods)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=["minilm", "tiny", "7b", "nf4"])
    parser.add_argument("--model", help="folder of MiniLM")
    parser.add_argument("--rows", help="CoLA's train.tsv")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    if options.case == "tiny":
        report("bundled Llama, quickstart, 8 × 8 rows", small(["recipe=quickstart", "device=cpu"]))
    elif options.case == "minilm":
        report("MiniLM, CoLA, 8 × 8 rows", small(cola(options.model, options.rows)))
    elif options.case == "7b":
        report("Llama-2-7B's shapes, bfloat16, 8 × 1 × 1024 tokens", large())
    else:
        report("Llama-2-7B's shapes, NF4, 8 × 1 × 1024 tokens", nf4())


if __name__ == "__main__":
    main()
