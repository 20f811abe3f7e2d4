"""What describes a saved PEFT adapter, its ``adapter_config.json``. Any program may have written it, or a stranger."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig

from lora_ga_cli import expressions
from lora_ga_cli.errors import Fault, InvalidInput, RunError, UserError
from lora_ga_cli.expressions import Expression
from lora_ga_cli.json_files import read_json
from lora_ga_cli.lora.export import CONFIG_FILE
from lora_ga_cli.lora.layers import PREFIX

KEY = r"(.*\.)?({})$"
"""How PEFT matches a key of ``rank_pattern`` and ``alpha_pattern`` against the name of a layer."""
SAVED = r"(^|.*\.){}($|\..*)"
"""How it matches an entry of ``modules_to_save``."""
LAYERS = r"(?:^|.*?\.){}\.(?P<idx>\d+)\."
"""How it matches an entry of ``layers_pattern``."""

NOT_LOADED = "PEFT cannot load this adapter onto the base"
"""What `refused` says of an adapter that does not fit the base."""


def described(folder: Path) -> dict[str, Any]:
    """What the file says, of which only the types are checked that loraga itself relies on.

    Raises:
        FileNotFoundError
        DamagedFile: it is no JSON.
        RunError: it is no description of an adapter.
    """
    file = folder / CONFIG_FILE
    found = read_json(file)
    if not isinstance(found, dict):
        raise RunError(f"{file} is no description of an adapter: it holds no JSON object")
    for name, wanted in WANTED.items():
        if found.get(name) is not None and not wanted[1](found[name]):
            raise RunError(f"{file}: {name} is {_shown(found[name])}, and {wanted[0]} is wanted")
    return found


def read_description(folder: Path) -> PeftConfig:
    """The file as PEFT reads it.

    Raises:
        RunError, DamagedFile: as `described`; or PEFT does not read it.
    """
    described(folder)
    with refused(folder, "PEFT cannot read its description"):
        return PeftConfig.from_pretrained(str(folder))


def read_lora_description(folder: Path) -> LoraConfig:
    """The file of a LoRA adapter.

    Raises:
        RunError, DamagedFile: as `read_description`; or it describes another kind of adapter.
    """
    config = read_description(folder)
    if not isinstance(config, LoraConfig):
        raise RunError(
            f"{folder}: an adapter of the kind {getattr(config.peft_type, 'value', 'unknown')}, and not LoRA"
        )
    return config


def check_expressions(config: PeftConfig, folder: Path, names: Iterable[str]) -> None:
    """Matches the regular expressions of a description once before PEFT does, which sets no limit on the time.

    Here each of them has a limit, and all of them together have the same one.

    Args:
        names: the full names of all modules that PEFT will match them against.

    Raises:
        InvalidInput: one is no expression, or takes too long.
    """
    names, layers = list(names), getattr(config, "layers_pattern", None)
    whole = {name: _one(getattr(config, name, None)) for name in ("target_modules", "exclude_modules")}
    parts = {
        "rank_pattern": (KEY, list(getattr(config, "rank_pattern", None) or ())),
        "alpha_pattern": (KEY, list(getattr(config, "alpha_pattern", None) or ())),
        "modules_to_save": (SAVED, list(getattr(config, "modules_to_save", None) or ())),
        "layers_pattern": (LAYERS, _one(layers) or list(layers or ())),
    }
    file, began = folder / CONFIG_FILE, time.process_time()
    every = [(name, "", text) for name, texts in whole.items() for text in texts]
    every += [(name, form, text) for name, (form, texts) in parts.items() for text in texts]
    for name, form, text in every:
        Expression(f"{file}: {name}", text).matching(names, within=form)
        if time.process_time() - began > expressions.LIMIT:
            what = f"its {len(every):,} regular expressions compute for longer than {expressions.LIMIT:g} s"
            raise InvalidInput([Fault(f"{file}: {name}", what, "give the names of the layers instead")])


def check_keys(config: PeftConfig, folder: Path, keys: Iterable[str]) -> None:
    """As `check_expressions`, for the layers that an adapter's tensors belong to.

    Args:
        keys: the names of the tensors.
    """
    layers = dict.fromkeys(key.removeprefix(PREFIX).partition(".lora_")[0] for key in keys)
    check_expressions(config, folder, [name for layer in layers for name in (layer, f"{layer}.weight")])


@contextlib.contextmanager
def refused(folder: Path, what: str) -> Iterator[None]:
    """Turns what PEFT raises inside the ``with`` block, which does nothing but call PEFT, into an error of one line.

    Args:
        folder: of the adapter.
        what: what PEFT cannot do.

    Raises:
        RunError
    """
    try:
        yield
    except (UserError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RunError(f"{folder}: {what} ({type(error).__name__}: {_short(' '.join(lines[:2]))})") from error


def _one(value: Any) -> list[str]:
    """A text as a list of one; an empty list of anything else."""
    return [value] if isinstance(value, str) else []


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


WANTED = {
    "peft_type": ("a text", lambda value: isinstance(value, str)),
    "base_model_name_or_path": ("a text", lambda value: isinstance(value, str)),
    "r": ("a positive whole number", _is_count),
    "lora_alpha": ("a number", _is_number),
    "use_rslora": ("true or false", lambda value: isinstance(value, bool)),
    "bias": ("a text", lambda value: isinstance(value, str)),
    "rank_pattern": (
        "positive whole numbers by name",
        lambda value: isinstance(value, dict) and all(map(_is_count, value.values())),
    ),
    "alpha_pattern": (
        "numbers by name",
        lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
    ),
    "target_modules": ("a text or a list of texts", lambda value: isinstance(value, str) or _are_names(value)),
    "exclude_modules": ("a text or a list of texts", lambda value: isinstance(value, str) or _are_names(value)),
    "layers_pattern": ("a text or a list of texts", lambda value: isinstance(value, str) or _are_names(value)),
    "target_parameters": ("a list of texts", _are_names),
    "modules_to_save": ("a list of texts", _are_names),
}
"""What the entries that loraga reads have to be, in words and as a check; null stands for the default."""


def _shown(value: Any) -> str:
    return _short(repr(value))


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"
