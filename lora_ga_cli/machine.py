"""Which machine this is, also among machines of the same name."""

from __future__ import annotations

import platform
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PROCESSES = Path("/proc/self/ns/pid")


def this_machine() -> str:
    """Tells this machine from others: its name, and where the system has one, what it was given when it started."""
    name = platform.node().replace("/", "-")
    try:
        return f"{name}/{_BOOT.read_text(encoding='ascii').strip()}"
    except OSError:
        return name


def this_container() -> str:
    """Tells this machine, or container, from others: the processes of one see each other. The name of the machine
    stands before the first slash."""
    try:
        return f"{this_machine()}/{_PROCESSES.readlink()}"
    except OSError:
        return this_machine()
