"""Stage 1: the gradient artifact, from the store or estimated now."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from lora_ga_cli.files import cache_root
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.estimate import estimate_gradients
from lora_ga_cli.gradient.exact import ExactEstimator
from lora_ga_cli.gradient.key import gradient_key, rows_hash
from lora_ga_cli.gradient.store import ArtifactStore
from lora_ga_cli.model.loading import identify
from lora_ga_cli.model.targets import check_rank, find_targets
from lora_ga_cli.report.console import say, step, warn
from lora_ga_cli.report.progress import counting
from lora_ga_cli.report.provenance import provenance
from lora_ga_cli.stages.inputs import Inputs

DEFAULT_CAPACITY = 32
ESTIMATORS = {"exact": lambda options: ExactEstimator(offload=options.offload)}


@dataclass(frozen=True)
class Request:
    """A gradient that is wanted: its address, and what it takes to compute it."""

    key: str
    capacity: int
    rows: list[dict[str, Any]]
    targets: list[str]


def request(inputs: Inputs) -> Request:
    """Which gradient this configuration needs; loads no weights.

    Raises:
        TargetError: a target matches nothing, or is too small for the rank.
        ModelError: the model cannot be identified.
    """
    config, options = inputs.config, inputs.config.gradient
    empty = inputs.empty_model()
    targets = find_targets(empty, config.target_modules)
    check_rank({name: target.shape for name, target in targets.items()}, config.rank, 2 * config.rank)
    rows = sample(inputs)
    identity = identify(config.model, cache_root(config.cache_dir) / "digests.json")
    if inputs.num_labels is not None:
        # a new head is drawn from the seed, and the gradient runs through it
        identity = identity | {"num_labels": str(inputs.num_labels), "head_seed": str(config.seed)}
    settings: dict[str, Any] = {"name": options.estimator}
    if options.dropout:
        settings |= {"dropout_seed": config.seed, "micro_batch_size": options.micro_batch_size}
    key = gradient_key(
        model=identity,
        task=config.model.task,
        dtype=config.model.dtype,
        rows=rows_hash(rows),
        targets=list(targets),
        estimator=settings,
    )
    return Request(key, capacity_for(config.rank, options.capacity), rows, list(targets))


def sample(inputs: Inputs) -> list[dict[str, Any]]:
    """``gradient.samples`` training rows, drawn without replacement by the run's seed."""
    rows, wanted = inputs.train.rows, inputs.config.gradient.samples
    chosen = random.Random(inputs.config.seed).sample(range(len(rows)), min(wanted, len(rows)))
    return [rows[index] for index in chosen]


def capacity_for(rank: int, configured: int | None) -> int:
    """Singular vectors to keep: as configured, else a power of two that leaves room for other ranks of a sweep."""
    if configured is not None:
        return configured
    capacity = DEFAULT_CAPACITY
    while capacity < 2 * rank:
        capacity *= 2
    return capacity


def store_of(inputs: Inputs) -> ArtifactStore:
    return ArtifactStore(cache_root(inputs.config.cache_dir))


def estimate(inputs: Inputs, model: PreTrainedModel | None = None) -> GradientArtifact:
    """The gradient artifact that ``inputs.config`` needs.

    Args:
        model: the pristine base, if it is loaded already.

    Raises:
        TargetError, GradientError, ModelError
    """
    wanted = request(inputs)
    began = time.perf_counter()
    if len(wanted.rows) < inputs.config.gradient.samples:
        warn(f"gradient.samples={inputs.config.gradient.samples}, and there are only {len(wanted.rows)} training rows")
    artifact, reused = store_of(inputs).get(
        wanted.key,
        max(2 * inputs.config.rank, inputs.config.gradient.capacity or 0),
        lambda: _compute(inputs, wanted, model),
        notify=warn,
    )
    if reused:
        step("gradient", f"reused {wanted.key} ({artifact.info['rows']} rows, serves ranks up to {artifact.max_rank})")
    else:
        seconds = time.perf_counter() - began
        step(
            "gradient",
            f"estimated {wanted.key} from {len(wanted.rows)} rows in {seconds:.1f} s; "
            f"serves ranks up to {artifact.max_rank}",
        )
    return artifact


def describe(artifact: GradientArtifact, rank: int) -> None:
    """Says how much of the gradient a first step from this rank can follow."""
    energies = artifact.energy(rank)
    worst = min(energies, key=lambda name: energies[name])
    mean = sum(energies.values()) / len(energies)
    say(
        f"           {len(energies)} layers; {2 * rank} singular vectors hold {mean:.1%} of the "
        f"gradient's energy on average, {energies[worst]:.1%} in {worst}"
    )


def _compute(inputs: Inputs, wanted: Request, model: PreTrainedModel | None) -> GradientArtifact:
    model = model if model is not None else inputs.load_model(to_train=True)
    options = inputs.config.gradient
    collator, size = inputs.collator, options.micro_batch_size
    batches = [wanted.rows[begin : begin + size] for begin in range(0, len(wanted.rows), size)]
    with counting("gradient", "micro-batch", len(batches)) as report:
        artifact = estimate_gradients(
            model,
            (collator(batch) for batch in batches),
            target_modules=wanted.targets,
            capacity=wanted.capacity,
            estimator=ESTIMATORS[options.estimator](options),
            dropout=options.dropout,
            on_batch=lambda done, _: report(done),
        )
    artifact.info.update(rows=len(wanted.rows), model=inputs.config.model.path, provenance=provenance())
    return artifact
