"""The options of a cell that shows theory: a problem, and how a chain of low-rank updates is made on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lora_ga_cli.config.schema import Positive
from lora_ga_cli.reproduce.measures.model_free import CellOptions


class ConvergenceOptions(CellOptions):
    """A chain on a problem."""

    problem: Literal["distance", "quadratic", "logistic", "network"] = "distance"
    """``distance``: ½‖W - W*‖². ``quadratic``: ½⟨W - W*, (W - W*) H⟩ of condition 5. Both are 10 × 20. ``logistic``:
    regularized logistic regression with 5 classes. ``network``: two layers, which is not convex."""
    trains: Literal["weight", "one_factor", "both_factors"] = "one_factor"
    """What a link trains: W itself, one factor while the other one is frozen, or both."""
    restarts: bool = True
    """Whether each link draws new factors. If not, all links go on with those of the first."""
    side: Literal["right", "left", "either"] = "right"
    """The frozen factor: A (``right``), B (``left``), or one of them at random for each link."""
    sketch: Literal["gaussian", "orthonormal", "kaiming"] = "orthonormal"
    """How a factor is drawn."""
    rank: Positive = 4
    """Rank of a link."""
    solver: Literal["step", "descent", "exact"] = "step"
    """How a link trains: the step of the theory; ``steps`` steps of gradient descent; or both factors to the best
    product, which is known for a quadratic."""
    steps: Positive = 10
    """Steps of gradient descent in a link."""
    rate: Annotated[float, Field(gt=0, lt=2)] = 1.0
    """The rate γ, times the smoothness L of the problem."""
    size: Annotated[float, Field(gt=0)] = 1.0
    """A number that every drawn A is multiplied by, where both factors train."""
    clients: Positive = 1
    """Clients that the rows are divided among, unequally. Each trains the free factor, and the factors are averaged."""
    links: Positive = 60
    """Links of a chain."""
    draws: Positive = 64
    """Chains with draws of their own; errors are means over them."""

    @model_validator(mode="after")
    def _go_together(self) -> ConvergenceOptions:
        faults = [*self._impossible(), *self._without_effect()]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _impossible(self) -> Iterator[str]:
        """Describes options that rule each other out."""
        if self.trains == "both_factors" and self.solver == "step":
            yield "solver=step trains one factor: trains=both_factors needs descent or exact"
        if self.solver == "exact" and (self.trains != "both_factors" or self.problem not in ("distance", "quadratic")):
            yield "solver=exact needs trains=both_factors and problem=distance or quadratic"
        if self.clients > 1 and (self.trains != "one_factor" or self.problem != "logistic"):
            yield "clients need trains=one_factor and problem=logistic, which has rows"

    def _without_effect(self) -> Iterator[str]:
        """Describes options that differ from their defaults and change nothing."""
        fields = type(self).model_fields
        for name, acts, reason in (
            ("restarts", self.trains != "weight", "trains=weight draws no factors"),
            ("restarts", self.solver != "exact", "solver=exact ends a link"),
            ("side", self.trains == "one_factor", "trains=one_factor alone freezes a factor"),
            ("side", self.side != "either" or self.restarts, "with restarts=false nothing is drawn for each link"),
            ("sketch", self.trains != "weight" and self.solver != "exact", "no factor is drawn"),
            ("rank", self.trains != "weight", "trains=weight has no rank"),
            ("solver", self.trains != "weight", "trains=weight always takes a step of gradient descent"),
            ("steps", self.solver == "descent", "only solver=descent takes several steps"),
            ("rate", self.solver != "exact", "solver=exact has no rate"),
            ("size", self.trains == "both_factors", "a frozen factor's size is divided out"),
            ("size", self.solver != "exact", "solver=exact draws no factor"),
        ):
            if not acts and (value := getattr(self, name)) != fields[name].default:
                yield f"{name}={str(value).lower()} would change nothing: {reason}"
