"""Chains: a run of several links. Each link is a separate low-rank adapter on the base with all earlier links.

A link has its own gradient (of the base with what was trained before), initial factors, optimizer and checkpoints. What
is saved in the end is the sum of all links as one standard LoRA adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from lora_ga_cli.config.schema import Config, MethodOptions, Positive
from lora_ga_cli.errors import TargetError
from lora_ga_cli.methods.base import Method
from lora_ga_cli.methods.lora_ga import LoraGA, LoraGAOptions
from lora_ga_cli.registry import METHODS


class ChainOptions(MethodOptions):
    """Options of every chain."""

    links: Annotated[int, Field(ge=2)] = 3
    """Number of links. The optimizer steps and the rows are divided among them."""
    link_schedule: Literal["link", "run"] = "link"
    """The learning rate's schedule. ``link``: every link has one, with warm-up. ``run``: one for the complete run."""
    merged_rank: Positive | None = None
    """Rank that the sum of the links is truncated to when it is saved; the error is shown. Null keeps the sum of the
    ranks, which is exact."""


class Chain(Method):
    """The base class of every chain. It is combined with a LoRA method, which makes each link."""

    def link_count(self, steps: int) -> int:
        return int(self.options.links)

    @property
    def continues_schedule(self) -> bool:
        return bool(self.options.link_schedule == "run")

    @property
    def merged_rank(self) -> int | None:
        rank = self.options.merged_rank
        return None if rank is None else int(rank)

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
        if getattr(options, "use_dora", False):
            yield "method.use_dora=true does not go with a chain: magnitudes of several links do not add up"
        if config.trainer.max_steps is not None and config.trainer.max_steps < options.links:
            yield f"trainer.max_steps={config.trainer.max_steps} is less than method.links={options.links}"

    def check_steps(self, steps: int) -> None:
        if steps < self.options.links:
            raise TargetError(
                f"method.links={self.options.links} needs at least as many optimizer steps, and this run has "
                f"{steps}: use more rows, trainer.epochs or trainer.max_steps, or fewer links"
            )

    def describe_saved(self, size: int) -> str:
        truncated = "" if self.merged_rank is None or size > self.merged_rank else ", truncated to that rank"
        return f"the sum of its links{truncated}"


@METHODS.register("chain_lora_ga")
class ChainLoraGA(Chain, LoraGA):
    """A chain whose every link is a LoRA-GA: the base with the earlier links gives the gradient of the next one."""

    class Options(LoraGAOptions, ChainOptions):
        """Chained LoRA-GA."""

        type: Literal["chain_lora_ga"] = "chain_lora_ga"

    example = ("method.links=2", "trainer.max_steps=8")
