"""What enters the adapted layers of a trained model: second moments along the directions of their changes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from lora_ga_cli.config.schema import Config
from lora_ga_cli.inspection.changes import Decomposed
from lora_ga_cli.lora.layers import lora_layers
from lora_ga_cli.report.console import step, warn
from lora_ga_cli.report.progress import counting
from lora_ga_cli.stages.inputs import Inputs, prepare_inputs
from lora_ga_cli.stages.saved_tokenizer import with_saved_tokenizer
from lora_ga_cli.stages.trained import load_trained
from lora_ga_cli.training.run_folder import RunFolder


class _AllLayersSeen(Exception):
    """Ends a forward pass before the output head."""


def second_moments(
    run: RunFolder, config: Config, changes: Mapping[str, Decomposed], rows: int
) -> tuple[dict[str, Tensor], int]:
    """``Vᵀ C V`` of every layer (see `inspection.cuts`), with the second moment C of its inputs in the trained model,
    over all tokens of some training rows.

    Args:
        rows: how many are wanted.

    Returns:
        (k, k) by layer, float64, and how many rows were used.
    """
    inputs = prepare_inputs(
        with_saved_tokenizer(config, run.path), ("train",), label_names=run.manifest.get("label_names"), to_train=False
    )
    model = load_trained(inputs, run)
    assert isinstance(model, PeftModel)
    order = list(range(len(inputs.train.rows)))
    random.Random(config.seed).shuffle(order)
    chosen = order[:rows]
    if len(chosen) < rows:
        warn(f"--rows {rows}: there are {len(chosen)} training rows, and all of them are used")
    sums = {name: torch.zeros(change.rank, change.rank, dtype=torch.float64) for name, change in changes.items()}
    seen = dict.fromkeys(changes, 0)
    with (
        without_head(model) as forward,
        _watching(model, changes, sums, seen),
        counting("inputs", "row", len(chosen)) as report,
        torch.no_grad(),
    ):
        for number, row in enumerate(chosen):  # one by one, so that there is no padding
            forward({name: item.to(inputs.device) for name, item in _batch(inputs, row).items()})
            report(number + 1)
    step("inputs", f"of {len(chosen)} training rows, {max(seen.values())} tokens in a layer")
    return {name: total / max(seen[name], 1) for name, total in sums.items()}, len(chosen)


@contextlib.contextmanager
def without_head(model: PeftModel) -> Iterator[Callable[[Mapping[str, Tensor]], None]]:
    """Gives a function that runs a model on a batch as far as its output head, and computes no logits and no loss.

    Where the head has an adapter itself, or the model has none, it runs to its end.
    """
    base: Any = model.get_base_model()
    head: nn.Module | None = base.get_output_embeddings()

    def stop(*_: Any) -> None:
        raise _AllLayersSeen

    def forward(batch: Mapping[str, Tensor]) -> None:
        with contextlib.suppress(_AllLayersSeen):
            model(**batch)

    layers: list[Any] = list(lora_layers(model).values())
    adapted = any(layer is head for layer in layers)
    hook = head.register_forward_pre_hook(stop) if head is not None and not adapted else None
    try:
        yield forward
    finally:
        if hook is not None:
            hook.remove()


def _batch(inputs: Inputs, row: int) -> dict[str, Tensor]:
    batch: dict[str, Tensor] = inputs.collator([inputs.train.rows[row]])
    return batch


@contextlib.contextmanager
def _watching(
    model: PeftModel, changes: Mapping[str, Decomposed], sums: dict[str, Tensor], seen: dict[str, int]
) -> Iterator[None]:
    """Adds up the second moments of what enters the adapted layers, inside the ``with`` block."""

    def watch(name: str, right: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
            x: Tensor = given[0].flatten(0, -2)  # (tokens, d_in)
            coordinates = x.to(right) @ right  # (tokens, k)
            sums[name] += (coordinates.T @ coordinates).double().cpu()
            seen[name] += len(x)

        return hook

    hooks = []
    for name, layer in lora_layers(model).items():
        assert isinstance(layer, nn.Module)
        device = next(layer.parameters()).device
        precise = torch.float32 if device.type == "mps" else torch.float64
        hooks.append(layer.register_forward_pre_hook(watch(name, changes[name].right.to(device, precise))))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
