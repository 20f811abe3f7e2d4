"""``--figures`` of the commands that take a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_ga_cli.cli.arguments import is_sweep


def check_figures(folder: Path | None, arguments: Sequence[str] | None) -> None:
    """Refuses a file in the place of the folder, and one folder for all jobs of a sweep, whose figures have one name.

    Raises:
        InvalidInput
    """
    from lora_ga_cli.errors import Fault, InvalidInput
    from lora_ga_cli.stages.inspect.options import InspectOptions

    faults = InspectOptions(figures=folder).faults()
    if folder is not None and is_sweep(arguments):
        what = "--figures is one folder, and the figures of all jobs of a sweep have the same name"
        faults.append(Fault("command line", what, "leave it out: each gradient then has its own folder, inspect-KEY/"))
    if faults:
        raise InvalidInput(faults)
