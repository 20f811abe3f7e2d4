"""The command line, taken apart: Hydra's flags, and overrides."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NoReturn
from unittest import mock

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from lora_ga_cli.errors import Fault, InvalidInput

COMMAND_LINE = "command line"
REFUSED_FLAGS = ("config_path", "config_name", "experimental_rerun")
"""Flags of Hydra's that would have it read what is not checked here, or run what was pickled."""
PASSED_FLAGS = ("cfg", "package", "info", "resolve", "run", "multirun", "shell_completion", "hydra_help")


def parse_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Overrides and flags, in any order, and what is neither.

    Raises:
        InvalidInput: argparse's own complaints.
    """

    def refuse(message: str) -> NoReturn:
        raise InvalidInput([Fault(COMMAND_LINE, message.removeprefix("argument "), "see --help")])

    parser = get_args_parser()
    with mock.patch.object(parser, "error", refuse):
        return parser.parse_known_intermixed_args(list(arguments))


def refused_flags(parsed: argparse.Namespace, others: Iterable[str]) -> Iterator[Fault]:
    """Faults for flags that nobody has, or that loraga does not pass on."""
    for flag in others:
        if flag.startswith("-"):
            yield Fault(COMMAND_LINE, f"no option {flag}", "see --help")
    for name in REFUSED_FLAGS:
        if getattr(parsed, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            yield Fault(COMMAND_LINE, f"{flag} is refused", "--config-dir DIR adds recipes and choices")


def flags_of(parsed: argparse.Namespace) -> Iterator[str]:
    """Hydra's flags, as they are handed to it."""
    for name in PASSED_FLAGS:
        value = getattr(parsed, name)
        if value:
            yield f"--{name.replace('_', '-')}"
        if isinstance(value, str):
            yield value


def parse_overrides(texts: Sequence[str]) -> tuple[list[Override], list[Fault]]:
    """Overrides, and faults for texts that are none."""
    overrides, faults = [], []
    for text in texts:
        try:
            overrides.append(parse_override(text))
        except HydraException:
            faults.append(Fault(COMMAND_LINE, f"cannot read {text!r}", how_to_write(text)))
    return overrides, faults


@lru_cache(maxsize=4096)
def parse_override(text: str) -> Override:
    """
    Raises:
        HydraException: it is none.
    """
    return OverridesParser.create().parse_override(text)


def how_to_write(text: str) -> str:
    """The hint for a text that is no override."""
    quote = "quote values with spaces or , : { } [ ] inside: 'option=\"value\"'"
    return quote if "=" in text else "write option=value"


def is_hydras(key: str) -> bool:
    """Whether an override's key is an option of Hydra itself."""
    return key == "hydra" or key.startswith(("hydra.", "hydra/"))


def values_of(override: Override, choices: Iterable[str] = ()) -> list[Any]:
    """The value of an override, or every value of a sweep; of a pattern, the ``choices`` that match it."""
    value = override.value()
    if isinstance(value, Glob):
        return list(value.filter(sorted(choices)))
    if not override.is_sweep_override():
        return [value]
    plain = (getattr(item, "text", item) for item in override.sweep_iterator()) if override.is_discrete_sweep() else ()
    return list(plain)
