"""What a file of the configuration may not contain.

Recipes come from strangers. They are data: they choose and set options, and can neither name code, configure Hydra,
read the environment nor reach out of the folders they belong in. The command line, which the user types, may.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from omegaconf.errors import GrammarParseError
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
from omegaconf.grammar_parser import parse

from lora_ga_cli.config.documents import Document, leaves
from lora_ga_cli.errors import Fault
from lora_ga_cli.files import BUNDLED

SAFE_RESOLVERS = frozenset({"oc.select", "oc.dict.keys", "oc.dict.values"})
"""Resolvers of OmegaConf that only look at the configuration itself."""
WRITE_PATHS = (("output_dir",), ("cache_dir",))
READ_PATHS = (
    ("model", "path"),
    ("model", "tokenizer"),
    ("dataset", "path"),
    ("dataset", "train_file"),
    ("dataset", "validation_file"),
    ("eval", "file"),
    ("eval", "judge", "prompts"),
    ("eval", "judge", "references"),
)
COMMAND_LINE_ONLY = (
    ("model", "trust_remote_code"),
    ("overwrite",),
    ("recipe",),
    ("eval", "execute_code"),
    ("eval", "judge", "base_url"),
    ("eval", "judge", "key_variable"),
)
COMMAND_LINE = "that is for the command line"


def unsafe(document: Document) -> list[Fault]:
    """Faults for everything in a file that a file may not do; see the module."""
    faults = []
    allowed = {"recipe": ("_global_",), "method": ("method", "_group_", "_global_")}
    header = document.header
    if header and header not in allowed.get(document.group, (document.group, "_group_")):
        faults.append(Fault(document.where(()), f"'@package {header}' would set options elsewhere", "remove it"))
    for path, value in leaves(document.data):
        where, key = document.where(path), path[-1]
        if path == ("hydra",):
            faults.append(Fault(where, "a file cannot configure Hydra", COMMAND_LINE))
        if re.fullmatch(r"_\w+_", key):
            faults.append(Fault(where, f"{key} names code to run; a recipe is data"))
        faults += [Fault(where, what, hint) for text in _strings(value) for what, hint in _unsafe_interpolations(text)]
        full = (*document.package, *path)
        name = ".".join(full)
        if full in COMMAND_LINE_ONLY and value:
            faults.append(Fault(where, f"{name} is refused in a file", COMMAND_LINE))
        if full in WRITE_PATHS or (full in READ_PATHS and not document.package):
            for text in _strings(value):
                if "${" in text:
                    faults.append(Fault(where, f"{name}={text}: a path in a file is written out"))
                elif _leaves_folder(text, reads=full in READ_PATHS):
                    hint = f"give it on the command line: {name}=PATH"
                    faults.append(Fault(where, f"{name}={text} leaves the working folder", hint))
    return faults


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
    """The texts of a value, in lists too; those in a mapping are found at their own keys."""
    if isinstance(value, str):
        return [value]
    return [text for item in value for text in _strings(item)] if isinstance(value, list) else []


def _leaves_folder(text: str, *, reads: bool) -> bool:
    if text.startswith(BUNDLED) and not reads:
        return True
    text = text.removeprefix(BUNDLED)
    parts = PurePosixPath(text).parts + PureWindowsPath(text).parts
    absolute = PurePosixPath(text).is_absolute() or bool(PureWindowsPath(text).drive or PureWindowsPath(text).root)
    return absolute or ".." in parts or text.startswith(("~", "file:", BUNDLED))
