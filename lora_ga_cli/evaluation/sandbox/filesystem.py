"""The file system inside a sandbox: Python and the system's libraries, read-only, and an empty ``/tmp``."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence

from lora_ga_cli.evaluation.sandbox import kernel

FOLDER = "/sandbox"
"""Folder of the program's files in the sandbox."""
STAGE = "/tmp"
"""A folder that every host has. The new root is mounted over it, which only this mount namespace sees."""


def needed() -> list[str]:
    """Paths of the host that the running Python interpreter needs; none lies inside another."""
    libraries = {"lib", sys.platlibdir}
    paths = {f"{prefix}/{folder}" for prefix in (sys.base_prefix, sys.base_exec_prefix) for folder in libraries}
    paths |= {"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", os.path.realpath(sys.executable)}
    paths |= {store for store in ("/nix/store", "/gnu/store") if sys.base_prefix.startswith(store)}
    existing = sorted(path for path in paths if os.path.exists(path))  # noqa: PTH110 - pathlib is slow to load
    return [path for path in existing if not any(path.startswith(f"{other}/") for other in existing)]


def build(files: Mapping[str, str], *, disk: int, owner: int) -> None:
    """Makes a new root for this process, which must already be in a new user namespace and a new mount namespace.

    Args:
        files: text by path below ``/sandbox``.
        disk: the most bytes that ``/tmp`` can hold.
        owner: user and group id of ``/tmp``.

    Raises:
        kernel.Refused, OSError
    """
    os.umask(0o022)
    sources = {path: os.path.realpath(path) for path in needed()}
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    _tmpfs(STAGE, "size=1m,mode=755")
    os.mkdir(f"{STAGE}/old")  # noqa: PTH102
    os.mkdir(f"{STAGE}/new")  # noqa: PTH102
    kernel.pivot_root(STAGE, f"{STAGE}/old")
    os.chdir("/")
    _tmpfs("/new", "size=64m,mode=755")
    for path, source in sources.items():
        _place(f"/old{source}", f"/new{path}")
    _read_only(below="/new/")
    for name, text in files.items():
        _write(f"/new{FOLDER}/{name}", text)
    os.makedirs("/new/tmp", exist_ok=True)  # noqa: PTH103
    _tmpfs("/new/tmp", f"size={disk},nr_inodes=1024,mode=700")
    os.chown("/new/tmp", owner, owner)
    os.chdir("/new")
    kernel.pivot_root(".", ".")  # the old root is then mounted over the new one and can be unmounted
    kernel.unmount(".")
    os.chdir("/")
    _remount_read_only("/")


def _tmpfs(target: str, options: str) -> None:
    kernel.mount("tmpfs", target, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)


def _place(source: str, target: str) -> None:
    if os.path.isdir(source):  # noqa: PTH112
        os.makedirs(target, exist_ok=True)  # noqa: PTH103
    else:
        _write(target, "")
    kernel.mount(source, target, None, kernel.MS_BIND | kernel.MS_REC)


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:  # noqa: PTH123
        file.write(text)


def _read_only(below: str) -> None:
    """Remounts every mount below a path read-only, as each mount inside a library folder has a flag of its own."""
    for target in _mounted(below):
        _remount_read_only(target)


def _mounted(below: str) -> Sequence[str]:
    with open("/old/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
        targets = [line.split(" ")[4] for line in file]
    plain = [re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), target) for target in targets]
    return [target for target in plain if target.startswith(below)]


def _remount_read_only(target: str) -> None:
    flags = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
    if os.statvfs(target).f_flag & os.ST_NOEXEC:
        flags |= kernel.MS_NOEXEC  # a flag that the host set cannot be removed here
    kernel.mount(None, target, None, flags)
