"""Checks whether this machine can run a sandbox, and says what to do if it cannot."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

from lora_ga_cli.errors import UserError
from lora_ga_cli.evaluation.sandbox.sandbox import Ended, Limits, Sandbox

PROC = Path("/proc")
SETTINGS = {
    "kernel/unprivileged_userns_clone": ("0", "1"),
    "kernel/apparmor_restrict_unprivileged_userns": ("1", "0"),
    "user/max_user_namespaces": ("0", "16384"),
}
"""Settings in /proc/sys: the value that forbids user namespaces or their use, and a value that allows them."""
MACHINES = ("x86_64", "aarch64")


def check() -> None:
    """Runs a program in a sandbox that tries everything that a sandbox must forbid.

    Raises:
        UserError: no sandbox can be made here, or it does not forbid something. The message names it and the next step.
    """
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise UserError(
            f"programs can be run only on Linux, on {' or '.join(MACHINES)}; this is {platform.system()}, "
            f"{platform.machine()} (copy the run folder to one, and `loraga eval` it there)"
        )
    ended = Sandbox(["probe"], limits=Limits(seconds=30)).wait()
    if ended.how == "refused":
        raise refusal(ended)
    try:
        holes = json.loads(ended.output)
    except ValueError:
        lines = ended.output.strip().splitlines() or ["it prints nothing"]
        what = f"Python does not run in the sandbox ({ended.how} {ended.code}): {lines[-1]}"
        raise UserError(f"{what} (its files must be readable for everyone: {sys.base_prefix})") from None
    if holes:
        hint = "run as an ordinary user" if os.geteuid() == 0 else "run on another machine"
        raise UserError(f"the sandbox would leak here: {'; '.join(holes)} ({hint})")


def refusal(ended: Ended) -> UserError:
    """The error for a sandbox that the kernel refused."""
    why = f": {os.strerror(ended.code)}" if ended.code else ""
    return UserError(f"no sandbox for programs can be made here: {ended.output} was refused{why} ({_help()})")


def _help(proc: Path = PROC) -> str:
    if not (proc / "self").exists():
        return "mount /proc"
    if not (proc / "self/ns/user").exists():
        return "the kernel has no user namespaces; it needs CONFIG_USER_NS=y"
    for name, (forbids, allows) in SETTINGS.items():
        path = proc / "sys" / name
        if path.exists() and path.read_text().strip() == forbids:
            return f"user namespaces are switched off; as root: sysctl -w {name.replace('/', '.')}={allows}"
    if "Seccomp:\t2" in (proc / "self/status").read_text():  # a container's filter of system calls
        return (
            "the container forbids namespaces and mounts; start it with --security-opt seccomp=unconfined "
            "--security-opt apparmor=unconfined, or run outside of it"
        )
    if os.geteuid() == 0:
        return "root needs the capabilities SETUID and SETGID for it; run with them, or as an ordinary user"
    return "it takes unprivileged user namespaces with mounts in them; `unshare -Urmpf true` must work"
