"""What a hub reads from the beginning of a model card: the base, data sets, task, library, tags and results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from lora_ga_cli.config.schema import Config
from lora_ga_cli.methods.base import AdapterOutput

PIPELINES = {
    "causal_lm": "text-generation",
    "seq2seq_lm": "text2text-generation",
    "sequence_classification": "text-classification",
}
"""The hub's name of a task, by ``model.task``."""
IN_HUB_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/\w+/?$")
"""The end of a path in the hub's own cache, which tells the name of the model."""


def hub_base(manifest: Mapping[str, Any]) -> str | None:
    """The base's name on the hub; None for a base in a local folder that tells none."""
    if "hub" in manifest["base_identity"]:
        return str(manifest["base_identity"]["hub"])
    found = IN_HUB_CACHE.search(str(manifest["base"]))
    return "/".join(found.groups()) if found else None


def shown_base(manifest: Mapping[str, Any]) -> str:
    """The base's name for a reader. A path of the machine that trained is of no use to others."""
    return hub_base(manifest) or f"PATH/TO/{Path(manifest['base']).name}"


def front_matter(
    name: str,
    config: Config,
    manifest: Mapping[str, Any],
    output: AdapterOutput,
    *,
    base: str | None,
    merged: bool = False,
    results: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The YAML between two lines of dashes.

    Args:
        base: the base's name on the hub, if it has one.
        merged: it is the card of base and adapter in one model.
        results: contents of result files of evaluations.
    """
    adapter = output.is_adapter and not merged
    library = output.loads_in.lower() if adapter else "transformers"
    tags = ["loraga", config.method.name.replace("_", "-"), *(["lora"] if output.vllm else [])]
    pipeline = PIPELINES[config.model.task]
    data = ModelCardData(
        base_model=base,
        base_model_relation=("adapter" if adapter else "finetune") if base else None,
        datasets=hub_datasets(manifest) or None,
        library_name=library,
        pipeline_tag=pipeline,
        tags=tags,
        model_name=name if results else None,
        eval_results=[item for result in results for item in _entries(result, pipeline, manifest)] or None,
    )
    text = yaml.safe_dump(data.to_dict(), sort_keys=False, allow_unicode=True)
    return f"---\n{text}---"


def hub_datasets(manifest: Mapping[str, Any]) -> list[str]:
    """The names on the hub of the data sets that a run was trained on, as the run found them when it began."""
    return [name for name in manifest.get("hub_datasets", []) if _is_repository(name)]


def _is_repository(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def results_table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The values of evaluations as a table in Markdown."""
    if not results:
        return []
    lines = ["## Evaluation", "", "| scored on | rows | metric | value |", "|---|---|---|---|"]
    for result in results:
        for metric, value in result["values"].items():
            shown = f"{value:.2%}" if metric in result["shares"] else f"{value:.4f}"
            lines.append(f"| {_scored_on(result)} | {result['rows']} | {metric} | {shown} |")
    return [*lines, ""]


def _scored_on(result: Mapping[str, Any]) -> str:
    """The rows of an evaluation: the names of the files that were given, without their folders, or the split."""
    files = result["options"].get("file") if result["options"]["task"] == "rows" else None
    named = [files] if isinstance(files, str) else files or []
    return ", ".join(Path(file).name for file in named) or str(result["split"])


def _entries(result: Mapping[str, Any], pipeline: str, manifest: Mapping[str, Any]) -> list[EvalResult]:
    of_rows = result["options"]["task"] == "rows"
    datasets = [] if result["options"].get("file") else hub_datasets(manifest)
    kind = (datasets[0] if datasets else "custom") if of_rows else str(result["options"]["task"])
    return [
        EvalResult(
            task_type=pipeline,
            dataset_type=kind,
            dataset_name=_scored_on(result),
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in result["values"].items()
    ]
