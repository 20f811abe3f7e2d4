"""The gradient by layer and rank, and which ranks would follow a share of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_ga_cli import distributed
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import ArtifactDamaged
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.inspection.advice import Advice, advise
from lora_ga_cli.inspection.spectrum import described, shown_ranks
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.model.tf32 import tf32_products
from lora_ga_cli.model.unsupported import Unsupported
from lora_ga_cli.report.spectrum_tables import ENERGY_FILE, show_advice, show_energy
from lora_ga_cli.stages.costs import training_memory
from lora_ga_cli.stages.estimate import estimate, gradients_of
from lora_ga_cli.stages.inputs import Inputs, check_folders, join_processes, prepare_inputs
from lora_ga_cli.stages.inspect.again import CAPACITY, with_capacity, words_again
from lora_ga_cli.stages.inspect.options import InspectOptions
from lora_ga_cli.stages.inspect.paste import Only, as_options, only_these, parameters_of_experts
from lora_ga_cli.training.run_folder import RunFolder

LORA_GA_VECTORS = 2
"""Singular directions for each rank, of which LoRA-GA gives half to A and half to B."""


def vectors_of(config: Config | None) -> int:
    """Singular directions of the gradient for each rank: as many as the configuration's method begins with; one for
    methods that begin without any, whose change still is a matrix of this rank. Without a configuration, LoRA-GA's."""
    if config is None:
        return LORA_GA_VECTORS
    method = method_of(config)
    return method.gradient_vectors if method.trains_pairs and method.needs_gradient else 1


ESTIMATE_AGAIN = "loraga estimate-grad with the run's options estimates it again"
"""What makes the gradient of a run anew."""


@dataclass(frozen=True)
class GradientOfRun:
    """The gradient that a run began with, as far as the cache has it.

    Args:
        artifact: None if the run began without one, or if the cache does not have it.
        absent: why there is none, with the next step; empty if there is one.
        damage: what is wrong with the one in the cache, with the next step; empty if nothing is.
    """

    artifact: GradientArtifact | None
    absent: str = ""
    damage: str = ""


def gradient_of_run(run: RunFolder) -> GradientOfRun:
    """Reads the gradient that a run began with from the cache."""
    key = run.manifest.get("gradient")
    if key is None:
        return GradientOfRun(None, "this run began without one")
    damage = ""
    for folder in gradients_of(run.read_config()["cache_dir"]).places(key):
        try:
            return GradientOfRun(GradientArtifact.load(folder), damage=damage)
        except ArtifactDamaged as error:
            damage = f"the stored gradient is damaged: {error}; {ESTIMATE_AGAIN}"
    why = f"{key} in the cache is damaged" if damage else f"{key} is not in the cache any more"
    return GradientOfRun(None, f"{why}: {ESTIMATE_AGAIN}", damage)


