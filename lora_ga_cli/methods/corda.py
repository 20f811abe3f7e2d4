"""CorDA (arXiv 2406.05223): A and B are initialized from the weight, seen through the covariance of its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from peft import LoraConfig
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import Tensor
from transformers import PreTrainedModel

from lora_ga_cli.config.schema import Config
from lora_ga_cli.lora.offset import InitialPair
from lora_ga_cli.lora.peft_init import peft_factors
from lora_ga_cli.methods.base import InitData, Link
from lora_ga_cli.methods.nonzero_init import NonzeroInit, NonzeroInitOptions
from lora_ga_cli.methods.rank_allocation import allocates
from lora_ga_cli.model.quantization import dense
from lora_ga_cli.model.targets import Target, check_rank, configured_ranks, shortest_names
from lora_ga_cli.registry import METHODS


@METHODS.register("corda")
class Corda(NonzeroInit):
    """CorDA, computed by PEFT on the rows that the gradient of other methods is estimated from (``gradient.samples``).

    With the covariance C = E[x xᵀ] (d_in, d_in) of a layer's inputs and W C = U S Vᵀ, the factors are
    ``B0 = U sqrt(S/s)`` and ``A0 = sqrt(S/s) Vᵀ C⁻¹`` of some of the triplets. PEFT divides the inputs of each row by
    their largest entry before it averages. While it is computed, the covariance takes float32 memory of the size of the
    targets or more.
    """

    class Options(NonzeroInitOptions):
        """CorDA (arXiv 2406.05223)."""

        type: Literal["corda"] = "corda"
        mode: Literal["ipm", "kpm"] = "ipm"
        """``ipm`` (instruction-previewed) takes the leading triplets, which the rows use most. ``kpm``
        (knowledge-preserved) takes the last ones, so that what other rows use stays in the base."""

    @property
    def initializes_from_rows(self) -> bool:
        return True

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        yield from super().check(config)
        if config.model.task == "seq2seq_lm":
            yield "model.task=seq2seq_lm does not go with method.type=corda, which reads the inputs of one sequence"
        if allocates(config):
            yield "method.rank_allocation does not go with method.type=corda, which decomposes layers at given ranks"
        if config.model.shard:
            yield "model.shard=true does not go with method.type=corda, which decomposes complete weights"
        if config.model.quantization is not None:
            yield f"model.quantization={config.model.quantization} does not go with method.type=corda in PEFT"

    def source(self, model: PreTrainedModel, targets: Mapping[str, Target], data: InitData) -> Any:
        config = self.config
        ranks = configured_ranks(targets, config.rank, config.rank_pattern)
        for name, target in targets.items():
            check_rank({name: target.shape}, ranks[name], ranks[name])
        described = LoraConfig(
            r=config.rank,
            rank_pattern=ranks,
            target_modules=shortest_names(model, targets),
            init_lora_weights="corda",
            corda_config=CordaConfig(corda_method=self.options.mode, verbose=False),
        )

        def run() -> None:
            for batch in data.batches():
                for row in single_rows(batch):
                    model(**row)

        preprocess_corda(model, described, run)
        return {name: vars(target.module).pop("eigens") for name, target in targets.items()}

    def pairs(self, link: Link, source: Any) -> InitialPair:
        def pair(name: str, target: Target, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
            return peft_factors(dense(target), rank, scaling, "corda", eigens=source[name])

        return pair

    def describe_source(self) -> str:
        return f"the weights and the covariance of their inputs ({self.options.mode})"


def single_rows(batch: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The rows of a batch one by one, each without its padding, since PEFT averages over all positions it sees."""
    mask = batch.get("attention_mask")
    for number in range(len(batch["input_ids"])):
        row = {name: item[number : number + 1] for name, item in batch.items() if name != "labels"}
        if mask is not None:
            kept = torch.nonzero(mask[number]).flatten()
            row = {name: item[:, kept] for name, item in row.items()}
        yield row
