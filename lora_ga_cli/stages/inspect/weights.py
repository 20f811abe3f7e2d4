"""The base's weights, for what is measured against them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lora_ga_cli.config.schema import Config, ModelConfig
from lora_ga_cli.errors import RunError
from lora_ga_cli.inspection.changes import decompose
from lora_ga_cli.inspection.layer import against_weight
from lora_ga_cli.lora.description import described
from lora_ga_cli.lora.saved import SavedAdapter, target_in
from lora_ga_cli.model.loading import empty_model, guess_task, load_model, pick_device
from lora_ga_cli.model.quantization import dense
from lora_ga_cli.report.console import duration, step
from lora_ga_cli.report.progress import counting
from lora_ga_cli.stages.inputs import prepare_inputs
from lora_ga_cli.stages.trained import check_base, config_of
from lora_ga_cli.training.run_folder import RunFolder

PILOT = 384
"""Side of the matrix whose decomposition tells how long those of the base take."""
SHORT = 10.0
"""Seconds up to which nothing is said about how long it takes."""


def base_of_adapter(folder: Path, base: str | None) -> ModelConfig:
    """The base of an adapter in a folder: the one that its description names, or another place of it.

    Raises:
        RunError: it names none.
        ModelError: there is none.
    """
    path = base or described(folder).get("base_model_name_or_path")
    if not path:
        raise RunError(f"{folder}: the description of this adapter names no base model: give it with --base")
    return ModelConfig(path=path, task=guess_task(path))


def empty_base(config: Callable[[], ModelConfig]) -> Callable[[], PreTrainedModel]:
    """Makes the base without weights, when it is asked for."""
    return lambda: empty_model(config())


def base_of_run(run: RunFolder, base: str | None) -> PreTrainedModel:
    """The base that a run was trained on, with its weights.

    Raises:
        RunError: it is not where it was, or it is another one.
        ModelError
    """
    config: Config = config_of(run, (), base)
    inputs = prepare_inputs(config, splits=(), label_names=run.manifest.get("label_names"), to_train=False)
    model = inputs.load_model()
    check_base(model, inputs.config, run)
    return model


def loaded_base(config: ModelConfig) -> PreTrainedModel:
    """A base with its weights.

    Raises:
        ModelError
    """
    return load_model(config, pick_device("auto"))


def measures_of_base(
    saved: SavedAdapter, model: PreTrainedModel, selected: Collection[str]
) -> dict[str, dict[str, Any]]:
    """What an adapter's changes are against the base's weights, by layer; see `against_weight`.

    One weight at a time is taken to float64, on the model's device. A line says how long it takes, where that is long.

    Args:
        selected: full names of the layers that are measured.

    Raises:
        RunError: the base is not that of the adapter.
    """
    chosen = [
        (name, change, target, layer.magnitude)
        for layer in saved.layers
        for (name, change), target in zip(layer.named.items(), target_in(model, layer), strict=True)
        if name in selected
    ]
    _say_how_long([target.shape for _, _, target, _ in chosen], _device_of(model))
    found = {}
    with counting("base", "layer", len(chosen)) as report:
        for number, (name, change, target, magnitude) in enumerate(chosen):
            weight = dense(target).to(_device_of(model)).double()
            found[name] = against_weight(decompose(change), weight, magnitude)
            report(number + 1)
    return found


def _device_of(model: PreTrainedModel) -> torch.device:
    """Where weights are decomposed: Apple's GPUs have no float64."""
    device = torch.device(model.device)
    return torch.device("cpu") if device.type == "mps" else device


def _say_how_long(shapes: Sequence[tuple[int, int]], device: torch.device) -> None:
    """A decomposition of each weight, whose time grows with the cube of the shorter side, and what is beside it."""
    cubes = sum(min(shape) ** 3 * (1.3 + max(shape) / min(shape) / 8) for shape in shapes)
    if cubes < 10 * PILOT**3:
        return
    matrix: Tensor = torch.randn(PILOT, PILOT, dtype=torch.float64, device=device)
    matrix = matrix @ matrix.T
    float(torch.linalg.eigvalsh(matrix)[0])  # what is loaded at first is not timed
    began = time.perf_counter()
    float(torch.linalg.eigh(matrix)[0][0])
    seconds = (time.perf_counter() - began) * cubes / PILOT**3
    if seconds > SHORT:
        where = f"on {device.type}" if device.type != "cpu" else "on the CPU"
        fewer = "; --layers and --modules take fewer" if len(shapes) > 1 else ""
        step("base", f"{len(shapes)} weights are decomposed {where}, about {duration(seconds)}{fewer}")
