"""Tries, inside a sandbox, everything that a sandbox must forbid, and prints what was possible."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator

EXPECTED = {"bin", "etc", "gnu", "lib", "lib64", "nix", "opt", "sandbox", "tmp", "usr"}
"""Names that may be in the root folder, besides the folder that holds Python."""
MANY = 64
"""More processes than any sandbox allows."""
HUGE = 10 << 30


def main() -> None:
    print(json.dumps(list(holes())))  # noqa: T201


def holes() -> Iterator[str]:
    for folder in (*sys.path, "/", "/lib", "/usr/lib"):
        if os.access(folder, os.F_OK) and not os.statvfs(folder).f_flag & os.ST_RDONLY:
            yield f"{folder} can be written to"
    seen = {*os.listdir("/"), *os.listdir("/..")}  # noqa: PTH208
    if more := seen - EXPECTED - {sys.base_prefix.split("/")[1]}:
        yield f"it sees /{min(more)}"
    if os.getuid() == 0:
        yield "it runs as root"
    if os.getpid() > 16:
        yield "it sees other processes"
    with contextlib.suppress(OSError):
        import socket

        socket.socket()
        yield "it can open a socket"
    with contextlib.suppress(MemoryError):
        bytearray(HUGE)
        yield f"it can take {HUGE >> 30} GB of memory"
    yield from unlimited_processes()


def unlimited_processes() -> Iterator[str]:
    for _ in range(MANY):
        try:
            if os.fork() == 0:
                signal.pause()
        except OSError:
            return
    yield "it can start any number of processes"
