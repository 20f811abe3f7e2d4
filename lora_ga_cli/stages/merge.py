"""Stage 5: writes base and adapter as one plain model folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from lora_ga_cli.config.schema import Config
from lora_ga_cli.digests import check_files, written_in
from lora_ga_cli.errors import EqualityError, RunError
from lora_ga_cli.files import atomic_folder, file_sizes
from lora_ga_cli.json_files import read_json, write_json
from lora_ga_cli.lora.links import merge_layers
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.model.loading import AUTO_CLASS
from lora_ga_cli.model.probe import check_equal, probe_logits
from lora_ga_cli.model.stored import STORED
from lora_ga_cli.model.written import MERGED_MARK
from lora_ga_cli.report.console import size, step, warn
from lora_ga_cli.stages.inputs import Inputs, prepare_inputs
from lora_ga_cli.stages.room import require_room
from lora_ga_cli.stages.saved_tokenizer import with_saved_tokenizer
from lora_ga_cli.stages.trained import identity_of_run, load_trained, of_complete_model, require_finished
from lora_ga_cli.training.run_folder import RunFolder


@dataclass(frozen=True)
class MergeOptions:
    """How a merged model is written.

    Args:
        output: folder to write; ``RUN/merged`` when None.
        dtype: type of the written weights; the base's when None.
        max_shard_size: the largest size of one safetensors file, such as ``5GB``.
        base: another place of the same base model (it must have the same weights).
    """

    output: Path | None = None
    dtype: str | None = None
    max_shard_size: str = "5GB"
    base: str | None = None


def merge(run: RunFolder, config: Config, options: MergeOptions) -> Path:
    """Merges a finished run's adapter into its base; returns the folder.

    A folder that holds the result of the same merge already stays as it is, so that the same command can be run again.

    Raises:
        RunError: the run has not finished, the folder holds something else, or the base is not the one it was trained
            on.
        DamagedFile: the folder holds the result of the same merge, and a file of it is damaged.
        EqualityError: a merged weight is not finite, or the merged model does not compute what the adapter computes.
    """
    require_finished(run)
    _refuse_unmergeable(run, config)
    folder = options.output or run.path / "merged"
    if _is_result(folder, run, options):
        step("merged", f"{folder} holds this merge already, so there is nothing to do")
        return folder
    _require_free(folder)
    if not method_of(config).output.is_adapter:
        config = of_complete_model(config, run)
    config = with_saved_tokenizer(config, run.path)
    quantization = config.model.quantization
    inputs = _inputs_of_base(run, config, options)
    dtype = getattr(torch, options.dtype or config.model.dtype)
    weights = sum(item.numel() for item in inputs.empty_model().parameters()) * dtype.itemsize
    require_room("--output", folder, weights, "the merged model", "choose a smaller --dtype" * (dtype.itemsize > 2))
    model = load_trained(inputs, run)
    expected = probe_logits(model, inputs.probe_batch())
    write_more = method_of(config).merge(model, dtype)
    model = _merged(model, run, inputs, dtype)
    difference = _write(model, folder, inputs, expected, options, write_more, run)
    if quantization is not None:
        warn(
            f"the adapter was trained on the base in {quantization} and is merged into the base in "
            f"{config.model.dtype}, which is not quite the same: score the merged model, or use the adapter on the "
            "quantized base"
        )
    total = sum(file_sizes(folder).values())
    step(
        "merged",
        f"{folder} ({size(total)}, {str(dtype).removeprefix('torch.')}); "
        f"logits equal the adapter's (relative difference {difference:.0e})",
    )
    return folder


def _refuse_unmergeable(run: RunFolder, config: Config) -> None:
    output = method_of(config).output
    if not output.mergeable:
        raise RunError(
            f"{run.path} cannot be merged: it holds {output.label}, which is not a change of the base's weights; "
            f"{output.loads_in} loads it on the base"
        )
    if config.model.quantization == STORED:
        raise RunError(
            f"{run.path} cannot be merged: the files of its base hold quantized weights, and merged weights would have "
            f"to be quantized again; {output.loads_in} loads the adapter on the base"
        )


def _is_result(folder: Path, run: RunFolder, options: MergeOptions) -> bool:
    """Whether a folder holds the complete result of this merge. (Such a folder gets its name when it is complete.)

    Raises:
        DamagedFile: it does, and one of its files is not as it was written.
    """
    mark, mend = folder / MERGED_MARK, f"remove {folder}, and run this command again"
    if not mark.is_file():
        return False
    stored = read_json(mark, mend)
    if not isinstance(stored, dict) or not _of_same_merge(stored, run, options):
        return False
    check_files(folder, stored["files"], mend)
    return True


def _of_same_merge(stored: Mapping[str, Any], run: RunFolder, options: MergeOptions) -> bool:
    return (stored.get("run"), stored.get("options")) == (identity_of_run(run), _stated(options))


def _stated(options: MergeOptions) -> dict[str, Any]:
    """The options that a merged model depends on. Another place of the base has the same weights."""
    return {"dtype": options.dtype, "max_shard_size": options.max_shard_size}


def _require_free(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} exists and is not empty: give another --output, or remove it")


def _inputs_of_base(run: RunFolder, config: Config, options: MergeOptions) -> Inputs:
    """The inputs with the base not quantized: in quantized weights most of what was trained would be rounded away.

    No rows are loaded, since base and adapter are all that a merged model is made of.
    """
    changes: dict[str, Any] = {"quantization": None, "double_quantization": False}
    if options.base is not None:
        changes |= {"path": options.base, "revision": None}
    config = config.model_copy(update={"model": config.model.model_copy(update=changes)})
    return prepare_inputs(config, splits=(), label_names=run.manifest.get("label_names"))


def _merged(model: Any, run: RunFolder, inputs: Inputs, dtype: torch.dtype) -> PreTrainedModel:
    """The plain model in its type, every weight finite.

    Args:
        model: a `PeftModel`, or a plain one already.
    """
    if _coarseness(dtype) < _coarseness(getattr(torch, inputs.config.model.dtype)):
        model = model.to(dtype)  # in the base's type, small changes would be rounded away
    if isinstance(model, PeftModel):
        tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
        merge_layers(model, dtype)
        try:
            model = model.merge_and_unload(safe_merge=True)
            if tied:  # PEFT has separate, equal copies of some models' tied weights
                model.config.get_text_config().tie_word_embeddings = tied
                model.tie_weights()
        except ValueError as error:  # PEFT's safe_merge found a weight that is not finite
            raise EqualityError(f"merging {run.path}: {error}") from error
    plain: PreTrainedModel = model.to(dtype)
    _check_finite(plain.state_dict())
    return plain


def _write(
    model: PreTrainedModel,
    folder: Path,
    inputs: Inputs,
    expected: Tensor,
    options: MergeOptions,
    write_more: Callable[[Path], Path] | None,
    run: RunFolder,
) -> float:
    """Writes a merged model, once what is written computes the expected logits; returns the relative difference.

    Args:
        write_more: writes the method's own file into the folder.
        run: the run that is merged, of which the folder gets a mark.
    """
    dtype = model.dtype
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary, max_shard_size=options.max_shard_size)
        inputs.tokenizer.save_pretrained(temporary)
        if write_more is not None:
            step("merged", f"{folder / write_more(temporary).name} is written too")
        files = written_in(temporary, file_sizes(temporary))
        mark = {"run": identity_of_run(run), "options": _stated(options), "files": files}
        write_json(temporary / MERGED_MARK, mark, digest=True)
        actual = probe_logits(_reload(temporary, inputs, dtype), inputs.probe_batch())
        coarsest = max(dtype, getattr(torch, inputs.config.model.dtype), key=_coarseness)
        return check_equal(actual, expected, coarsest, "the merged model and the adapter on its base")


def _reload(folder: Path, inputs: Inputs, dtype: torch.dtype) -> PreTrainedModel:
    auto = AUTO_CLASS[inputs.config.model.task]
    options = inputs.config.model
    model: Any = auto.from_pretrained(
        folder, dtype=dtype, attn_implementation=options.attention, trust_remote_code=options.trust_remote_code
    )
    return model.to(inputs.device).eval()


def _check_finite(weights: Mapping[str, Any]) -> None:
    for name, weight in weights.items():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            raise EqualityError(
                f"{name} is not finite after merging: float16 has no place for large weights, and other types have"
            )


def _coarseness(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps
