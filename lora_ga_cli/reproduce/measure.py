"""Filling one cell of a table: train and score, or measure the gradient."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from lora_ga_cli.config.schema import Config
from lora_ga_cli.files import sha256_json
from lora_ga_cli.gradient.estimate import estimate_gradients
from lora_ga_cli.gradient.estimators.exact import ExactEstimator
from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.gradient.similarity import magnitude_similarity, sign_similarity
from lora_ga_cli.model.targets import find_targets
from lora_ga_cli.stages.candidates import of_run
from lora_ga_cli.stages.estimate import estimate, sample
from lora_ga_cli.stages.evaluate import evaluate
from lora_ga_cli.stages.inputs import Inputs, prepare_inputs
from lora_ga_cli.stages.train import train

REFERENCE_ROWS = 2048
"""Rows of the gradient that others are compared with, or all there are (LoRA-GA, section 4.4)."""


def fill(config: Config, measure: str) -> dict[str, Any]:
    """Does what a cell's measure says.

    Returns:
        The values by name, and with a run its folder.

    Raises:
        UserError: of any stage.
    """
    if measure != "similarity":
        _REFERENCES.clear()
    return MEASURES[measure](config)


def _score(config: Config) -> dict[str, Any]:
    run = train(config)
    return evaluate(of_run(run, config))["values"] | {"run": str(run.path)}


def _loss(config: Config) -> dict[str, Any]:
    run = train(config)
    manifest = run.manifest
    found = {name: manifest[name] for name in ("training_loss", "validation_loss") if manifest[name] is not None}
    return found | {"run": str(run.path)}


def _coverage(config: Config) -> dict[str, Any]:
    """The share of ‖G‖² that the first ``2 · rank`` singular vectors hold: mean and least over layers."""
    shares = list(estimate(prepare_inputs(config)).energy(config.rank).values())
    return {"mean": statistics.mean(shares), "least": min(shares)}


def _similarity(config: Config) -> dict[str, Any]:
    """Sign and magnitude similarity of the gradient of ``gradient.samples`` rows with that of many; means over layers.

    The rows of the few are the first of the many, as they would be in training.
    """
    inputs = prepare_inputs(config)
    reference = _reference(inputs)
    found = _gradients(inputs)
    pairs = [(found[name], reference[name]) for name in found]
    return {
        "sign": statistics.mean(sign_similarity(*pair) for pair in pairs),
        "magnitude": statistics.mean(magnitude_similarity(*pair) for pair in pairs),
    }


_REFERENCES: dict[str, Mapping[str, Tensor]] = {}
"""The last one, for cells that follow each other."""


def _reference(inputs: Inputs) -> Mapping[str, Tensor]:
    """The gradient of `REFERENCE_ROWS` rows, by layer."""
    many = of_many(inputs.config)
    key = sha256_json(many.model_dump(mode="json"))
    if key not in _REFERENCES:
        _REFERENCES.clear()
        _REFERENCES[key] = _gradients(replace(inputs, config=many))
    return _REFERENCES[key]


def of_many(config: Config) -> Config:
    """A configuration with `REFERENCE_ROWS` for its gradient: cells that agree in it are compared with the same one."""
    return config.model_copy(update={"gradient": config.gradient.model_copy(update={"samples": REFERENCE_ROWS})})


MEASURES: dict[str, Callable[[Config], dict[str, Any]]] = {
    "score": _score,
    "loss": _loss,
    "coverage": _coverage,
    "similarity": _similarity,
}
"""By `Column.measure`."""


class _Whole(ExactEstimator):
    """Keeps the mean gradients (d_out, d_in) themselves, on the CPU."""

    def __init__(self) -> None:
        super().__init__(offload=True)
        self.grads: Mapping[str, Tensor] = {}

    def factors(self, total: float) -> Iterator[tuple[str, Factors]]:
        self.grads = dict(self.means(total))
        return iter(())


def _gradients(inputs: Inputs) -> Mapping[str, Tensor]:
    config, rows = inputs.config, sample(inputs)
    model = inputs.load_model(to_train=True)
    size = config.gradient.micro_batch_size
    estimator = _Whole()
    batches = (inputs.collator(rows[begin : begin + size]) for begin in range(0, len(rows), size))
    targets = list(find_targets(model, config.target_modules))
    estimate_gradients(model, batches, target_modules=targets, capacity=1, estimator=estimator)
    del model
    clear_device_cache(garbage_collection=True)
    return estimator.grads
