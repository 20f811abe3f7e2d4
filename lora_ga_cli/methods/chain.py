"""Chains: a run of several links. Each link is a separate low-rank adapter on the base with all earlier links.

A link has its own initial factors, optimizer and checkpoints, and, where it begins along the gradient, its own gradient
(of the base with what was trained before). What is saved in the end is the sum of all links as one standard LoRA
adapter.

The idea is that of COLA (arXiv 2401.04151). With a frozen factor that is drawn anew for each link a chain is RAC-LoRA
(arXiv 2410.08305), with few layers in a link of rank 1 it is XGBLoRA (arXiv 2410.19694), with pruned moments ReLoRA
(arXiv 2307.05695), and with a frozen factor along the gradient and moments that are kept GaLore (arXiv 2403.03507).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from lora_ga_cli.config.exclusions import Exclusion, exclusive
from lora_ga_cli.config.schema import Config, MethodOptions, Positive
from lora_ga_cli.errors import TargetError
from lora_ga_cli.lora.export import WEIGHTS_FILE
from lora_ga_cli.lora.layers import lora_keys, lora_pairs
from lora_ga_cli.lora.moments import Decay, change_of_coordinates, prune, transport
from lora_ga_cli.methods.base import Link, Model
from lora_ga_cli.methods.lora import Lora
from lora_ga_cli.methods.lora_ga import LoraGA, LoraGAOptions
from lora_ga_cli.methods.rank_allocation import allocates
from lora_ga_cli.methods.zero_init import ZeroInitLora, ZeroInitOptions
from lora_ga_cli.model.targets import Target
from lora_ga_cli.model.tensor_files import read_tensors
from lora_ga_cli.optimizers.base import optimizer_of
from lora_ga_cli.registry import METHODS


class ChainOptions(MethodOptions):
    """Options of every chain."""

    exclusions: ClassVar[tuple[Exclusion, ...]] = (
        *exclusive("method.links", "method.link_steps"),
        Exclusion("method.links", ("method.merged_rank", "method.link_state"), lambda value: value == 1),
        Exclusion("method.link_schedule", ("method.link_warmup",), lambda value: value != "run"),
        Exclusion("method.link_state", ("method.pruned_share",), lambda value: value != "prune"),
    )

    links: Positive | None = None
    """Number of links. The optimizer steps and the rows are divided among them; one link is no chain, and equals the
    method without links. Null: as many as ``link_steps`` makes."""
    link_steps: Positive | None = None
    """Optimizer steps of a link; the last one has what remains. Null: ``links`` are of equal length."""
    link_schedule: Literal["link", "run"] = "link"
    """The learning rate's schedule. ``link``: every link has one, with warm-up. ``run``: one for the complete run."""
    link_warmup: Annotated[int, Field(ge=0)] | None = None
    """Steps over which a link after the first raises its learning rate to that of the run, with ``link_schedule=run``:
    step i of n+1 equal parts. Null: a share ``trainer.warmup_ratio`` of the link's steps, of which the first has
    rate 0."""
    link_state: Literal["reset", "keep", "rotate", "prune"] = "reset"
    """The optimizer's state that a link after the first begins with. ``reset``: a new one. ``keep``: that of the link
    before. ``rotate``: AdamW's moments of the link before, moved to the coordinates of the new frozen factor.
    ``prune``: that of the link before with its smallest elements set to zero."""
    pruned_share: Annotated[float, Field(gt=0, le=1)] = 0.999
    """Share of each moment's elements that ``link_state=prune`` sets to zero."""
    link_ranks: Annotated[list[Positive], Field(min_length=1)] | None = None
    """Rank of each link, in place of ``rank``: ``[8, 4, 2]``. Links after the last entry have its rank."""
    layers_per_link: Positive | None = None
    """Number of layers that a link trains, drawn anew for each link from the ``target_modules``. Null trains all."""
    merged_rank: Positive | None = None
    """Rank that the sum of the links is truncated to when it is saved; the error is shown. Null loses nothing: the rank
    is the sum of the links' ranks, at most the shorter side of the layer."""


