"""Measures that need neither a model nor data: what they compute depends on a few options of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ValidationError

from lora_ga_cli.config.overrides import COMMAND_LINE, parse_overrides
from lora_ga_cli.config.schema import Section
from lora_ga_cli.config.wording import what_is_wrong
from lora_ga_cli.errors import Fault, InvalidInput, suggest
from lora_ga_cli.reproduce.measures.base import Measure


class CellOptions(Section):
    """The options of a cell. A subclass adds those of its measure."""

    seed: int = 42
    """Seed of everything that is drawn."""
    largest_rank: ClassVar[int] = 0
    """Such cells are made in the order of the table."""


class ModelFreeMeasure(Measure):
    """A measure whose cells are no configurations of a training.

    The overrides in a table's file, and those of the command line, are ``option=value`` for `Options`. `compute` gets
    these options, and so does `forecast`, as its ``inputs``.
    """

    trains = False
    needs_model = False
    Options: ClassVar[type[CellOptions]]

    @classmethod
    def configure(cls, overrides: Sequence[str], user_dir: Path | None = None) -> CellOptions:
        values, faults = _values(overrides)
        try:
            options = cls.Options.model_validate(values)
        except ValidationError as error:
            faults += [cls._fault(item) for item in error.errors()]
        if faults:
            raise InvalidInput(faults)
        return options

    @classmethod
    def faults_of(cls, overrides: Sequence[str], user_dir: Path | None = None) -> list[Fault]:
        values, faults = _values(overrides)
        try:
            cls.Options.model_validate(values)
        except ValidationError as error:
            # What options rule out together can be judged only for a complete cell, and has no place.
            faults += [cls._fault(item) for item in error.errors() if item["loc"]]
        return faults

    @classmethod
    def _fault(cls, error: Any) -> Fault:
        name = ".".join(map(str, error["loc"]))
        if error["type"] == "extra_forbidden":
            return Fault(COMMAND_LINE, f"no option {name!r}", suggest(name, cls.Options.model_fields))
        problem = what_is_wrong(error)
        return Fault(COMMAND_LINE, f"{name}={error['input']} {problem}" if name else problem)


def _values(overrides: Sequence[str]) -> tuple[dict[str, Any], list[Fault]]:
    """The value of each option, and a fault for each text that gives an option no value."""
    parsed, faults = parse_overrides(overrides)
    for override in parsed:
        if override.is_sweep_override() or override.is_delete():
            what = f"{override.input_line}: such a table takes one value for each option"
            faults.append(Fault(COMMAND_LINE, what, "write option=value"))
    values = {item.key_or_group: item.value() for item in parsed if not item.is_sweep_override()}
    return values, faults
