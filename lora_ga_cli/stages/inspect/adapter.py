"""What an adapter learned, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_ga_cli.errors import RunError
from lora_ga_cli.stages.inspect.options import InspectOptions
from lora_ga_cli.training.run_folder import RunFolder


def inspect_adapter(run: RunFolder, *, with_base: bool) -> dict[str, Any] | None:
    """The part ``adapter`` of a run's inspection; None if the run has no adapter that can be inspected."""
    return None


def show_adapter(folder: Path, options: InspectOptions) -> dict[str, Any]:
    """Looks into an adapter in a folder, and prints what it found.

    Raises:
        RunError: adapters cannot be inspected yet.
    """
    raise RunError(f"{folder}: adapters cannot be inspected yet")


def show_adapter_of_run(run: RunFolder, found: dict[str, Any], options: InspectOptions) -> None:
    """Prints the part ``adapter`` of a run's inspection, and draws its figures."""
