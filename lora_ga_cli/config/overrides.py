"""The command line: Hydra's flags, and overrides of options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from lora_ga_cli.config.aliases import RENAMED
from lora_ga_cli.errors import Fault, InvalidInput

COMMAND_LINE = "command line"
REFUSED_FLAGS = ("config_path", "config_name", "experimental_rerun")
"""Hydra's flags that would have it read files that were not checked here, or run what was pickled."""
PASSED_FLAGS = ("cfg", "package", "info", "resolve", "run", "multirun", "shell_completion", "hydra_help")
"""Hydra's flags that are handed to it."""
CFG_CHOICES = ("job", "hydra", "all")
MODE_FLAGS = ("run", "multirun", "cfg", "info", "shell_completion")
"""Hydra's flags of which only one can be given."""
INFO_CHOICES = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")

MOST_VALUES = 100_000
"""Values that a range in a sweep may have; Hydra would make a list of any number of them."""


class _Parser(argparse.ArgumentParser):
    """A parser of Hydra's flags, which raises where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise InvalidInput([Fault(COMMAND_LINE, message.removeprefix("argument "), "see --help")])


def _parser() -> _Parser:
    parser = _Parser(add_help=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--cfg", "-c", choices=CFG_CHOICES)
    parser.add_argument("--info", "-i", const="all", nargs="?", choices=INFO_CHOICES)
    parser.add_argument("--package", "-p")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-path", "-cp")
    parser.add_argument("--config-name", "-cn")
    parser.add_argument("--experimental-rerun")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--run", "-r", action="store_true")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    parser.add_argument("--hydra-help", action="store_true")
    return parser


def parse_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses overrides and flags, in any order; what is neither comes second.

    Raises:
        InvalidInput: a flag has a wrong value, or none.
    """
    return _parser().parse_known_intermixed_args(list(arguments))


def refused_flags(parsed: argparse.Namespace, others: Iterable[str]) -> Iterator[Fault]:
    """Faults for unknown flags, for flags that exclude each other, and for flags that loraga does not hand to Hydra."""
    for flag in others:
        if flag.startswith("-"):
            option = RENAMED.get(flag.lstrip("-").partition("=")[0].replace("-", "_"), "")
            hint = f"write {option}=…" if re.fullmatch(r"[a-z_.]+", option) else option or "see --help"
            yield Fault(COMMAND_LINE, f"no option {flag}", hint)
    modes = [f"--{name.replace('_', '-')}" for name in MODE_FLAGS if getattr(parsed, name)]
    if len(modes) > 1:
        yield Fault(COMMAND_LINE, f"{' and '.join(modes)} do not go together", "give one of them")
    for name in REFUSED_FLAGS:
        if getattr(parsed, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            yield Fault(COMMAND_LINE, f"{flag} is refused", "--config-dir DIR adds recipes and choices")


def flags_of(parsed: argparse.Namespace) -> Iterator[str]:
    """Hydra's flags, as they are handed to it. The configuration of a job is shown with its interpolations filled in:
    as the job would get it."""
    parsed.resolve = parsed.resolve or parsed.cfg == "job"
    for name in PASSED_FLAGS:
        value = getattr(parsed, name)
        if value:
            yield f"--{name.replace('_', '-')}"
        if isinstance(value, str):
            yield value


def parse_overrides(texts: Sequence[str]) -> tuple[list[Override], list[Fault]]:
    """The overrides among ``texts``, and a fault for each text that is not an override."""
    overrides, faults = [], []
    for text in texts:
        try:
            overrides.append(parse_override(text))
        except HydraException:
            faults.append(Fault(COMMAND_LINE, f"cannot read {text!r}", how_to_write(text)))
    return overrides, faults


@lru_cache(maxsize=4096)
def parse_override(text: str) -> Override:
    """Parses ``option=value`` by Hydra's grammar.

    Raises:
        HydraException: the text is not an override.
    """
    try:
        override = OverridesParser.create().parse_override(text)
        if override.is_range_sweep() and len(list(islice(override.sweep_iterator(), MOST_VALUES + 1))) > MOST_VALUES:
            raise HydraException(f"more than {MOST_VALUES:,} values")
    except (RecursionError, ValueError, ArithmeticError) as error:
        # nested too deep; a number of thousands of digits; a range in steps of 0, or to infinity
        raise HydraException(str(error)) from error
    return override


def how_to_write(text: str) -> str:
    """The hint for a text that is not an override."""
    option, given, value = text.partition("=")
    if not given:
        return "write option=value"
    written = quoted(option, value)
    try:
        if any(sign in value for sign in "'\"{}"):
            raise HydraException
        parse_override(written.strip('"'))
    except HydraException:
        return "quote values with spaces or , : { } [ ] inside: 'option=\"value\"'"
    return f"quote it: {written}"


def quoted(option: str, value: str) -> str:
    """``option=value`` as it is typed in a shell, where Hydra cannot read the value, or an item of a list, bare."""
    if value.startswith("[") and value.endswith("]"):
        items = (item.strip() for item in value[1:-1].split(","))
        return f'"{option}=[{",".join(map(repr, items))}]"'
    return f"\"{option}='{value}'\""


def is_hydras(key: str) -> bool:
    """Whether an override's key is an option of Hydra itself."""
    return key == "hydra" or key.startswith(("hydra.", "hydra/"))


def values_of(override: Override, choices: Iterable[str] = ()) -> list[Any]:
    """The values that an override gives: one, or each of a sweep, or for a pattern the ``choices`` that match it."""
    value = override.value()
    if isinstance(value, Glob):
        return list(value.filter(sorted(choices)))
    if not override.is_sweep_override():
        return [value]
    plain = (getattr(item, "text", item) for item in override.sweep_iterator()) if override.is_discrete_sweep() else ()
    return list(plain)
