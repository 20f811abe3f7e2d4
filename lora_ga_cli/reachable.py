"""A hub that cannot be reached is asked once in a process, and not five times for each file."""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Callable
from functools import cache
from urllib.parse import urlsplit

CONNECT_SECONDS = 5.0
"""The longest wait for each address of the hub. Finding the addresses of its name comes before, and takes as long as
the system lets it: Python sets no limit on that."""


class _State:
    """What this process does with the message."""

    tell: Callable[[str], None] | None = None


def report_to(tell: Callable[[str], None]) -> None:
    """Has a program show in its own way that the hub cannot be reached, where it would be a Python warning."""
    _State.tell = tell


@cache
def ask_hub_once() -> bool:
    """Whether the hub can be reached. If it cannot, this process and those that it starts read
    the cache of the hub alone, as with ``HF_HUB_OFFLINE=1``; otherwise they would ask again for every file, for half a
    minute. That is told once. The environment of the process is changed, because processes that it starts read it.

    Behind a proxy the hub's own address does not tell, so the libraries find out themselves.
    """
    import urllib.request

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(constants.ENDPOINT)
    if {address.scheme, "all"} & set(urllib.request.getproxies()):
        return True
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=CONNECT_SECONDS).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:  # it has read the variable already
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
        tell = _State.tell or warnings.warn
        tell(f"{address.hostname} cannot be reached: only its cache is used")
        return False
    return True
