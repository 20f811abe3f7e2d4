"""EVA (arXiv 2410.07170): A is initialized from each layer's inputs, and ranks follow the variance they explain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from peft import EvaConfig, LoraConfig, PeftModel
from peft.tuners.lora.eva import get_eva_state_dict
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from lora_ga_cli import distributed
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import RunError
from lora_ga_cli.lora.offset import LoraInit, compute_init
from lora_ga_cli.methods.base import InitData, Link
from lora_ga_cli.methods.lora import Lora, LoraOptions
from lora_ga_cli.methods.rank_allocation import allocates
from lora_ga_cli.model.targets import Target, check_rank, shortest_names
from lora_ga_cli.registry import METHODS


@METHODS.register("eva")
class Eva(Lora):
    """EVA, computed by PEFT on the rows that the gradient of other methods is estimated from (``gradient.samples``).

    The rows of A are the leading right singular vectors of a layer's inputs, from which PEFT's incremental SVD
    subtracts their mean; B is zero. The ranks of all layers add up to at most ``rank`` times their number. With
    ``adjust_scaling`` each layer keeps the s that the configured rank gives, whatever its own rank.
    """

    class Options(LoraOptions):
        """EVA (arXiv 2410.07170)."""

        type: Literal["eva"] = "eva"
        rho: Annotated[float, Field(ge=1)] = 2.0
        """The largest rank of a layer, as a multiple of ``rank``. With 1, every layer has the rank ``rank``."""
        tau: Annotated[float, Field(ge=0, le=1)] = 0.99
        """The cosine similarity between the vectors of two batches above which they count as converged."""
        use_label_mask: bool = True
        """Look at the inputs of positions whose own token is learned, and not at those of the prompt."""
        adjust_scaling: bool = True
        """Keep each layer's s where its rank is another than ``rank``."""

    @property
    def initializes_from_rows(self) -> bool:
        return True

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        yield from super().check(config)
        if config.model.task == "seq2seq_lm":
            yield "model.task=seq2seq_lm does not go with method.type=eva, which reads the inputs of one sequence"
        if allocates(config):
            yield "method.rank_allocation does not go with method.type=eva, which chooses ranks itself"
        options: Any = config.method
        if config.rank_pattern:
            yield "rank_pattern does not go with method.type=eva, which chooses the rank of every layer"
        if config.model.shard:
            yield "model.shard=true does not go with method.type=eva"
        if config.model.task == "sequence_classification" and options.use_label_mask:
            yield f"model.task={config.model.task} has no labels by position: method.use_label_mask=false"

    def source(self, model: PreTrainedModel, targets: Mapping[str, Target], data: InitData) -> Any:
        options, config = self.options, self.config
        if distributed.count() > 1:
            raise RunError(
                "EVA would find other ranks in each process: run loraga init with the same options in one process, and "
                "train with several after that"
            )
        largest = int(options.rho * config.rank)
        check_rank({name: target.shape for name, target in targets.items()}, config.rank, largest)
        described = LoraConfig(
            r=config.rank,
            target_modules=shortest_names(model, targets),
            init_lora_weights="eva",
            eva_config=EvaConfig(rho=options.rho, tau=options.tau, use_label_mask=options.use_label_mask),
        )
        torch.manual_seed(config.seed)
        batches = list(data.batches())
        found = get_eva_state_dict(model, batches, peft_config=described, show_progress_bar=False)
        return {name: vectors.float().cpu() for name, vectors in found.items() if len(vectors)}

    def layer_ranks(self, targets: Mapping[str, Target], link: Link, source: Any = None) -> dict[str, int]:
        if source is None:  # before the inputs were looked at: the same number of parameters, about
            return super().layer_ranks(targets, link)
        return {name: len(source[name]) for name in targets if name in source}

    def alphas(self, ranks: Mapping[str, int]) -> dict[str, float]:
        if not self.options.adjust_scaling:
            return {}
        power = 0.5 if self.options.use_rslora else 1.0
        return {name: self.config.alpha * (rank / self.config.rank) ** power for name, rank in ranks.items()}

    def initialize(self, model: PeftModel, link: Link, source: Any, data: InitData) -> LoraInit | None:
        def pair(name: str, target: Target, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
            return source[name].contiguous(), torch.zeros(target.shape[0], rank)

        return compute_init(model, pair, offset="none")

    def describe_init(self) -> str:
        return "initialized from the layers' inputs (B zero)"
