"""Stage 1: the gradient artifact, from the store or estimated now."""

from __future__ import annotations

import contextlib
import functools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from lora_ga_cli import distributed, interruption
from lora_ga_cli.config.schema import Config, GradientConfig
from lora_ga_cli.data.identity import rows_hash
from lora_ga_cli.errors import GradientError
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.estimate import estimate_gradients
from lora_ga_cli.gradient.estimator import Estimator
from lora_ga_cli.gradient.key import gradient_key, identity_after_merges
from lora_ga_cli.gradient.store import ArtifactStore
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.model.checkpointing import CHECKPOINT
from lora_ga_cli.model.speed import speed_of
from lora_ga_cli.model.targets import Target, small_layers
from lora_ga_cli.model.tf32 import tf32_products
from lora_ga_cli.paths import cache_root, shared_cache
from lora_ga_cli.registry import ESTIMATORS
from lora_ga_cli.report.console import number, step, warn
from lora_ga_cli.report.drawn import drawn
from lora_ga_cli.report.figures import coverage
from lora_ga_cli.report.progress import counting
from lora_ga_cli.report.provenance import provenance
from lora_ga_cli.report.spectrum_tables import FIGURES_ELSEWHERE
from lora_ga_cli.report.tables import gradient_table
from lora_ga_cli.stages.inputs import Inputs, base_identity, check_folders, join_processes, prepare_inputs
from lora_ga_cli.stages.inspect.options import InspectOptions
from lora_ga_cli.stages.room import require_room_for_gradient
from lora_ga_cli.training.passes import Limits, in_order

DEFAULT_CAPACITY = 32
SHARED_BATCHES = 8
"""The smallest number of micro-batches: so up to this number of processes split the rows as one process does."""
MIN_ALIGNMENT = 0.98
"""If the first step follows less than this share of the best one, the user is warned."""
MAX_PASSES = 8
"""The largest value of ``gradient.passes``."""
COVERAGE_FILE = "coverage.png"


@dataclass(frozen=True)
class Request:
    """A gradient that the run needs: its key, and everything that its computation takes.

    Args:
        min_capacity: singular vectors that a stored artifact must keep.
        capacity: singular vectors to keep if it is computed.
        targets: of a model without weights.
    """

    key: str
    min_capacity: int
    capacity: int
    rows: list[dict[str, Any]]
    targets: dict[str, Target]


def request(inputs: Inputs, merged: Sequence[str] = ()) -> Request:
    """The gradient that this configuration needs; loads no weights.

    Args:
        merged: digests of what was added to the base since it was loaded, such as the earlier links of a chain.

    Raises:
        TargetError: a target matches nothing, or is too small for the rank.
        ModelError: the model cannot be identified.
    """
    config, options = inputs.config, inputs.config.gradient
    empty = inputs.empty_model()
    method = method_of(config)
    targets = method.targets(empty)
    shapes = {name: target.shape for name, target in targets.items()}
    ranks = method.gradient_ranks(targets)
    small_layers(shapes, ranks, vectors=method.gradient_vectors, named=method.names_targets)
    rows = sample(inputs)
    identity = identity_after_merges(base_identity(config), merged)
    if inputs.num_labels is not None:
        # a new head is drawn from the seed, and the gradient runs through it
        identity = identity | {"num_labels": str(inputs.num_labels), "head_seed": str(config.seed)}
    settings: dict[str, Any] = {"name": options.estimator, "passes": options.passes}
    if options.dropout:
        settings |= {"dropout_seed": config.seed, "micro_batch_size": options.micro_batch_size}
        settings |= {"max_tokens": options.max_tokens, "flatten": config.trainer.flatten}
    if config.trainer.tf32:
        settings["tf32"] = True
    key = gradient_key(
        model=identity,
        task=config.model.task,
        dtype=config.model.dtype,
        rows=rows_hash(rows),
        targets=list(targets),
        estimator=settings,
    )
    largest = method.largest_rank
    min_capacity = max(2 * largest, options.capacity or 0)
    return Request(key, min_capacity, capacity_for(largest, options.capacity), rows, targets)


def sample(inputs: Inputs) -> list[dict[str, Any]]:
    """``gradient.samples`` training rows, drawn without replacement with the run's seed.

    A smaller number of samples gives the first of these rows.
    """
    rows = inputs.train.rows
    order = list(range(len(rows)))
    random.Random(inputs.config.seed).shuffle(order)
    return [rows[index] for index in order[: inputs.config.gradient.samples]]


