"""Estimators are found by name, and built from the options of the configuration."""

from __future__ import annotations

import pytest

from lora_ga_cli.config.schema import GradientConfig
from lora_ga_cli.errors import InvalidInput
from lora_ga_cli.gradient.estimators.exact import ExactEstimator
from lora_ga_cli.gradient.estimators.sketch import SketchEstimator
from lora_ga_cli.registry import ESTIMATORS


def test_every_estimator_is_registered_under_its_name() -> None:
    assert ESTIMATORS.names() == ["exact", "sketch"]
    assert {name: ESTIMATORS[name].name for name in ESTIMATORS.names()} == {"exact": "exact", "sketch": "sketch"}


def test_estimators_read_their_options() -> None:
    sketch = ESTIMATORS["sketch"].from_options(GradientConfig(passes=3))
    exact = ESTIMATORS["exact"].from_options(GradientConfig(estimator="exact", offload=True))
    assert isinstance(sketch, SketchEstimator)
    assert sketch.passes == 3
    assert isinstance(exact, ExactEstimator)
    assert (exact.passes, exact.offload) == (1, True)


def test_a_misspelled_estimator_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(InvalidInput, match=r"no gradient estimator 'skech' \(did you mean sketch\?\)"):
        ESTIMATORS["skech"]
