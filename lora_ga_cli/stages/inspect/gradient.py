"""The gradient by layer and rank, and which ranks would follow a share of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_ga_cli import distributed
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import ArtifactDamaged, Fault, InvalidInput
from lora_ga_cli.files import cache_root
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.gradient.store import ArtifactStore
from lora_ga_cli.inspection.advice import Advice, advise, as_pattern
from lora_ga_cli.inspection.spectrum import described, shown_ranks
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.model.tf32 import tf32_products
from lora_ga_cli.model.unsupported import Unsupported
from lora_ga_cli.report.spectrum_tables import ENERGY_FILE, show_advice, show_energy
from lora_ga_cli.stages.costs import training_memory
from lora_ga_cli.stages.estimate import estimate
from lora_ga_cli.stages.inputs import Inputs, check_folders, join_processes, prepare_inputs
from lora_ga_cli.stages.inspect.options import InspectOptions
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


def artifact_of_run(run: RunFolder) -> GradientArtifact | None:
    """The gradient that a run began with; None if it had none, or if it is not in the cache any more."""
    key = run.manifest.get("gradient")
    if key is None:
        return None
    folder = ArtifactStore(cache_root(run.read_config()["cache_dir"])).path(key)
    try:
        return GradientArtifact.load(folder)
    except ArtifactDamaged:
        return None


def gradient_part(
    artifact: GradientArtifact,
    *,
    share: float,
    vectors: int = LORA_GA_VECTORS,
    inputs: Inputs | None = None,
    selected: Mapping[str, Factors] | None = None,
) -> dict[str, Any]:
    """The part ``gradient`` of an inspection, as plain data.

    Args:
        share: of ``Σ ‖G‖²``, which the advised ranks follow.
        vectors: singular directions for each rank.
        inputs: of the training whose memory is forecast; None for no forecast.
        selected: the layers to look at; None for all.
    """
    layers = selected if selected is not None else artifact.factors
    ranks = shown_ranks(artifact.capacity // vectors)
    advice = advise(layers, share, vectors, _parameters_of_experts(artifact))
    return {
        "capacity": artifact.capacity,
        "directions_per_rank": vectors,
        "layers": described(layers, vectors, ranks),
        "advice": _advice(advice, artifact, inputs if selected is None else None),
    }


def inspect_recipe(config: Config, options: InspectOptions) -> dict[str, Any]:
    """Looks into the gradient that a configuration needs, from the cache or estimated now.

    Raises:
        UserError: as `loraga estimate-grad`.
    """
    check_folders(config, ("cache_dir",))
    join_processes(config)
    with tf32_products(config.trainer.tf32):
        inputs = prepare_inputs(config, splits=("train",))
        artifact = estimate(inputs)
    folder = options.figures or ArtifactStore(cache_root(config.cache_dir)).path(artifact.key)
    found = {}
    if distributed.is_main():
        found = show_gradient(artifact, options, folder, vectors_of(config), inputs)
    distributed.wait()
    return {"key": artifact.key, "gradient": found}


def show_stored(artifact: GradientArtifact, folder: Path, options: InspectOptions) -> dict[str, Any]:
    """Looks into a stored gradient, prints what it found, and draws figures.

    Args:
        folder: of the gradient, for the figures.
    """
    return {"key": artifact.key, "gradient": show_gradient(artifact, options, options.figures or folder)}


def show_gradient(
    artifact: GradientArtifact,
    options: InspectOptions,
    folder: Path,
    vectors: int = LORA_GA_VECTORS,
    inputs: Inputs | None = None,
) -> dict[str, Any]:
    """Prints what is known of a gradient by layer and rank, and draws its figure.

    Args:
        folder: of the figures.
        vectors: singular directions for each rank.
        inputs: of the training whose memory is forecast; None for no forecast.

    Returns:
        What `gradient_part` returns for the selected layers, and ``figures``.

    Raises:
        InvalidInput: no layer is selected.
    """
    selected = {name: factors for name, factors in artifact.factors.items() if options.selects(name)}
    if not selected:
        what = "no layer of this gradient has such a name"
        raise InvalidInput([Fault("command line", what, f"one of them: {next(iter(artifact.factors))}")])
    all_of_them = len(selected) == len(artifact.factors)
    found = gradient_part(
        artifact,
        share=options.share,
        vectors=vectors,
        inputs=inputs,
        selected=None if all_of_them else selected,
    )
    file = show_energy(artifact, found, folder / ENERGY_FILE, every_layer=options.every_layer)
    show_advice(found, forecast_needs_recipe=inputs is None)
    return {**found, "figures": [] if file is None else [file]}


def _parameters_of_experts(artifact: GradientArtifact) -> dict[str, str]:
    """For each layer that is one of several experts, the name of their parameter: they have one rank together."""
    modules = artifact.target_modules
    experts = [
        name for name in artifact.factors if not any(name == item or name.endswith(f".{item}") for item in modules)
    ]
    return {name: name.rpartition(".")[0] for name in experts if name.rpartition(".")[2].isdigit()}


def _advice(advice: Advice, artifact: GradientArtifact, inputs: Inputs | None) -> dict[str, Any]:
    """The advice as plain data. ``rank`` with ``rank_pattern`` gives the ranks by layer, and ``uniform`` is the one
    rank for all; both are null where the artifact keeps too little to know."""
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
        found["note"] = _what_is_missing(advice, artifact)
        return found
    rank, pattern = as_pattern(advice.ranks)
    found["uniform"] = {
        "rank": advice.uniform,
        "parameters": advice.uniform_parameters,
        "memory_bytes": _memory(inputs, advice.uniform, {}),
    }
    entries = ", ".join(f"{name}: {value}" for name, value in pattern.items())
    override = f"rank={rank}" + (f" 'rank_pattern={{{entries}}}'" if pattern else "")
    return found | {
        "rank": rank,
        "rank_pattern": pattern,
        "memory_bytes": _memory(inputs, rank, pattern),
        "override": override,
    }


def _what_is_missing(advice: Advice, artifact: GradientArtifact) -> str:
    """Why the artifact does not tell the rank, and the option that helps."""
    smallest = min(min(shape) for shape in artifact.shapes.values())
    capacity = min(_power_of_two(4 * advice.at_least), max(min(shape) for shape in artifact.shapes.values()))
    capacity = max(capacity, min(2 * artifact.capacity, smallest))
    return (
        f"the kept {artifact.capacity} singular vectors of each layer have {advice.kept:.1%} of ‖G‖², so the rank for "
        f"{100 * advice.share:g}% is not known; it is at least {advice.at_least}. More vectors tell: "
        f"loraga inspect gradient.capacity={capacity} with the options of the recipe"
    )


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _memory(inputs: Inputs | None, rank: int, pattern: Mapping[str, int]) -> int | None:
    """The forecast of the peak memory of training with these ranks, in bytes; None if it is not known."""
    if inputs is None or "rank_pattern" not in inputs.config.shared_uses:
        return None
    config = inputs.config.model_copy(update={"rank": rank, "rank_pattern": dict(pattern)})
    try:
        return training_memory(replace(inputs, config=config)).total
    except Unsupported:
        return None