def sample_batches(inputs: Inputs) -> Iterator[dict[str, Any]]:
    """The rows of `sample` in batches on the model's device; the same ones in every process."""
    rows = sample(inputs)
    options = inputs.config.gradient
    limits = Limits(rows_at_a_time(options, len(rows)), options.max_tokens, padded=True)
    for chosen in in_order(range(len(rows)), [row["length"] for row in rows], limits):
        batch = inputs.collator([rows[number] for number in chosen])
        yield {name: item.to(inputs.device) for name, item in batch.items()}


def capacity_for(rank: int, configured: int | None) -> int:
    """Singular vectors to keep: as configured, else a power of two that also serves other ranks of a sweep."""
    if configured is not None:
        return configured
    capacity = DEFAULT_CAPACITY
    while capacity < 2 * rank:
        capacity *= 2
    return capacity


def rows_at_a_time(options: GradientConfig, rows: int) -> int:
    """Rows of a micro-batch: ``gradient.micro_batch_size``, but at most an eighth of all rows (64 rows: 8).

    So any number of processes up to `SHARED_BATCHES` splits the rows in the same way and computes the same gradient.
    """
    return max(1, min(options.micro_batch_size, rows // max(distributed.count(), SHARED_BATCHES)))


def store_of(inputs: Inputs) -> ArtifactStore:
    """The store of gradients that the configuration names."""
    return gradients_of(inputs.config.cache_dir)


def gradients_of(cache_dir: str | None) -> ArtifactStore:
    """The store of gradients in a cache, as ``cache_dir`` names it."""
    return ArtifactStore(cache_root(cache_dir), shared_cache(cache_dir))


def estimate(inputs: Inputs, model: PreTrainedModel | None = None, *, merged: Sequence[str] = ()) -> GradientArtifact:
    """The gradient artifact that ``inputs.config`` needs; the same one in every process.

    Args:
        model: the base, if it is loaded already.
        merged: digests of what was added to it since; this gradient is stored beside that of the original base.

    Raises:
        TargetError, GradientError, ModelError
    """
    wanted, config = request(inputs, merged), inputs.config
    began = time.perf_counter()
    if len(wanted.rows) < config.gradient.samples:
        warn(
            f"gradient.samples={config.gradient.samples}, but there are only {len(wanted.rows)} training rows; all are "
            "used"
        )
    artifact, reused = _from_store(inputs, wanted, model)
    if reused:
        step("gradient", f"reused {wanted.key} ({artifact.info['rows']} rows, serves ranks up to {artifact.max_rank})")
    else:
        seconds = time.perf_counter() - began
        step(
            "gradient",
            f"estimated {wanted.key} from {len(wanted.rows)} rows in {seconds:.1f} s; "
            f"serves ranks up to {artifact.max_rank}",
        )
    if artifact.unreached:
        experts = sum(target.experts for target in wanted.targets.values())
        step(
            "gradient",
            f"{number(len(artifact.unreached))} of {number(experts)} layers of experts have no gradient, because no "
            "token of these rows was routed to them: they begin as in LoRA (gradient.samples takes more rows)",
        )
    _warn_of_error(artifact, config)
    return artifact


def estimate_alone(config: Config, figures: Path | None = None) -> tuple[GradientArtifact, Path | None]:
    """Estimates the gradient that a configuration needs, prints a table of it and draws a figure (``loraga
    estimate-grad``).

    Args:
        figures: the folder of the figure; None for that of `loraga inspect`.

    Returns:
        The gradient, and the file of the figure; None in processes that do not draw, or if it could not be written.

    Raises:
        UserError: as `estimate`.
    """
    check_folders(config, ("cache_dir",))
    join_processes(config)
    with tf32_products(config.trainer.tf32):
        artifact = estimate(prepare_inputs(config, splits=("train",)))
    file = show(artifact, config, figures) if distributed.is_main() else None
    distributed.wait()
    return artifact, file


def described(artifact: GradientArtifact, config: Config) -> dict[str, Any]:
    """A gradient artifact as plain data: what it is of, and its measures at the configured rank, by layer."""
    rank = min(method_of(config).largest_rank, artifact.max_rank)
    energy, alignment = artifact.energy(rank), artifact.alignment(rank)
    layers = {
        name: {
            "shape": list(factors.shape),
            "norm": factors.norm,
            "energy": energy[name],
            "alignment": alignment[name],
        }
        for name, factors in artifact.factors.items()
    }
    return {"key": artifact.key, "max_rank": artifact.max_rank, "rank": rank, **artifact.info, "layers": layers}


def _from_store(inputs: Inputs, wanted: Request, model: PreTrainedModel | None) -> tuple[GradientArtifact, bool]:
    """The artifact, and whether it was stored already.

    The main process looks it up; if it is missing, all processes estimate it together.
    """
    store = store_of(inputs)

    def together() -> GradientArtifact:
        distributed.broadcast_flag(True)
        return _compute(inputs, wanted, model)

    if distributed.is_main():
        artifact, reused = store.get(wanted.key, wanted.min_capacity, together, notify=warn)
        if reused:
            distributed.broadcast_flag(False)
        return artifact, reused
    if distributed.broadcast_flag(True):
        return _compute(inputs, wanted, model), False
    stored = store.find(wanted.key, wanted.min_capacity)
    assert stored is not None
    return GradientArtifact.load(stored.path), True


def _warn_of_error(artifact: GradientArtifact, config: Config) -> None:
    """Warns of layers whose estimate may be too coarse for the largest rank, and says what helps."""
    rank, passes = method_of(config).largest_rank, artifact.info["passes"]
    alignments = artifact.alignment(rank)
    coarse = {name: value for name, value in alignments.items() if value < MIN_ALIGNMENT}
    if not coarse:
        return
    worst = min(coarse, key=lambda name: coarse[name])
    more = f"gradient.passes={passes + 1} or " if passes < MAX_PASSES else ""
    warn(
        f"in {len(coarse)} of {len(alignments)} layers the first step of rank {rank} may follow less than "
        f"{MIN_ALIGNMENT:.0%} of the best one's (lowest: {coarse[worst]:.1%}, in {worst}): "
        f"{more}gradient.capacity={2 * artifact.capacity} makes the estimate more exact"
    )


def show(artifact: GradientArtifact, config: Config, figures: Path | None = None) -> Path | None:
    """Prints a table of the gradient by layer, and draws how much of it each rank covers.

    Args:
        figures: as for `estimate_alone`.

    Returns:
        The file of the figure; None if it could not be written.
    """
    gradient_table(artifact, config.rank)
    file = InspectOptions(figures=figures).figures_for(artifact.key) / COVERAGE_FILE
    title = f"{config.model.path}, {artifact.info['rows']} rows"
    draw = functools.partial(coverage, artifact, file, title=title)
    return drawn(file, draw, FIGURES_ELSEWHERE, required=figures is not None)


@contextlib.contextmanager
def _fast_checkpoints(model: PreTrainedModel, config: Config) -> Iterator[None]:
    """Makes gradient checkpoints reentrant during the estimation, which takes a quarter less time for the same result.

    Training uses checkpoints that are not reentrant, which suit adapters. Sharded weights are not gathered for
    reentrant ones.
    """
    blocks = [] if config.model.shard else [item for item in model.modules() if getattr(item, CHECKPOINT, None)]
    before = [getattr(item, CHECKPOINT) for item in blocks]
    for item in blocks:
        setattr(item, CHECKPOINT, functools.partial(checkpoint, use_reentrant=True))
    try:
        yield
    finally:
        for item, function in zip(blocks, before, strict=True):
            setattr(item, CHECKPOINT, function)


def _compute(inputs: Inputs, wanted: Request, model: PreTrainedModel | None) -> GradientArtifact:
    if distributed.is_main():
        shapes = [layer.shape for target in wanted.targets.values() for layer in target.layers]
        require_room_for_gradient(store_of(inputs).folder, shapes, wanted.capacity)
    model = model if model is not None else inputs.load_model(to_train=True)
    options, together = inputs.config.gradient, distributed.count()
    collator = inputs.collator_for(model)
    if len(wanted.rows) < together:
        raise GradientError(f"{len(wanted.rows)} rows are too few for {together} processes: raise gradient.samples")
    limits = Limits(rows_at_a_time(options, len(wanted.rows)), options.max_tokens, padded=not speed_of(model).flatten)
    passes = in_order(range(len(wanted.rows)), [row["length"] for row in wanted.rows], limits)
    batches = [[wanted.rows[row] for row in rows] for rows in passes]
    of_process = batches[distributed.index() :: together]
    estimator: Estimator = ESTIMATORS[options.estimator].from_options(options)
    with (
        _fast_checkpoints(model, inputs.config),
        counting("gradient", "micro-batch", len(of_process) * estimator.passes) as report,
    ):

        def counted(done: int, _: float) -> None:
            interruption.stop_if_requested()
            report(min(done, len(of_process) * estimator.passes))

        artifact = estimate_gradients(
            model,
            (collator(batch) for batch in of_process),
            target_modules=[name for name, target in wanted.targets.items() if target.is_module],
            target_parameters=[name for name, target in wanted.targets.items() if not target.is_module],
            capacity=wanted.capacity,
            estimator=estimator,
            dropout=options.dropout,
            on_batch=counted,
            on_retry=lambda rows: warn(
                f"the accelerator's memory is full: the estimation starts again with {rows} rows at a time "
                f"(gradient.micro_batch_size={rows} would do so from the beginning)"
            ),
        )
    artifact.info.update(rows=len(wanted.rows), model=inputs.config.model.path, provenance=provenance())
    return artifact
