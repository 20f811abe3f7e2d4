"""Several processes that train one run together, as torchrun and accelerate launch start them.

Every process computes the same; the main one alone writes the run folder and talks. Processes agree on the gradient
through the store, where one estimates and the others wait and read.
"""

from __future__ import annotations

import os


def count() -> int:
    """How many processes train together (``WORLD_SIZE``)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that writes (``RANK`` 0, or the only one)."""
    return os.environ.get("RANK", "0") == "0"


def join(cpu: bool) -> None:
    """Connects the processes, and gives each its device; nothing for a single one."""
    if count() > 1:
        from accelerate.state import PartialState

        PartialState(cpu=cpu)


def wait() -> None:
    """Waits until every process has come here."""
    if count() > 1:
        from accelerate.state import PartialState

        PartialState().wait_for_everyone()
