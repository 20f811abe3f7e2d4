"""A program in a box: started, waited for, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = "lora_ga_cli.evaluation.sandbox"
ROOT = Path(__file__).resolve().parents[3]
"""The folder that `lora_ga_cli` lies in."""
START = f"import sys; sys.path.append(sys.argv[1]); from {PACKAGE}.launch import main; main()"
PATIENCE = 60.0
"""Seconds beyond a program's time in which its box must be built and be gone again."""


@dataclass(frozen=True)
class Limits:
    """What a boxed program may use.

    Args:
        seconds: by the clock, from its start; of CPU time each process may use one more.
        memory: bytes of address space, each process.
        tasks: processes and threads at once, two more where the box runs under the user's own id.
        disk: bytes of files, which lie in memory.
        output: bytes it may print.
    """

    seconds: float = 10.0
    memory: int = 1 << 30
    tasks: int = 8
    disk: int = 16 << 20
    output: int = 1 << 20


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Args:
        how: ``exited``, ``killed``, ``timed out``, ``printed too much``, ``stopped`` by us, or ``refused``, when there
            was no box to run it in.
        code: its exit status, the signal that killed it, or the errno of the refusal.
        output: the end of what it printed; for ``refused`` the step that was.
    """

    how: str
    code: int = 0
    output: str = ""


class Box:
    """Runs the ``main`` of a module of this package in a box, from the moment this object is made.

    Nothing of the package is in the box but the modules named. A box must be waited for by the thread that made it: the
    kernel stops it when that thread ends.

    Args:
        modules: of this package, standard library imports only; the first has the ``main``.
        files: further text by name; the program finds them in ``/box``.
        channels: open file descriptors that it inherits, as 3, 4, ...
    """

    def __init__(
        self,
        modules: Sequence[str],
        files: Mapping[str, str] | None = None,
        *,
        limits: Limits | None = None,
        channels: Sequence[int] = (),
    ):
        self.limits = limits or Limits()
        folder = Path(__file__).parent
        source = {
            f"{PACKAGE.replace('.', '/')}/{name}.py": (folder / f"{name}.py").read_text("utf-8") for name in modules
        }
        order = {
            "module": f"{PACKAGE}.{modules[0]}",
            "files": {**source, **(files or {})},
            "channels": list(channels),
            **{name: getattr(self.limits, name) for name in ("seconds", "memory", "tasks", "disk", "output")},
        }
        self._process = subprocess.Popen(
            launcher(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=channels,
            env={},
            cwd="/",
            start_new_session=True,
        )
        self._ended: Ended | None = None
        self._give(json.dumps(order).encode())

    def _give(self, order: bytes) -> None:
        assert self._process.stdin is not None
        with (
            contextlib.suppress(BrokenPipeError),
            self._process.stdin as file,
        ):  # it broke down, and its report says why
            file.write(order)
        self._process.stdin = None

    def wait(self, seconds: float | None = None) -> Ended:
        """Waits for the end and says how it was; when this returns, no process of the box is left.

        Args:
            seconds: stops the program then; by itself it stops when its time is over.
        """
        if self._ended is None:
            try:
                patience = self.limits.seconds + PATIENCE if seconds is None else seconds
                self._ended = _ended(*self._process.communicate(timeout=patience))
            except subprocess.TimeoutExpired:
                return self.stop()
        return self._ended

    def stop(self) -> Ended:
        """Kills all that is in the box, if anything is left."""
        if self._ended is None:
            self._process.terminate()
            report, broken = self._process.communicate()
            self._ended = _ended(report, broken) if report or broken else Ended("stopped")
        return self._ended


def launcher() -> list[str]:
    """The command that builds a box: the bare interpreter, for that of a virtual environment cannot be without it."""
    python = getattr(sys, "_base_executable", None) or sys.executable
    return [os.path.realpath(python), "-I", "-S", "-c", START, str(ROOT)]


def _ended(report: bytes, broken: bytes) -> Ended:
    if not report and broken:
        return Ended("refused", 0, f"building a box ({broken.decode(errors='replace').strip().splitlines()[-1]})")
    if not report:
        return Ended("killed", 9)  # process 1 of the box was, and all of it
    found: dict[str, Any] = json.loads(report)
    if "refused" in found:
        return Ended("refused", found["errno"], found["refused"])
    return Ended(found["how"], found["code"], found["output"])
