"""A GPU for each of several processes of one command, which do its jobs one after another."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout

from lora_ga_cli.machine import this_machine

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Place:
    """A place on a GPU, which this process holds until it ends.

    Args:
        request: the GPUs to choose from, and the folder of the places.
        lock: locks the file of the place.
    """

    request: tuple[tuple[str, ...], Path]
    lock: FileLock


class _State:
    """What this process holds."""

    place: Place | None = None


def visible_gpus() -> tuple[str, ...]:
    """The names of the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` takes them; none if there is no GPU.

    CUDA itself ignores what comes after the first name that is empty or negative.
    """
    given = os.environ.get(VISIBLE)
    if given is None:
        from torch import cuda

        return tuple(map(str, range(cuda.device_count())))
    names: list[str] = []
    for name in map(str.strip, given.split(",")):
        if not name or name.startswith("-"):
            break
        names.append(name)
    return tuple(names)


def claim_gpu(gpus: Sequence[str], folder: Path) -> str:
    """Chooses a GPU for this process, once, and hides the others from it.

    Each process holds one place, a locked file, on the GPU of which the fewest places were held when it came; of
    several the first one. So processes take turns, also those of several command lines with one folder. A process that
    ends frees its place.

    Args:
        gpus: names as ``CUDA_VISIBLE_DEVICES`` takes them; at least one.
        folder: where the places lie. Each machine has its own in it.

    Returns:
        The name of the GPU.

    Raises:
        RuntimeError: this process uses CUDA already, so that nothing can be hidden from it.
    """
    request = (tuple(gpus), folder)
    if _State.place is not None and _State.place.request == request:
        return os.environ[VISIBLE]
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        raise RuntimeError("no GPU can be chosen for this process, because it uses one already")
    if _State.place is not None:
        _State.place.lock.release()
    places = folder / quote(this_machine(), safe="")
    places.mkdir(parents=True, exist_ok=True)
    with FileLock(places / "choosing.lock"):
        chosen = min(dict.fromkeys(gpus), key=lambda name: sum(not _is_free(file) for file in _places(places, name)))
        lock = _first_free(places, chosen)
    _State.place = Place(request, lock)
    os.environ[VISIBLE] = chosen
    return chosen


def _places(folder: Path, gpu: str) -> list[Path]:
    """The files of all places on a GPU that were ever held."""
    return [file for file in folder.glob("*.lock") if file.stem.rpartition("-")[0] == _stem(gpu)]


def _first_free(folder: Path, gpu: str) -> FileLock:
    number = 0
    while not _acquired(lock := FileLock(folder / f"{_stem(gpu)}-{number}.lock")):
        number += 1
    return lock


def _stem(gpu: str) -> str:
    return "gpu-" + quote(gpu, safe="")  # names of parts of a GPU (MIG) may have slashes


def _is_free(file: Path) -> bool:
    if not _acquired(lock := FileLock(file)):
        return False
    lock.release()
    return True


def _acquired(lock: FileLock) -> bool:
    """Whether this process got the lock, without waiting for another one."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True
