"""Ranks of layers that the gradient decides, at a budget of parameters: an option of every method that trains LoRA's
factors. The choice itself is in `lora.allocation`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lora_ga_cli.config.exclusions import Exclusion, exclusive
from lora_ga_cli.config.schema import Config, MethodOptions, Positive
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.lora.allocation import allocate_by_energy, factor_parameters, select_layers, snip, spread_evenly
from lora_ga_cli.model.quantization import dense
from lora_ga_cli.model.targets import Target

Saliency = Callable[[Target, GradientArtifact], float]
"""A number for a layer, from its weight and its gradient; larger ones come first."""


class RankAllocationOptions(MethodOptions):
    """Which layers get how large a rank."""

    exclusions: ClassVar[tuple[Exclusion, ...]] = (
        *exclusive("method.rank_budget", "method.budget_share"),
        Exclusion(
            "method.rank_allocation",
            ("method.rank_budget", "method.budget_share", "method.max_rank", "method.min_rank"),
            lambda value: value == "uniform",
        ),
        Exclusion(
            "method.rank_allocation",
            ("method.max_rank", "method.min_rank"),
            lambda value: value in ("grad_norm", "snip"),
        ),
        Exclusion("method.rank_allocation", ("rank_pattern",), lambda value: value != "uniform"),
    )

    rank_allocation: Literal["uniform", "energy", "grad_norm", "snip"] = "uniform"
    """Which ranks the layers get. ``uniform``: ``rank``, or what ``rank_pattern`` says. ``energy``: the gradient's
    singular values decide; each parameter goes where it captures most of the squared gradient, up to
    ``method.max_rank``. ``grad_norm`` and ``snip``: some layers get ``rank`` and the others no adapter (HeteroLoRA,
    arXiv 2406.14956); those are kept whose gradient has the largest norm, or the largest sum of ``|W ⊙ G|``."""
    rank_budget: Positive | None = None
    """Parameters of A and B of all layers together, at most. Null: what ``rank`` costs in every layer, times
    ``method.budget_share``."""
    budget_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The budget as a share of what ``rank`` costs in every layer."""
    max_rank: Positive | None = None
    """The largest rank of a layer with ``method.rank_allocation=energy``. Null: twice ``rank``."""
    min_rank: Annotated[int, Field(ge=0)] = 0
    """The smallest rank of a layer with ``method.rank_allocation=energy``. With 0, a layer may get no adapter."""


