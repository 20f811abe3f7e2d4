"""The measure ``similarity``: how close the gradient of a few rows is to that of many (LoRA-GA, section 4.4)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_ga_cli.json_files import sha256_json
from lora_ga_cli.registry import MEASURES
from lora_ga_cli.reproduce.measures.base import Cost, Measure, estimation_cost

if TYPE_CHECKING:
    from torch import Tensor

    from lora_ga_cli.config.schema import Config
    from lora_ga_cli.model.forecast import Pace
    from lora_ga_cli.stages.inputs import Inputs

REFERENCE_ROWS = 2048
"""Rows of the reference gradient, or all rows if there are fewer (LoRA-GA, section 4.4)."""


@MEASURES.register("similarity")
class Similarity(Measure):
    """``sign`` and ``magnitude`` similarity of the gradient of ``gradient.samples`` rows to the reference gradient,
    each a mean over layers.

    The few rows are the first of the many, as they would be in training.
    """

    trains = False

    def __init__(self) -> None:
        self._reference: Mapping[str, Tensor] | None = None

    def compute(self, config: Config) -> dict[str, Any]:
        from lora_ga_cli.gradient.similarity import magnitude_similarity, sign_similarity
        from lora_ga_cli.reproduce.mean_gradients import mean_gradients
        from lora_ga_cli.stages.inputs import prepare_inputs

        inputs = prepare_inputs(config)
        if self._reference is None:
            self._reference = mean_gradients(replace(inputs, config=with_reference_rows(config)))
        sampled = mean_gradients(inputs)
        pairs = [(sampled[name], self._reference[name]) for name in sampled]
        return {
            "sign": statistics.mean(sign_similarity(*pair) for pair in pairs),
            "magnitude": statistics.mean(magnitude_similarity(*pair) for pair in pairs),
        }

    def forecast(self, inputs: Inputs, pace: Pace) -> Cost:
        config = inputs.config
        exact = config.gradient.model_copy(update={"estimator": "exact", "offload": True})
        cost = estimation_cost(replace(inputs, config=config.model_copy(update={"gradient": exact})), pace)
        return replace(cost, seconds=cost.seconds * (1 + REFERENCE_ROWS / config.gradient.samples))

    def shared_work(self, config: Config) -> str:
        return sha256_json(with_reference_rows(config).model_dump(mode="json"))


def with_reference_rows(config: Config) -> Config:
    """A configuration whose gradient is that of `REFERENCE_ROWS` rows."""
    return config.model_copy(update={"gradient": config.gradient.model_copy(update={"samples": REFERENCE_ROWS})})
