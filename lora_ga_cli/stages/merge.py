"""Stage 5: base and adapter as one plain model folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import EqualityError, RunError
from lora_ga_cli.files import atomic_folder, file_sizes
from lora_ga_cli.methods.forms import FORMS
from lora_ga_cli.model.loading import AUTO_CLASS
from lora_ga_cli.model.probe import check_equal, probe_logits
from lora_ga_cli.report.console import size, step, warn
from lora_ga_cli.stages.inputs import Inputs, prepare_inputs
from lora_ga_cli.stages.trained import load_trained, require_finished
from lora_ga_cli.training.run_folder import RunFolder


@dataclass(frozen=True)
class MergeOptions:
    """How a merged model is written.

    Args:
        output: folder to write; ``RUN/merged`` when None.
        dtype: type of the written weights; the base's when None.
        max_shard_size: of one safetensors file, such as ``5GB``.
        base: another place of the same base model (it must have the same weights).
    """

    output: Path | None = None
    dtype: str | None = None
    max_shard_size: str = "5GB"
    base: str | None = None


def merge(run: RunFolder, config: Config, options: MergeOptions) -> Path:
    """Merges a finished run's adapter into its base; returns the folder.

    Raises:
        RunError: the run has not finished, the folder is taken, or the base is another than it was trained on.
        EqualityError: a merged weight is not finite, or the merged model computes something else.
    """
    require_finished(run)
    form = FORMS[config.method.adapter]
    if not form.merges:
        raise RunError(
            f"{run.path} cannot be merged: it holds {form.noun}, and no change of the base's weights; "
            f"{form.loads_in} loads it on the base"
        )
    folder = options.output or run.path / "merged"
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} exists and is not empty: give another --output, or remove it")
    if options.base is not None:
        config = config.model_copy(
            update={"model": config.model.model_copy(update={"path": options.base, "revision": None})}
        )
    quantization = config.model.quantization
    if quantization is not None:
        # merged into quantised weights, most of what was trained would be rounded away
        plain = config.model.model_copy(update={"quantization": None, "double_quantization": False})
        config = config.model_copy(update={"model": plain})
    inputs = prepare_inputs(config, splits=("validation",) if config.dataset.has_validation else ("train",))
    model = load_trained(inputs, run)
    expected = probe_logits(model, inputs.probe_batch())
    dtype = getattr(torch, options.dtype or config.model.dtype)
    if _coarseness(dtype) < _coarseness(getattr(torch, config.model.dtype)):
        model = model.to(dtype)  # merged in the base's type, small updates would be rounded away before the cast
    if isinstance(model, PeftModel):
        try:
            model = model.merge_and_unload(safe_merge=True)
        except ValueError as error:  # PEFT's safe_merge found a weight that is not finite
            raise EqualityError(f"merging {run.path}: {error}") from error
    model = model.to(dtype)
    _check_finite(model.state_dict())
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary, max_shard_size=options.max_shard_size)
        inputs.tokenizer.save_pretrained(temporary)
        merged = _reload(temporary, inputs, dtype)
        coarsest = max(dtype, getattr(torch, config.model.dtype), key=_coarseness)
        difference = check_equal(
            probe_logits(merged, inputs.probe_batch()),
            expected,
            coarsest,
            "the merged model and the adapter on its base",
        )
    if quantization is not None:
        warn(
            f"trained on the base in {quantization}, merged into the base in {config.model.dtype}, which is not quite "
            "the same: score the merged model, or serve the adapter on the quantised base"
        )
    total = sum(file_sizes(folder).values())
    step(
        "merged",
        f"{folder} ({size(total)}, {str(dtype).removeprefix('torch.')}); "
        f"logits equal the adapter's to {difference:.0e}",
    )
    return folder


def _reload(folder: Path, inputs: Inputs, dtype: torch.dtype) -> transformers.PreTrainedModel:
    auto = AUTO_CLASS[inputs.config.model.task]
    options = inputs.config.model
    model: Any = auto.from_pretrained(
        folder, dtype=dtype, attn_implementation=options.attention, trust_remote_code=options.trust_remote_code
    )
    return model.to(inputs.device).eval()


def _check_finite(weights: Mapping[str, Any]) -> None:
    for name, weight in weights.items():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            raise EqualityError(f"{name} is not finite after merging; with --dtype float16 large weights overflow")


def _coarseness(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps
