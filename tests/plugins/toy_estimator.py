"""An estimator of the gradient in one file: ``loraga estimate-grad --code toy_estimator.py gradient.estimator=sign``.

It keeps the sign of each entry of the exact gradient, as a step of sign descent would.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from lora_ga_cli.gradient.estimators.exact import ExactEstimator
from lora_ga_cli.registry import ESTIMATORS


@ESTIMATORS.register("sign")
class SignEstimator(ExactEstimator):
    """The signs of the mean gradient."""

    name = "sign"

    def means(self, total: float) -> Iterator[tuple[str, Tensor]]:
        for name, grad in super().means(total):
            yield name, grad.sign()
