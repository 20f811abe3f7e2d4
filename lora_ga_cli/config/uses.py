"""Options that only some methods or tasks use: one that was given and would do nothing is said to the user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

from lora_ga_cli.config.options import KeyPath, as_typed, common_options, default_of, options_with
from lora_ga_cli.config.schema import Config
from lora_ga_cli.config.sources import Sources
from lora_ga_cli.errors import Fault

LOW_RANK = ("lora", "dora", "adalora")
MOVED = ("gradient", "gaussian", "pissa")


@dataclass(frozen=True)
class Use:
    """Where an option, or a section of them, does something.

    Args:
        conditions: an option that decides it, with the values that use it; all of them hold.
        example: a choice in which they do.
    """

    conditions: Mapping[str, tuple[str, ...]]
    example: str


USES = {
    "method.top_layers": Use({"method.train": ("top_layers",)}, "method=full_top_layers"),
    "method.prefix_length": Use({"method.adapter": ("prefix_embedding", "prefix_layer")}, "method=prefix_layer"),
    "method.adalora": Use({"method.adapter": ("adalora",)}, "method=adalora"),
    "method.direction": Use({"method.start": ("gradient",)}, "method=lora_ga"),
    "method.scale": Use({"method.start": ("gradient", "gaussian")}, "method=lora_ga"),
    "method.gamma": Use({"method.start": ("gradient", "gaussian"), "method.scale": ("stable",)}, "method=lora_ga"),
    "method.shift": Use({"method.start": MOVED}, "method=lora_ga"),
}
"""Options of a method: given to another they are a mistake."""


def unused(config: Config, sources: Sources) -> list[Fault]:
    """Faults for options that the command line or a recipe sets, and that do nothing.

    What a recipe sets for the method it chooses may stand there when the command line chooses another, and so may
    what is set for one of the methods of a sweep.
    """
    faults = []
    for path, decider, use in _idle(config, USES):
        place = sources.place(path)
        if place is None or place.of_group or sources.varies(decider) or place.order > sources.decided_at(decider):
            continue
        hint = f"it is of {'.'.join(decider)}={' or '.join(use.conditions['.'.join(decider)])}, such as {use.example}"
        faults.append(Fault(place.where, _said(config, path, decider), hint))
    return faults


SHARED = ("rank", "alpha", "target_modules")
"""Options that a recipe sets for whatever method it is run with: one that a method does not use is noted."""


def notes(config: Config) -> list[str]:
    """What to tell of options that the method has no use for, and that are none of its own."""
    fields = common_options()
    return [
        f"{name}={as_typed(getattr(config, name))} does nothing with method {config.method.name}"
        for name in SHARED
        if name not in config.shared_uses and getattr(config, name) != default_of(fields[(name,)])
    ]


def _idle(config: Config, uses: Mapping[str, Use]) -> Iterator[tuple[KeyPath, KeyPath, Use]]:
    """Options with another value than their default that do nothing, with the first option that decides so."""
    if config.method.type != "flat":
        return
    for path, field in options_with({"method": config.method.type, "eval": config.eval.task}).items():
        use = next((uses[name] for name in (".".join(path), ".".join(path[:-1])) if name in uses), None)
        if use is None or _value(config, path) == default_of(field):
            continue
        for name, values in use.conditions.items():
            decider = tuple(name.split("."))
            if _value(config, decider) not in values:
                yield path, decider, use
                break


def _said(config: Config, path: KeyPath, decider: KeyPath) -> str:
    option, other = (f"{'.'.join(name)}={as_typed(_value(config, name))}" for name in (path, decider))
    return f"{option} does nothing with {other}"


def _value(config: Config, path: KeyPath) -> object:
    value: object = reduce(getattr, path, config)
    return value
