"""Writes a LoRA adapter at a lower rank: the best one for its weights, or for what the run's rows see of them."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import Fault, InvalidInput
from lora_ga_cli.files import atomic_folder, file_sizes
from lora_ga_cli.inspection.changes import Decomposed, decompose
from lora_ga_cli.inspection.cuts import Cut, cut
from lora_ga_cli.inspection.kinds import by_kind, one_by_one
from lora_ga_cli.json_files import write_json
from lora_ga_cli.lora.export import adapts_parameters, describe_ranks, write_adapter
from lora_ga_cli.lora.links import LowRank
from lora_ga_cli.lora.saved import SavedAdapter, read_saved, refusal
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.model.loading import empty_model
from lora_ga_cli.report.console import say, size, step
from lora_ga_cli.report.tables import print_table
from lora_ga_cli.stages.inspect.weights import base_of_adapter
from lora_ga_cli.stages.layer_inputs import second_moments
from lora_ga_cli.stages.saved_tokenizer import has_tokenizer
from lora_ga_cli.stages.trained import config_of, stored_config
from lora_ga_cli.training.run_files import check_result
from lora_ga_cli.training.run_folder import RunFolder

RESULT_FILE = "cut.json"
TOKENIZER_FILES = ("tokenizer*.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "*.model")


@dataclass(frozen=True)
class CutOptions:
    """How an adapter is cut.

    Args:
        rank: the largest rank of a layer that is written.
        rows: how many of the run's training rows the inputs of layers are taken from; None to cut the weights alone.
        output: folder to write; ``peft-rRANK`` in the adapter's folder when None.
        every_layer: whether the table has one line for each layer.
        base: another place of the base model; None for the one that is known.
    """

    rank: int
    rows: int | None = None
    output: Path | None = None
    every_layer: bool = False
    base: str | None = None


@dataclass(frozen=True)
class _CutLayer:
    """A layer's cut as it is written, and the one that is best for the weight alone."""

    chosen: Cut
    by_weight: Cut


def cut_adapter(source: Path, options: CutOptions) -> dict[str, Any]:
    """Writes the adapter of a finished run, or one in a folder, at a lower rank, as PEFT's two files.

    Without rows, neither data nor weights of the base are read; its configuration is, if the adapter changes parameters
    such as the weights of experts.

    Returns:
        The run (or the adapter), the folder, its files with their sizes in bytes, the relative errors of weights and
        (with ``rows``) of outputs, in total and by layer.

    Raises:
        InvalidInput: all that is wrong, before anything is loaded.
        RunError: the run has not finished; or the base is not that of the run.
    """
    run = RunFolder(source) if (source / "manifest.json").exists() else None
    config = None if run is None else stored_config(run)
    if run is not None:
        check_result(run)
    folder = options.output or source / f"peft-r{options.rank}"
    if faults := list(_faults(source, config, folder, options)):
        raise InvalidInput(faults)
    saved = read_saved(source, lambda: _empty_base(source, run, options.base))
    if not any(change.rank > options.rank for change in saved.changes.values()):
        largest = max(change.rank for change in saved.changes.values())
        raise InvalidInput([Fault("--rank", f"{options.rank}, and the adapter has rank {largest}", "give a lower one")])
    found = {name: decompose(change) for name, change in saved.changes.items()}
    moments: dict[str, Tensor] = {}
    used = None
    if options.rows is not None and run is not None:
        moments, used = second_moments(run, config_of(run, (), options.base), found, options.rows)
    layers = {name: _cut_layer(change, options.rank, moments.get(name)) for name, change in found.items()}
    result = _described(layers, options, used)
    with atomic_folder(folder) as temporary:
        write_cut(temporary, saved, {name: layer.chosen.change for name, layer in layers.items()}, options.rank)
        write_json(temporary / RESULT_FILE, result)
        _copy_tokenizer(source, temporary)
    _show(layers, result, saved.notes, options)
    sizes = file_sizes(folder)
    weights = size(sizes["adapter_model.safetensors"])
    step("exported", f"{folder}: rank {options.rank}, {len(layers)} layers, {weights}; PEFT loads it")
    return {"adapter" if run is None else "run": source, "folder": folder, "files": sizes, **result}


def _empty_base(source: Path, run: RunFolder | None, base: str | None) -> PreTrainedModel:
    """The base of an adapter without weights.

    Raises:
        RunError: it is not known, or not where it was.
        ModelError
    """
    return empty_model(base_of_adapter(source, base) if run is None else config_of(run, (), base).model)


