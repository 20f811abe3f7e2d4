"""Mean gradients as full matrices, which the measure ``similarity`` compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from lora_ga_cli.gradient.estimate import estimate_gradients
from lora_ga_cli.gradient.estimators.exact import ExactEstimator
from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.model.targets import find_targets
from lora_ga_cli.stages.estimate import sample
from lora_ga_cli.stages.inputs import Inputs


def mean_gradients(inputs: Inputs) -> Mapping[str, Tensor]:
    """The mean gradient (d_out, d_in) of every target layer over ``gradient.samples`` rows, on the CPU."""
    config, rows = inputs.config, sample(inputs)
    model = inputs.load_model(to_train=True)
    size = config.gradient.micro_batch_size
    batches = (inputs.collator(rows[begin : begin + size]) for begin in range(0, len(rows), size))
    targets = list(find_targets(model, config.target_modules))
    estimator = _FullGradients()
    estimate_gradients(model, batches, target_modules=targets, capacity=1, estimator=estimator)
    del model
    clear_device_cache(garbage_collection=True)
    return estimator.gradients


class _FullGradients(ExactEstimator):
    """Keeps the mean gradients (d_out, d_in) themselves, on the CPU, and computes no factors."""

    def __init__(self) -> None:
        super().__init__(offload=True)
        self.gradients: Mapping[str, Tensor] = {}

    def factors(self, total: float) -> Iterator[tuple[str, Factors]]:
        self.gradients = dict(self.means(total))
        return iter(())
