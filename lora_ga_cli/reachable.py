"""A hub that cannot be reached is asked once in a process, and not five times for each file."""

from __future__ import annotations

import os
import socket
import sys
import urllib.request
from functools import cache
from urllib.parse import urlsplit

CONNECT_SECONDS = 5.0


@cache
def ask_hub_once() -> bool:
    """Whether the hub can be reached. If it cannot, this process and those that it starts read
    the cache of the hub alone, as with ``HF_HUB_OFFLINE=1``; otherwise they would ask again for every file, for half a
    minute.

    Behind a proxy the hub's own address does not tell, so the libraries find out themselves.
    """
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
        return False
    return True