def _faults(source: Path, config: Config | None, folder: Path, options: CutOptions) -> Iterator[Fault]:
    if options.rank < 1:
        yield Fault("--rank", f"{options.rank}", "1 or more")
    if options.rows is not None and options.rows < 1:
        yield Fault("--rows", f"{options.rows}", "1 or more")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        yield Fault(str(folder), "exists and is not empty", "give another --output, or remove it")
    if problem := refusal(source):
        label = problem if config is None else f"holds {method_of(config).output.label}"
        yield Fault(str(source), f"{label}; only a LoRA adapter can be cut to a lower rank")
        return
    parameters = adapts_parameters(source)
    if options.rows is not None and config is None:
        yield Fault("--rows", f"{source} is no run, which would have training rows", "leave --rows out")
    elif options.rows is not None and parameters:
        what = "its adapter changes parameters of experts, whose inputs cannot be seen one by one"
        yield Fault("--rows", what, "leave --rows out: the weights alone decide then")
    if options.base is not None and options.rows is None and not parameters:
        yield Fault("--base", "does nothing here: without --rows no base is read", "leave it out")


def _cut_layer(change: Decomposed, rank: int, moment: Tensor | None) -> _CutLayer:
    by_weight = cut(change, rank, moment)
    return _CutLayer(by_weight if moment is None else cut(change, rank, moment, by_outputs=True), by_weight)


def write_cut(folder: Path, saved: SavedAdapter, changes: Mapping[str, LowRank], rank: int) -> None:
    """PEFT's two files; every layer has the wanted rank, or its own where that is lower."""
    config, tensors, ranks = copy.deepcopy(saved.config), dict(saved.others), {}
    for layer in saved.layers:
        ranks[layer.pattern_name] = wanted = min(rank, layer.changes[0].rank)
        tensors |= layer.packed([_padded(changes[name], wanted) for name in layer.named])
    describe_ranks(config, ranks, dict.fromkeys(ranks, 1.0))  # s is inside of B
    config.inference_mode = True
    write_adapter(folder, tensors, config)


def _padded(change: LowRank, rank: int) -> LowRank:
    """A change with zeros in place of directions that it does not have, so that all layers are written at one rank."""
    missing = rank - change.rank
    if missing <= 0:
        return change
    left, right = change.left, change.right
    zeros = left.new_zeros(left.shape[0], missing), right.new_zeros(missing, right.shape[1])
    return replace(change, left=torch.cat([left, zeros[0]], 1), right=torch.cat([right, zeros[1]]))


def _copy_tokenizer(source: Path, folder: Path) -> None:
    """The tokenizer, where the run has one of its own."""
    if has_tokenizer(source):
        for pattern in TOKENIZER_FILES:
            for file in source.glob(pattern):
                shutil.copyfile(file, folder / file.name)


def _described(layers: Mapping[str, _CutLayer], options: CutOptions, used: int | None) -> dict[str, Any]:
    """The errors as plain data, with the wanted number of rows and the number of those that were ``used``."""
    return {
        "rank": options.rank,
        "rows": options.rows,
        "rows_used": used,
        "errors": _errors(list(layers.values())),
        "layers": {name: _errors([layer]) for name, layer in layers.items()},
    }


def _errors(layers: list[_CutLayer]) -> dict[str, float | None]:
    """Relative errors over some layers: ``‖ΔW - X‖ / ‖ΔW‖``, and the root of ``E ‖(ΔW - X) x‖² / E ‖ΔW x‖²``, of what
    is written and of the cut that is best for the weights."""
    found: dict[str, float | None] = {}
    for label, cuts in (
        ("", [layer.chosen for layer in layers]),
        ("_by_weight", [layer.by_weight for layer in layers]),
    ):
        found[f"weights{label}"] = _ratio(sum(one.squared_error for one in cuts), sum(one.squared_norm for one in cuts))
        outputs = [(one.output_error, one.output_norm) for one in cuts]
        lost = [error for error, _ in outputs if error is not None]
        whole = [norm for _, norm in outputs if norm is not None]
        found[f"outputs{label}"] = _ratio(sum(lost), sum(whole)) if whole else None
    return found


def _ratio(lost: float, whole: float) -> float:
    return (lost / whole) ** 0.5 if whole > 0 else 0.0


def _show(layers: Mapping[str, _CutLayer], result: Mapping[str, Any], notes: list[str], options: CutOptions) -> None:
    for note in notes:
        step("cut", f"{note}, and stays as it is")
    groups = one_by_one(list(layers)) if options.every_layer else by_kind(layers)
    with_rows = options.rows is not None
    columns = ["layer", "weights", "outputs", "weights, SVD", "outputs, SVD"] if with_rows else ["layer", "weights"]
    rows = []
    for label, names in [*groups.items(), *([("all", list(layers))] if len(groups) > 1 else [])]:
        errors = _errors([layers[name] for name in names])
        shown = errors.values() if with_rows else [errors["weights"]]
        count = f" ({len(names)})" if len(names) > 1 and label != "all" else ""
        rows.append([f"{label}{count}", *("–" if value is None else f"{value:.2%}" for value in shown)])
    print_table(columns, rows, numeric=columns[1:])
    say("weights: ‖ΔW - X‖ / ‖ΔW‖, where X is the change that is written")
    if with_rows:
        say(
            "outputs: √(E‖(ΔW - X)x‖² / E‖ΔW x‖²) for the inputs x that these rows give a layer, which X makes smallest"
        )
        say("…, SVD: of the truncated singular value decomposition, which makes the error of the weights smallest")
