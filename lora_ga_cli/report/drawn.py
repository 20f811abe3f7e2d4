"""Drawing a figure whose folder may be one that nothing can be written into: what is printed does not need it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lora_ga_cli.report.console import reason, step, warn


def drawn(file: Path, draw: Callable[[], object], elsewhere: str = "", *, required: bool = False) -> Path | None:
    """Draws a figure and says where it is. If that fails, the reason is a warning.

    Args:
        draw: writes the file.
        elsewhere: what puts the figure into another place, for the warning.
        required: raise the error, because the user has given this place.

    Returns:
        The file; None if it could not be written.

    Raises:
        OSError
    """
    try:
        draw()
    except OSError as error:
        if required:
            raise
        warn(f"no figure was drawn: {file}: {reason(error)}" + (f" ({elsewhere})" if elsewhere else ""))
        return None
    step("figure", str(file))
    return file
