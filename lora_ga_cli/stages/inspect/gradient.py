"""The gradient by layer and rank, and which ranks would follow a share of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import ArtifactDamaged
from lora_ga_cli.files import cache_root
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.store import ArtifactStore
from lora_ga_cli.inspection.spectrum import described, shown_ranks
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.report.console import step
from lora_ga_cli.report.tables import gradient_table
from lora_ga_cli.stages.estimate import estimate
from lora_ga_cli.stages.inputs import check_folders, join_processes, prepare_inputs
from lora_ga_cli.stages.inspect.options import InspectOptions
from lora_ga_cli.training.run_folder import RunFolder

LORA_GA_VECTORS = 2
"""Singular directions that a rank of LoRA-GA follows in its first step."""


def vectors_of(config: Config | None) -> int:
    """Singular directions of the gradient for each rank: of the configuration's method, else of LoRA-GA."""
    return LORA_GA_VECTORS if config is None else method_of(config).gradient_vectors


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


def gradient_part(artifact: GradientArtifact, *, share: float, vectors: int = LORA_GA_VECTORS) -> dict[str, Any]:
    """The part ``gradient`` of an inspection, as plain data.

    Args:
        share: of ``‖G‖²``, which the advised ranks follow.
        vectors: singular directions for each rank.
    """
    ranks = shown_ranks(artifact.capacity // vectors)
    return {
        "capacity": artifact.capacity,
        "directions_per_rank": vectors,
        "layers": described(artifact.factors, vectors, ranks),
        "advice": None,
    }


def inspect_recipe(config: Config, options: InspectOptions) -> dict[str, Any]:
    """Looks into the gradient that a configuration needs, from the cache or estimated now.

    Raises:
        UserError: as `loraga estimate-grad`.
    """
    check_folders(config, ("cache_dir",))
    join_processes(config)
    artifact = estimate(prepare_inputs(config, splits=("train",)))
    folder = options.figures or ArtifactStore(cache_root(config.cache_dir)).path(artifact.key)
    found = gradient_part(artifact, share=options.share, vectors=vectors_of(config))
    show_gradient(artifact, found, options, folder)
    return {"key": artifact.key, "gradient": found}


def show_stored(artifact: GradientArtifact, folder: Path, options: InspectOptions) -> dict[str, Any]:
    """Looks into a stored gradient, prints what it found, and draws figures.

    Args:
        folder: of the gradient, for the figures.
    """
    found = gradient_part(artifact, share=options.share)
    show_gradient(artifact, found, options, options.figures or folder)
    return {"key": artifact.key, "gradient": found}


def show_gradient(artifact: GradientArtifact, found: dict[str, Any], options: InspectOptions, folder: Path) -> None:
    """Prints the part ``gradient`` of an inspection, and draws its figures.

    Args:
        folder: of the figures.
    """
    step("gradient", f"{artifact.key}: {len(artifact.factors)} layers, {artifact.capacity} singular vectors of each")
    gradient_table(artifact, artifact.max_rank)
