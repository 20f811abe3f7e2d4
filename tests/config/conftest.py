"""Fixtures of the configuration's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from lora_ga_cli.config.schema import Config, MethodOptions, Positive, Section
from lora_ga_cli.methods.base import Method
from lora_ga_cli.registry import METHODS


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, where no file stands in an option's way."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class ToySchedule(Section):
    """A group of options inside a method."""

    interval: Positive = 10
    """Steps between two changes."""


class ToyOptions(MethodOptions):
    """The options of the first toy method."""

    type: Literal["toy"] = "toy"
    """The kind of method."""
    width: Positive = 4
    """A number."""
    shared: Annotated[float, Field(gt=0)] = 1.0
    """An option that both toys have, with two defaults."""


class OtherToyOptions(MethodOptions):
    """The options of the second toy method."""

    type: Literal["other_toy"] = "other_toy"
    """The kind of method."""
    shared: Annotated[float, Field(gt=0)] = 2.0
    """An option that both toys have, with two defaults."""
    schedule: ToySchedule = ToySchedule()
    weights: dict[str, float] = Field(default_factory=dict)
    """A mapping."""


class Toy(Method):
    """A method that uses every option for adapters but ``rank_pattern``."""

    Options = ToyOptions
    uses = frozenset({"rank", "alpha", "target_modules", "adapter_dropout"})

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        assert isinstance(config.method, ToyOptions)
        if config.method.width > config.rank:
            yield f"method.width={config.method.width} is larger than rank={config.rank}"


class OtherToy(Method):
    """A method that uses no option for adapters."""

    Options = OtherToyOptions
    uses = frozenset[str]()

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        yield from ()


@pytest.fixture
def toy_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers the methods ``toy`` and ``other_toy`` for one test."""
    METHODS.names()
    monkeypatch.setattr(METHODS, "_classes", dict(METHODS._classes))
    METHODS.register("toy")(Toy)
    METHODS.register("other_toy")(OtherToy)
