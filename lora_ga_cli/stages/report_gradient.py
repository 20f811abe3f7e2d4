"""What a report shows of the gradient that a run began with, and of its inspection."""

from __future__ import annotations

from typing import Any

from lora_ga_cli.config.schema import Config
from lora_ga_cli.inspection.spectrum import described, shown_ranks
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.stages.inspect.gradient import artifact_of_run
from lora_ga_cli.training.run_folder import RunFolder

EVERY_RANK = 32
"""Up to this rank, every rank can be chosen in a report, and powers of two above."""


def gradient_of(run: RunFolder, config: Config, inspection: dict[str, Any] | None) -> tuple[dict[str, Any] | None, str]:
    """`RunRecord.gradient`, or why it is not there; nothing at all for a run that began without a gradient.

    Args:
        inspection: of the run; what it has of the gradient is taken where the gradient itself is not in the cache.
    """
    key = run.manifest.get("gradient")
    if key is None:
        return None, ""
    method = method_of(config)
    common = {"key": key, "rank": method.largest_rank, "varies": bool(config.rank_pattern)}
    artifact = artifact_of_run(run)
    if artifact is not None:
        vectors = method.gradient_vectors
        largest = artifact.capacity // vectors
        ranks = sorted({*range(1, min(EVERY_RANK, largest) + 1), *shown_ranks(largest), min(config.rank, largest)})
        layers = described(artifact.factors, vectors, ranks)
        kept = {"capacity": artifact.capacity, "directions_per_rank": vectors, "rows": artifact.info.get("rows")}
        return {**common, **kept, "layers": layers}, ""
    if inspection is not None and inspection["gradient"] is not None:
        return {**common, **inspection["gradient"], "rows": None}, ""
    command = "loraga estimate-grad with the options of the run"
    return None, f"The gradient {key} is not in the cache any more; {command} estimates it again."