def gradient_part(
    artifact: GradientArtifact,
    *,
    share: float,
    vectors: int = LORA_GA_VECTORS,
    inputs: Inputs | None = None,
    config: Config | None = None,
    selected: Mapping[str, Factors] | None = None,
    again: Sequence[str] = (),
) -> dict[str, Any]:
    """The part ``gradient`` of an inspection, as plain data.

    Args:
        share: of ``Σ ‖G‖²``, which the advised ranks follow.
        vectors: singular directions for each rank.
        inputs: of the training whose memory is forecast; None for no forecast.
        config: to which the advised options are added, as far as it is known.
        selected: the layers to look at; None for all.
        again: the words of a command that estimates this gradient, see `again.with_capacity`; empty if none is known.
    """
    layers = selected if selected is not None else artifact.factors
    ranks = shown_ranks(artifact.capacity // vectors)
    experts = parameters_of_experts(artifact)
    advice = advise(layers, share, vectors, experts)
    found: dict[str, Any] = {
        "share": advice.share,
        "kept": advice.kept,
        "at_least": advice.at_least,
        "uniform": None,
        "rank": None,
        "rank_pattern": {},
        "parameters": advice.parameters,
        "memory_bytes": None,
        "override": None,
        "note": "",
    }
    if advice.uniform is None or advice.ranks is None:
        found["note"] = _what_is_missing(advice, artifact, again)
    else:
        only = None if selected is None else only_these(selected, artifact.factors, experts)
        before = {} if config is None else config.rank_pattern
        largest = {name: max(min(factors.shape) // vectors, 1) for name, factors in layers.items()}
        found |= as_options(advice.uniform, advice.ranks, before, only, largest)
        found["uniform"] |= {
            "parameters": advice.uniform_parameters,
            "memory_bytes": _memory(inputs, advice.uniform, {}, only),
        }
        found["memory_bytes"] = _memory(inputs, found["rank"], found["rank_pattern"], only)
    return {
        "capacity": artifact.capacity,
        "directions_per_rank": vectors,
        "layers": described(layers, vectors, ranks),
        "advice": found,
    }


def inspect_recipe(config: Config, options: InspectOptions) -> dict[str, Any]:
    """Looks into the gradient that a configuration needs, from the cache or estimated now.

    Raises:
        UserError: as `loraga estimate-grad`.
        InvalidInput: no layer is selected.
    """
    check_folders(config, ("cache_dir",))
    join_processes(config)
    with tf32_products(config.trainer.tf32):
        inputs = prepare_inputs(config, splits=("train",))
        targets = method_of(config).targets(inputs.empty_model())
        options.check_selection([layer.name for item in targets.values() for layer in item.layers], "the model")
        artifact = estimate(inputs)
    found: dict[str, Any] = {}
    if distributed.is_main():
        folder = options.figures_for(artifact.key)
        part, file = show_gradient(artifact, options, folder, inputs=inputs, config=config, again=options.command)
        found = {"gradient": part, "figures": [] if file is None else [file]}
    distributed.wait()
    return {"key": artifact.key, **found}


def show_stored(folder: Path, options: InspectOptions) -> dict[str, Any]:
    """Looks into a stored gradient, prints what it found, and draws figures.

    Raises:
        ArtifactDamaged
        InvalidInput: no layer is selected.
    """
    artifact = GradientArtifact.load(folder)
    again = words_again(artifact.info.get("provenance"))
    part, file = show_gradient(artifact, options, options.figures_for(folder.resolve().name), again=again)
    return {"key": artifact.key, "gradient": part, "figures": [] if file is None else [file]}


def show_gradient(
    artifact: GradientArtifact,
    options: InspectOptions,
    folder: Path,
    *,
    inputs: Inputs | None = None,
    config: Config | None = None,
    again: Sequence[str] = (),
) -> tuple[dict[str, Any], Path | None]:
    """Prints what a gradient shows, and draws it into a folder; see `gradient_part`.

    Returns:
        What `gradient_part` returns for the selected layers, and the file of the figure; None if it could not be
        written.

    Raises:
        InvalidInput: no layer is selected.
    """
    options.check_selection(artifact.factors, "the gradient")
    selected = {name: artifact.factors[name] for name in options.selected(artifact.factors)}
    found = gradient_part(
        artifact,
        share=options.share,
        vectors=vectors_of(config),
        inputs=inputs,
        config=config,
        selected=None if len(selected) == len(artifact.factors) else selected,
        again=again,
    )
    file = show_energy(
        artifact,
        found,
        folder / ENERGY_FILE,
        every_layer=options.every_layer,
        required=options.figures is not None,
    )
    show_advice(found, forecast_needs_recipe=inputs is None)
    return found, file


def _what_is_missing(advice: Advice, artifact: GradientArtifact, again: Sequence[str]) -> str:
    """Why the artifact does not tell the rank, and the command that helps."""
    smallest = min(min(shape) for shape in artifact.shapes.values())
    capacity = min(_power_of_two(4 * advice.at_least), max(min(shape) for shape in artifact.shapes.values()))
    capacity = max(capacity, min(2 * artifact.capacity, smallest))
    command = (
        f"more vectors tell: {with_capacity(again, capacity)}"
        if again
        else f"the command that made this gradient tells it with {CAPACITY}={capacity}, as loraga inspect in place of "
        "the name of the command"
    )
    return (
        f"the kept {artifact.capacity} singular vectors of each layer have {advice.kept:.1%} of ‖G‖², so the rank for "
        f"{100 * advice.share:g}% is not known; it is at least {advice.at_least}; {command}"
    )


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _memory(inputs: Inputs | None, rank: int, pattern: Mapping[str, int], only: Only | None) -> int | None:
    """The forecast of the peak memory of training with these ranks, in bytes; None if it is not known."""
    if inputs is None or "rank_pattern" not in inputs.config.shared_uses or (only is not None and only.obstacle):
        return None
    changes: dict[str, Any] = {"rank": rank, "rank_pattern": dict(pattern)}
    if only is not None:
        changes |= {"target_modules": only.modules, "target_parameters": only.parameters or []}
    try:
        return training_memory(replace(inputs, config=inputs.config.model_copy(update=changes))).total
    except Unsupported:
        return None
