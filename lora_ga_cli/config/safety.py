"""What a file of the configuration may not contain.

Recipes come from strangers. They are data: they choose and set options, and can neither name code, configure Hydra,
read the environment nor reach out of the folders they belong in. The command line, which the user types, may.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from lora_ga_cli.config.documents import Document, leaves
from lora_ga_cli.errors import Fault

SAFE_RESOLVERS = frozenset({"oc.select", "oc.dict.keys", "oc.dict.values"})
"""Resolvers of OmegaConf that only look at the configuration itself."""
WRITE_PATHS = (("output_dir",), ("name",), ("cache_dir",))
READ_PATHS = (
    ("model", "path"),
    ("model", "tokenizer"),
    ("dataset", "path"),
    ("dataset", "train_file"),
    ("dataset", "validation_file"),
    ("eval", "file"),
)
COMMAND_LINE_ONLY = (("model", "trust_remote_code"), ("overwrite",))
_RESOLVER = re.compile(r"\$\{\s*([\w.]+)\s*:")
_PACKAGE_HEADER = re.compile(r"^#\s*@package\s+(\S+)", re.MULTILINE)
COMMAND_LINE = "that is for the command line"


def unsafe(document: Document) -> list[Fault]:
    """Faults for everything in a file that a file may not do; see the module."""
    faults = []
    header = _PACKAGE_HEADER.search(document.text)
    allowed = ("_global_",) if document.group == "recipe" else (document.group, "_group_")
    if header and header.group(1) not in allowed:
        faults.append(
            Fault(document.where(()), f"'@package {header.group(1)}' would set options elsewhere", "remove it")
        )
    for entry in document.defaults:
        if "hydra" in str(entry) or "@" in str(entry):
            faults.append(
                Fault(document.where(("defaults",)), f"defaults: {entry}: a file cannot configure Hydra", COMMAND_LINE)
            )
    for path, value in leaves(document.data):
        where, key = document.where(path), path[-1]
        if len(path) == 1 and key == "hydra" and document.group == "recipe":
            faults.append(Fault(where, "a recipe cannot configure Hydra", COMMAND_LINE))
        if re.fullmatch(r"_\w+_", key):
            faults.append(Fault(where, f"{key} names code to run; a recipe is data"))
        for text in _strings(value):
            for resolver in _RESOLVER.findall(text):
                if resolver not in SAFE_RESOLVERS:
                    faults.append(
                        Fault(
                            where,
                            f"${{{resolver}:…}} is refused in a file",
                            f"allowed: {', '.join(sorted(SAFE_RESOLVERS))}",
                        )
                    )
        full = (*document.package, *path)
        if full in COMMAND_LINE_ONLY and value:
            faults.append(Fault(where, f"{'.'.join(full)} is refused in a file", COMMAND_LINE))
        checked = WRITE_PATHS + (READ_PATHS if document.group == "recipe" else ())
        if full in checked:
            for text in _strings(value):
                if _leaves_folder(text):
                    faults.append(
                        Fault(
                            where,
                            f"{'.'.join(full)}={text} leaves the working folder",
                            f"give it on the command line: {'.'.join(full)}=PATH",
                        )
                    )
    return faults


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _leaves_folder(text: str) -> bool:
    parts = PurePosixPath(text).parts + PureWindowsPath(text).parts
    absolute = PurePosixPath(text).is_absolute() or bool(PureWindowsPath(text).drive or PureWindowsPath(text).root)
    return absolute or ".." in parts or text.startswith("~") or text.startswith("file:")
