"""Two adapters beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_ga_cli.errors import RunError
from lora_ga_cli.stages.inspect.options import InspectOptions


def show_pair(first: Path, second: Path, options: InspectOptions) -> dict[str, Any]:
    """Compares two adapters, and prints what it found.

    Raises:
        RunError: adapters cannot be compared yet.
    """
    raise RunError(f"{first}, {second}: adapters cannot be compared yet")