class Chain(Lora):
    """The base class of every chain. It is combined with a LoRA method, which makes each link."""

    adapts_experts = False

    def link_starts(self, steps: int) -> list[int]:
        if self.options.link_steps is not None:
            return list(range(0, steps, self.options.link_steps))
        count = int(self.options.links)
        return [steps * index // count for index in range(count)]

    @property
    def continues_schedule(self) -> bool:
        return bool(self.options.link_schedule == "run")

    @property
    def link_warmup(self) -> int | None:
        warmup = self.options.link_warmup
        return None if warmup is None else int(warmup)

    @property
    def carries_state(self) -> bool:
        return bool(self.options.link_state != "reset")

    @property
    def merged_rank(self) -> int | None:
        rank = self.options.merged_rank
        return None if rank is None else int(rank)

    @property
    def largest_rank(self) -> int:
        return max(self.options.link_ranks or [super().largest_rank])

    def gradient_ranks(self, targets: Mapping[str, Target]) -> dict[str, int]:
        ranks = super().gradient_ranks(targets)
        return ranks if self.options.link_ranks is None else dict.fromkeys(targets, self.largest_rank)

    @classmethod
    def shared_options(cls, config: Config) -> frozenset[str]:
        options: Any = config.method
        return super().shared_options(config) - ({"rank"} if options.link_ranks is not None else set())

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        yield from super().check(config)
        options: Any = config.method
        if config.trainer.load_best or config.trainer.early_stopping_patience is not None:
            yield "a chain does not go with trainer.load_best and trainer.early_stopping_patience, which see one link"
        if config.model.task == "sequence_classification":
            yield "a chain does not go with model.task=sequence_classification: each link would begin with a new head"
        if config.model.shard:
            yield "model.shard=true does not go with a chain"
        beside = ("modules_to_save", "trainable_token_indices")
        given = [f"method.{name}" for name in beside if getattr(options, name)]
        for name in [*given, *(["model.new_tokens"] if config.model.new_tokens else [])]:
            yield f"a chain does not go with {name}: each link would begin with the base's embeddings"
        if getattr(options, "use_dora", False):
            yield "method.use_dora=true does not go with a chain: magnitudes of several links do not add up"
        yield from _length_faults(config)
        yield from _rank_faults(config)
        yield from _state_faults(config)

    def check_steps(self, steps: int) -> None:
        options = self.options
        if options.links is not None and steps < options.links:
            raise TargetError(
                f"method.links={options.links} needs at least as many optimizer steps, and this run has "
                f"{steps}: use more rows, trainer.epochs or trainer.max_steps, or fewer links"
            )
        count, ranks = len(self.link_starts(steps)), options.link_ranks
        if ranks is not None and len(ranks) > count:
            raise TargetError(f"method.link_ranks={ranks} has {len(ranks)} ranks, and this run has {count} links")
        if count == 1 and options.merged_rank is not None:
            raise TargetError(
                f"method.merged_rank={options.merged_rank} does nothing in a run of one link: give a smaller "
                "method.link_steps, or merged_rank=null"
            )

    def layer_ranks(self, targets: Mapping[str, Target], link: Link, source: Any = None) -> dict[str, int]:
        options = self.options
        if options.link_ranks is not None:
            ranks = dict.fromkeys(targets, int(options.link_ranks[min(link.index, len(options.link_ranks) - 1)]))
        else:
            ranks = super().layer_ranks(targets, link, source)
        if options.layers_per_link is None:
            return ranks
        drawn = set(draw_layers(list(ranks), options.layers_per_link, self.config.seed, link.index))
        return {name: rank for name, rank in ranks.items() if name in drawn}

    def largest_link(self, model: PreTrainedModel, links: Sequence[Link]) -> Link:
        targets = self.targets(model)

        def trained(link: Link) -> int:
            frozen, count = self.frozen(link), 0
            for name, rank in self.layer_ranks(targets, link).items():
                d_out, d_in = targets[name].shape
                count += rank * ((d_in if frozen != "A" else 0) + (d_out if frozen != "B" else 0))
            return count

        return max(links, key=trained)

    def carried_state(
        self, state: Mapping[str, Mapping[str, Tensor]], model: Model, before: Path
    ) -> dict[str, dict[str, Tensor]]:
        options, kept = self.options, {name: dict(entries) for name, entries in state.items()}
        if options.link_state == "prune":
            return {name: prune(entries, options.pruned_share) for name, entries in kept.items()}
        if options.link_state == "rotate":
            trainer = self.config.trainer
            return rotated(kept, model, before, Decay(trainer.adam_beta1, trainer.adam_beta2))
        return kept

    def describe_saved(self, size: int) -> str:
        truncated = "" if self.merged_rank is None or size > self.merged_rank else ", truncated to that rank"
        return f"the sum of its links{truncated}"


def draw_layers(names: list[str], count: int, seed: int, link: int) -> list[str]:
    """The layers that a link trains: ``count`` of ``names``, each subset equally likely.

    Raises:
        TargetError: there are fewer.
    """
    if count > len(names):
        raise TargetError(f"method.layers_per_link={count}, and target_modules names {len(names)} layers")
    return random.Random(f"{seed}|layers|{link}").sample(names, count)


def rotated(
    state: Mapping[str, Mapping[str, Tensor]], model: Model, before: Path, decay: Decay
) -> dict[str, dict[str, Tensor]]:
    """AdamW's moments of the factors that train, moved to the coordinates of the new frozen factors.

    Args:
        state: of the link before, by name of the parameter.
        model: the link that begins.
        before: the saved adapter of the link before.
    """
    tensors, names = read_tensors(before / WEIGHTS_FILE), {id(item): name for name, item in model.named_parameters()}
    result = {name: dict(entries) for name, entries in state.items()}
    for pair in lora_pairs(model):  # type: ignore[arg-type]
        key_a, key_b = lora_keys(pair.name)
        name_a, name_b = names[id(pair.delta_a)], names[id(pair.delta_b)]
        if name_b in state:  # A is frozen
            change = change_of_coordinates(tensors[key_a], pair.a.detach())
            result[name_b] = transport(state[name_b], change, decay)
        elif name_a in state:
            change = change_of_coordinates(tensors[key_b].T, pair.b.detach().T)
            turned = {key: item.T if item.dim() else item for key, item in state[name_a].items()}
            moved = transport(turned, change, decay)
            result[name_a] = {key: item.T.contiguous() if item.dim() else item for key, item in moved.items()}
    return result


def _length_faults(config: Config) -> Iterator[str]:
    """Describes options about the number and the schedule of links that do not go together."""
    options: Any = config.method
    links, link_steps, max_steps = options.links, options.link_steps, config.trainer.max_steps
    if links is not None and link_steps is not None:
        yield (
            f"method.links={links} and method.link_steps={link_steps} decide the same: give one, and set the other to "
            "null"
        )
    if links is None and link_steps is None:
        yield "a chain needs method.links or method.link_steps"
    if links is not None and max_steps is not None and max_steps < links:
        yield f"trainer.max_steps={max_steps} is less than method.links={links}"
    if options.link_warmup is not None and options.link_schedule != "run":
        yield f"method.link_warmup={options.link_warmup} does nothing without method.link_schedule=run"
    if links == 1 and options.merged_rank is not None:
        yield f"method.merged_rank={options.merged_rank} does nothing with method.links=1"


def _rank_faults(config: Config) -> Iterator[str]:
    """Describes options about ranks that do not go together."""
    options: Any = config.method
    ranks = options.link_ranks
    if allocates(config):
        given = f"method.rank_allocation={options.rank_allocation}"
        for name in ("link_ranks", "layers_per_link"):
            if getattr(options, name) is not None:
                yield f"method.{name} does not go with {given}, which decides the layers and ranks of a link"
        if options.link_state != "reset":
            yield f"{given} does not go with method.link_state={options.link_state}: the next link has other ranks"
    if ranks is None:
        return
    if options.links is not None and len(ranks) > options.links:
        yield f"method.link_ranks={ranks} has {len(ranks)} ranks for method.links={options.links}"
    if config.rank_pattern:
        yield "rank_pattern does nothing with method.link_ranks, which gives all layers of a link one rank"


def _state_faults(config: Config) -> Iterator[str]:
    """Describes options that do not go with what a link takes over from the optimizer of the link before."""
    options: Any = config.method
    given = f"method.link_state={options.link_state}"
    if options.pruned_share != 0.999 and options.link_state != "prune":
        yield f"method.pruned_share={options.pruned_share:g} does nothing with {given}"
    if options.link_state == "reset":
        return
    frozen = getattr(options, "frozen_factor", "none")
    if options.links == 1:
        yield f"{given} does nothing with method.links=1"
    if not optimizer_of(config).carries_state:
        yield f"{given} does not go with trainer.optimizer={config.trainer.optimizer}: use trainer.optimizer=adamw"
    if options.link_ranks is not None and len(set(options.link_ranks)) > 1:
        yield f"{given} does not go with method.link_ranks: the state of another rank has another shape"
    if options.layers_per_link is not None:
        yield f"{given} does not go with method.layers_per_link: the link before trained other layers"
    if frozen == "random":
        yield f"{given} does not go with method.frozen_factor=random: the link before may have trained the other factor"
    if options.link_state == "prune" and config.trainer.optimizer != "adamw":
        yield f"{given} needs trainer.optimizer=adamw, whose moments it prunes"
    if options.link_state == "rotate" and (frozen not in ("A", "B") or config.trainer.optimizer != "adamw"):
        yield f"{given} needs method.frozen_factor=A or B, and trainer.optimizer=adamw"


@METHODS.register("chain_lora_ga")
class ChainLoraGA(Chain, LoraGA):
    """A chain whose every link is a LoRA-GA: the base with the earlier links gives the gradient of the next one."""

    class Options(LoraGAOptions, ChainOptions):
        """Chained LoRA-GA."""

        type: Literal["chain_lora_ga"] = "chain_lora_ga"

    example = ("method.links=2", "trainer.max_steps=8")


@METHODS.register("chain")
class ChainLora(Chain, ZeroInitLora):
    """A chain of LoRAs whose product is zero when a link begins: one factor is drawn anew, or follows the gradient."""

    class Options(ZeroInitOptions, ChainOptions):
        """COLA, RAC-LoRA, XGBLoRA, ReLoRA, and GaLore as a chain."""

        type: Literal["chain"] = "chain"

    @property
    def example(self) -> tuple[str, ...]:  # type: ignore[override]
        length = "method.link_steps=4" if self.options.link_steps is not None else "method.links=2"
        return (length, "trainer.max_steps=8")

    def describe_init(self) -> str:
        layers = self.options.layers_per_link
        return super().describe_init() + (f", {layers} layers drawn" if layers is not None else "")
