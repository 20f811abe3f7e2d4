"""A GPU for each of several processes that fill the cells of tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

VISIBLE = "CUDA_VISIBLE_DEVICES"
_claimed: list[FileLock] = []
"""The place that this process holds, until it ends."""


def claim_gpu(gpus: Sequence[str], folder: Path) -> str:
    """Chooses a GPU for this process, once, and hides the others from it.

    Each process holds one place, a locked file; place n is on GPU n modulo their number, and a process takes the first
    place that is free. So processes spread evenly, also those of several command lines with one folder. A process that
    ends frees its place.

    Args:
        gpus: names as CUDA_VISIBLE_DEVICES takes them.
        folder: where the places lie.

    Returns:
        The name of the GPU.

    Raises:
        RuntimeError: this process uses CUDA already, so that nothing can be hidden from it.
    """
    if _claimed:
        return os.environ[VISIBLE]
    from torch import cuda

    if cuda.is_initialized():
        raise RuntimeError("--gpus: this process uses a GPU already")
    folder.mkdir(parents=True, exist_ok=True)
    place = 0
    while not _acquired(lock := FileLock(folder / f"{place}.lock")):
        place += 1
    _claimed.append(lock)
    os.environ[VISIBLE] = gpus[place % len(gpus)]
    return os.environ[VISIBLE]


def _acquired(lock: FileLock) -> bool:
    """Whether this process got the lock, without waiting for another one."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True
