"""All faults of a benchmark's options and files, said together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lora_ga_cli.errors import Fault, InvalidInput

Loaded = TypeVar("Loaded")


def gathered(faults: list[Fault], read: Callable[[], Loaded]) -> Loaded | None:
    """What ``read`` returns; or None, and its faults with the others."""
    try:
        return read()
    except InvalidInput as error:
        faults += error.faults
        return None
