"""What a file of the configuration may not contain.

Recipes come from strangers. They are data: they choose and set options, and can neither name code, configure Hydra,
read the environment nor reach out of the folders they belong in. The command line, which the user types, may.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import GrammarParseError
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
from omegaconf.grammar_parser import parse  # OmegaConf has no other way to look into an interpolation

from lora_ga_cli.config.documents import Document, KeyPath, leaves, nested
from lora_ga_cli.config.overrides import how_to_write, is_hydras, parse_override
from lora_ga_cli.errors import Fault
from lora_ga_cli.paths import BUNDLED, PACKAGE

SAFE_RESOLVERS = frozenset({"oc.select", "oc.dict.keys", "oc.dict.values"})
"""Resolvers of OmegaConf that only look at the configuration itself."""
WRITE_PATHS = (("output_dir",), ("cache_dir",))
READ_PATHS = (
    ("model", "path"),
    ("model", "tokenizer"),
    ("dataset", "path"),
    ("dataset", "train_file"),
    ("dataset", "mix"),
    ("dataset", "data_files"),
    ("dataset", "validation_file"),
    ("dataset", "chat_template"),
    ("eval", "file"),
    ("eval", "judge", "prompts"),
    ("eval", "judge", "references"),
)
COMMAND_LINE_ONLY = (
    ("model", "trust_remote_code"),
    ("overwrite",),
    ("recipe",),
    ("eval", "execute_code"),
    ("eval", "endpoint", "base_url"),
    ("eval", "endpoint", "key_variable"),
    ("eval", "judge", "base_url"),
    ("eval", "judge", "key_variable"),
    ("trainer", "report_to"),
    ("trainer", "extra", "trackio_space_id"),
    ("trainer", "extra", "trackio_bucket_id"),
    ("trainer", "extra", "trackio_static_space_id"),
)
FOR_THE_COMMAND_LINE = "that is for the command line"
CONFIGURES_HYDRA = "a file cannot configure Hydra"
INSTALLED = (BUNDLED, PACKAGE)
"""Beginnings of paths to what is installed, which is read and never written."""


def unsafe(document: Document) -> list[Fault]:
    """Faults for everything in a file that a file may not do; see the module."""
    faults = []
    allowed = {"recipe": ("_global_",), "method": ("method", "_group_", "_global_")}
    header = document.header
    if header and header not in allowed.get(document.group, (document.group, "_group_")):
        faults.append(Fault(document.where(()), f"'@package {header}' would set options elsewhere", "remove it"))
    for path, value in leaves(document.data):
        where = document.where(path)
        if path == ("hydra",):
            faults.append(Fault(where, CONFIGURES_HYDRA, FOR_THE_COMMAND_LINE))
        full = (*document.package, *path)
        faults += [Fault(where, what, hint) for what, hint in _unsafe_value(full, value, reads=bool(document.package))]
    return faults


def unsafe_options(options: Sequence[str], place: str, *, reads_anywhere: bool = False) -> list[Fault]:
    """Faults for overrides that a file contains: the same as for these options in a recipe.

    Args:
        place: where the file has them.
        reads_anywhere: data and models may lie outside the working folder. What is written may not.
    """
    faults = [Fault(place, *problem) for option in options for problem in _unsafe_option(option, reads_anywhere)]
    return list(dict.fromkeys(faults))


def _unsafe_option(option: str, reads_anywhere: bool) -> Iterator[tuple[str, str]]:
    if option.startswith("-"):
        yield f"{option} is refused in a file", FOR_THE_COMMAND_LINE
        return
    try:
        override = parse_override(option)
    except HydraException:
        yield f"cannot read {option!r}", how_to_write(option)
        return
    key, path = override.key_or_group, tuple(override.key_or_group.split("."))
    if is_hydras(key) or override.package is not None:
        yield f"{option}: {CONFIGURES_HYDRA}", FOR_THE_COMMAND_LINE
    elif override.is_sweep_override():
        yield f"{option}: several values", "one value; [..., ...] is a list"
    elif path != ("recipe",):  # here it chooses a file
        for inside, value in leaves(nested(path, override.value())):
            yield from _unsafe_value(inside, value, reads=reads_anywhere)


def _unsafe_value(path: KeyPath, value: Any, *, reads: bool) -> Iterator[tuple[str, str]]:
    """What is wrong with an option in a file, and a hint.

    Args:
        path: in the configuration.
        reads: it may lie anywhere, if it names what is read.
    """
    name = ".".join(path)
    if re.fullmatch(r"_\w+_", path[-1]):
        yield f"{path[-1]} names code to run; a recipe is data", ""
    if path in COMMAND_LINE_ONLY and value:
        yield f"{name} is refused in a file", FOR_THE_COMMAND_LINE
    is_read = any(path[: len(read)] == read for read in READ_PATHS)
    is_path = path in WRITE_PATHS or (is_read and not reads)
    for text in _strings(value):
        yield from _unsafe_interpolations(text)
        if is_path and "${" in text:
            yield f"{name}={text}: a path in a file is written out", ""
        elif is_path and _leaves_folder(text, reads=is_read):
            yield f"{name}={text} leaves the working folder", f"give it on the command line: {name}=PATH"


def _unsafe_interpolations(text: str) -> Iterator[tuple[str, str]]:
    """What is wrong with the interpolations of a text, and a hint.

    They are parsed as OmegaConf does: a resolver may stand inside another, or have a name that is interpolated.
    """
    if "${" not in text:
        return
    try:
        pending: list[Any] = [parse(text)]
    except (GrammarParseError, RecursionError):
        yield f"cannot read {text!r}", "interpolations are written ${option}"
        return
    while pending:
        node = pending.pop()
        pending += getattr(node, "children", None) or []
        if isinstance(node, OmegaConfGrammarParser.InterpolationResolverContext):
            resolver = node.resolverName().getText()
            if resolver not in SAFE_RESOLVERS:
                yield f"${{{resolver}:…}} is refused in a file", f"allowed: {', '.join(sorted(SAFE_RESOLVERS))}"


def _strings(value: Any) -> list[str]:
    """The texts of a value, in lists too; those in a mapping are found at their own keys, unless it lies in a list."""
    if isinstance(value, str):
        return [value]
    items = value if isinstance(value, list) else ()
    return [text for item in items for text in _strings(list(item.values()) if isinstance(item, dict) else item)]


def _leaves_folder(text: str, *, reads: bool) -> bool:
    """Whether a path lies elsewhere than in the working folder, or, to read, in what is installed."""
    if text.startswith(INSTALLED) and not reads:
        return True
    if text.startswith(PACKAGE):
        text = text.removeprefix(PACKAGE).partition("/")[2]
    text = text.removeprefix(BUNDLED)
    parts = PurePosixPath(text).parts + PureWindowsPath(text).parts
    absolute = PurePosixPath(text).is_absolute() or bool(PureWindowsPath(text).drive or PureWindowsPath(text).root)
    return absolute or ".." in parts or text.startswith(("~", "file:", *INSTALLED))
