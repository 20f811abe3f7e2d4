"""The section ``gradient``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from lora_ga_cli.config.schema.section import Section
from lora_ga_cli.config.schema.values import Positive
from lora_ga_cli.errors import suggest
from lora_ga_cli.registry import ESTIMATORS


def _registered_estimator(name: str) -> str:
    if ESTIMATORS.find(name) is None:
        raise ValueError(f"names no gradient estimator; {suggest(name, ESTIMATORS.names())}")
    return name


class GradientConfig(Section):
    """How the gradient of the base model is estimated before training."""

    estimator: Literal["sketch", "exact"] | Annotated[str, AfterValidator(_registered_estimator)] = "sketch"
    """``sketch`` estimates the gradient's leading singular vectors during backpropagation, in a few hundred megabytes
    for a base model of any size. ``exact`` accumulates the full gradient of each target layer in float32.
    Another name is that of an estimator which a user's file registers."""
    passes: Annotated[int, Field(ge=1, le=8)] = 1
    """Passes of the sketch over the same rows. Each pass after the first is a power iteration, which makes the error
    smaller."""
    samples: Positive = 64
    """Number of training rows that the gradient is averaged over."""
    max_tokens: Positive | None = None
    """The most tokens of a forward and backward pass, padding included. Null: no limit but ``micro_batch_size``."""
    micro_batch_size: Positive = 8
    """Rows per forward and backward pass. It changes the memory that is needed; the result changes by no more than the
    estimator's error. It is halved when memory runs out."""
    capacity: Positive | None = None
    """Singular vectors that are stored for each target layer. They serve every rank up to half of this number. Null:
    twice the largest rank that a layer may get, and at least 32."""
    dropout: bool = False
    """Keep the model's dropout active during the estimation."""
    offload: bool = False
    """Accumulate the gradient of ``exact`` in CPU memory instead of on the model's device."""