class RankAllocation:
    """Ranks of layers from the gradient, for one configuration.

    Args:
        config: whose ``method`` section has `RankAllocationOptions`.
        vectors: singular vectors of the gradient that an adapter of rank 1 begins with. A layer's rank is limited so
            that it has as many.
    """

    def __init__(self, config: Config, vectors: int = 1):
        self.rank, self.vectors = config.rank, vectors
        self.options: Any = config.method

    @property
    def max_rank(self) -> int:
        """The largest rank that a layer may get."""
        if self.options.rank_allocation in SALIENCIES:
            return self.rank
        return int(self.options.max_rank or 2 * self.rank)

    def budget(self, targets: Mapping[str, Target]) -> int:
        """How many parameters the factors of all layers may have together."""
        if self.options.rank_budget is not None:
            return int(self.options.rank_budget)
        uniform = factor_parameters(dict.fromkeys(targets, self.rank), _shapes(targets))
        return int(self.options.budget_share * uniform)

    def ranks(self, targets: Mapping[str, Target], artifact: GradientArtifact) -> dict[str, int]:
        """The rank of every layer that gets an adapter, by full name; none that no gradient reached does.

        Raises:
            GradientError: a layer has no gradient.
            TargetError: the budget pays for no layer.
        """
        artifact.check_serves(set(targets), 1)
        shapes, budget = _shapes(targets), self.budget(targets)
        targets = {name: target for name, target in targets.items() if name not in artifact.unreached}
        saliency = SALIENCIES.get(self.options.rank_allocation)
        if saliency is not None:
            scores = {name: saliency(target, artifact) for name, target in targets.items()}
            return select_layers(scores, shapes, self.rank, budget)
        spectra = {name: artifact.factors[name].singular for name in targets}
        # as many ranks as there are vectors to begin them with
        spectra = {name: values[: values.numel() // self.vectors] for name, values in spectra.items()}
        return allocate_by_energy(spectra, shapes, budget, self.max_rank, self.options.min_rank)

    def expected_ranks(self, targets: Mapping[str, Target]) -> dict[str, int]:
        """Ranks that have as many parameters as those of `ranks`, up to a part of the budget that pays for no rank.

        They are for forecasts, which have no gradient: as equal as possible, or the first layers of the model.

        Raises:
            TargetError: the budget pays for no layer.
        """
        shapes, budget = _shapes(targets), self.budget(targets)
        if self.options.rank_allocation in SALIENCIES:
            return select_layers(dict.fromkeys(targets, 0.0), shapes, self.rank, budget)
        limits = {name: min(self.max_rank, min(shape) // self.vectors) for name, shape in shapes.items()}
        return spread_evenly(limits, shapes, budget, self.options.min_rank)


def grad_norm(target: Target, artifact: GradientArtifact) -> float:
    """``‖G‖`` (Frobenius norm) of the complete gradient of W, which the artifact keeps beside the leading part.

    (HeteroLoRA scores the factors of a LoRA that was just added. B is zero there, and with it the gradient of A, so
    this scores the weight under it; not verified against the paper.)
    """
    return artifact.factors[target.name].norm


SNIP_TRIPLETS = 32
"""Singular triplets of the gradient that `snip_of_leading_part` looks at, whatever the artifact has room for."""


def snip_of_leading_part(target: Target, artifact: GradientArtifact) -> float:
    """``Σ |W ⊙ G|`` with the leading 32 singular triplets of G, since the artifact keeps no more of it for every rank.

    (HeteroLoRA scores the factors of a LoRA that was just added, with complete gradients. Their product is zero, so
    this scores the weight under it; not verified against the paper.)
    """
    factors = artifact.factors[target.name]
    left, right = factors.left[:, :SNIP_TRIPLETS], factors.right[:, :SNIP_TRIPLETS]
    return snip(dense(target), left, factors.singular[:SNIP_TRIPLETS], right)


SALIENCIES: dict[str, Saliency] = {"grad_norm": grad_norm, "snip": snip_of_leading_part}
"""By the value of ``rank_allocation``: what decides which layers are kept."""


def allocates(config: Config) -> bool:
    """Whether the gradient decides the ranks."""
    options: Any = config.method
    return bool(options.rank_allocation != "uniform")


def allocation_faults(config: Config, largest_rank: int) -> Iterator[str]:
    """Describes options of ``method`` about ranks that do not go together, and those that would do nothing.

    Args:
        largest_rank: the largest rank that the gradient has to serve.
    """
    options: Any = config.method
    kind, names = options.rank_allocation, ("rank_budget", "budget_share", "max_rank", "min_rank")
    fields = RankAllocationOptions.model_fields
    changed = {name: value for name in names if (value := getattr(options, name)) != fields[name].default}
    unused = names if kind == "uniform" else ("max_rank", "min_rank") if kind in SALIENCIES else ()
    for name in unused:
        if name in changed:
            yield (
                f"method.{name}={changed[name]} does nothing with method.rank_allocation={kind}; "
                "method.rank_allocation=energy uses it"
            )
    if kind == "uniform":
        return
    if config.rank_pattern:
        yield f"method.rank_allocation={kind} decides the ranks, so it does not go with rank_pattern"
    if {"rank_budget", "budget_share"} <= set(changed):
        yield "method.budget_share does nothing with method.rank_budget: give one of them"
    limited = not {"rank_budget", "budget_share"}.isdisjoint(changed)
    if kind in SALIENCIES and not limited:
        yield (
            f"method.rank_allocation={kind} would keep every layer: give method.budget_share below 1, or "
            "method.rank_budget"
        )
    if kind == "energy" and options.max_rank is not None and options.max_rank <= config.rank and not limited:
        yield f"method.max_rank={options.max_rank} leaves nothing to allocate: it must be above rank={config.rank}"
    if kind == "energy" and options.min_rank > largest_rank:
        yield f"method.min_rank={options.min_rank} is above the largest rank of a layer, {largest_rank}"
    if kind == "snip" and config.model.shard:
        yield "model.shard=true does not go with method.rank_allocation=snip, which reads complete weights"
    capacity = config.gradient.capacity
    if capacity is not None and capacity < 2 * largest_rank:
        yield (
            f"gradient.capacity={capacity} serves ranks up to {capacity // 2}, and method.rank_allocation={kind} gives "
            f"ranks up to {largest_rank}: use gradient.capacity={2 * largest_rank}"
        )


def describe_ranks_of(ranks: Mapping[str, int]) -> str:
    """Ranks in a few words: ``rank 8``, or the smallest one, the median and the largest one, with names of layers."""
    lowest, highest = min(ranks, key=lambda name: ranks[name]), max(ranks, key=lambda name: ranks[name])
    if ranks[lowest] == ranks[highest]:
        return f"rank {ranks[lowest]}"
    median = sorted(ranks.values())[(len(ranks) - 1) // 2]
    return f"rank {ranks[lowest]} ({lowest}) to {ranks[highest]} ({highest}), median {median}"


def _shapes(targets: Mapping[str, Target]) -> dict[str, tuple[int, int]]:
    return {name: target.shape for name, target in targets.items()}
