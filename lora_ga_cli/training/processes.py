"""Several processes that train one run together, as torchrun and accelerate launch start them.

Every process computes the same, but for the rows it trains on and estimates from; the main one alone writes and talks.
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


def tell(value: bool) -> bool:
    """What the main process says, in every process; each must ask."""
    if count() == 1:
        return value
    from accelerate.utils.operations import broadcast_object_list

    message = [value]
    broadcast_object_list(message)
    return message[0]


def index() -> int:
    """This process's number, from 0 (``RANK``)."""
    return int(os.environ.get("RANK", "0"))


def leave() -> None:
    """Ends what `join` began, in every process that has come to a good end."""
    if count() > 1:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()


def wait() -> None:
    """Waits until every process has come here."""
    if count() > 1:
        from accelerate.state import PartialState

        PartialState().wait_for_everyone()
