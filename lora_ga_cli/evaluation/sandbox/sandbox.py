"""Starts a program in a sandbox, waits for its end, and stops it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ga_cli.evaluation.sandbox import kernel

PACKAGE = "lora_ga_cli.evaluation.sandbox"
ROOT = Path(__file__).resolve().parents[3]
"""The folder that contains the package `lora_ga_cli`."""
FOLLOW = (
    f"import ctypes, os, sys; ctypes.CDLL(None).prctl({kernel.PR_SET_PDEATHSIG}, {signal.SIGKILL:d}, 0, 0, 0); "
    "os.getppid() == int(sys.argv[2]) or os._exit(0)"
)
"""Has the launcher end with the process that started it. On a busy machine the imports take longer than half a second,
so this comes before them."""
START = f"{FOLLOW}; sys.path.append(sys.argv[1]); from {PACKAGE}.launch import main; main()"
OVERHEAD = 60.0
"""Seconds, beyond the program's own time, in which its sandbox must be built and removed."""


@dataclass(frozen=True)
class Limits:
    """What a program in a sandbox may use.

    Args:
        seconds: of wall-clock time from its start; each process may use one second more of CPU time.
        memory: bytes of address space of each process, and of memory that all processes hold together.
        tasks: processes and threads at the same time; two more if the sandbox runs under the user's own id.
        disk: bytes of files, which are kept in memory.
        output: bytes that it may print.
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
        how: ``exited``, ``killed``, ``timed out``, ``memory``, ``printed too much``, ``stopped`` (by `Sandbox.stop`),
            or ``refused`` if no sandbox could be built.
        code: its exit status, the signal that killed it, or the errno of the refusal.
        output: the end of what it printed; for ``refused``, the step that the kernel refused.
    """

    how: str
    code: int = 0
    output: str = ""


class Sandbox:
    """Runs the ``main`` function of a module of this package in a sandbox, which starts when this object is made.

    Only the named modules of the package are in the sandbox. The thread that made a sandbox must also wait for it: the
    kernel stops the sandbox when that thread ends.

    Args:
        modules: modules of this package that import only the standard library; the first has ``main``.
        files: more text files by name; the program finds them in ``/sandbox``.
        channels: open file descriptors that the program inherits as 3, 4, ...
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
        lifeline, held = os.pipe()
        self._held = os.fdopen(held, "wb")
        """While it is open, the sandbox lives. The kernel closes it however this process ends."""
        job = {
            "lifeline": lifeline,
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
            pass_fds=[*channels, lifeline],
            env={},
            cwd="/",
            start_new_session=True,
        )
        os.close(lifeline)
        self._ended: Ended | None = None
        self._send(json.dumps(job).encode())

    def _send(self, job: bytes) -> None:
        assert self._process.stdin is not None
        # a launcher that fails at once closes the pipe, and its report says why
        with contextlib.suppress(BrokenPipeError), self._process.stdin as file:
            file.write(job)
        self._process.stdin = None

    def wait(self, seconds: float | None = None) -> Ended:
        """Waits for the end of the program. When this returns, no process of the sandbox is left.

        Args:
            seconds: after this time the program is stopped; without it, when its own time limit is over.
        """
        if self._ended is None:
            try:
                timeout = self.limits.seconds + OVERHEAD if seconds is None else seconds
                self._ended = _ended(*self._process.communicate(timeout=timeout))
            except subprocess.TimeoutExpired:
                return self.stop()
            self._held.close()
        return self._ended

    def stop(self) -> Ended:
        """Kills every process of the sandbox that is left."""
        if self._ended is None:
            self._process.terminate()
            report, broken = self._process.communicate()
            self._ended = _ended(report, broken) if report or broken else Ended("stopped")
            self._held.close()
        return self._ended


def launcher() -> list[str]:
    """The command that builds a sandbox: the base interpreter, as a virtual environment's needs that environment."""
    python = getattr(sys, "_base_executable", None) or sys.executable
    return [os.path.realpath(python), "-I", "-S", "-c", START, str(ROOT), str(os.getpid())]


def _ended(report: bytes, broken: bytes) -> Ended:
    if not report and broken:
        return Ended("refused", 0, f"building a sandbox ({broken.decode(errors='replace').strip().splitlines()[-1]})")
    if not report:
        return Ended("killed", 9)  # process 1 was killed, and with it all others
    result: dict[str, Any] = json.loads(report.splitlines()[0])  # of two, the later is on process 1, which had ended
    if "refused" in result:
        return Ended("refused", result["errno"], result["refused"])
    return Ended(result["how"], result["code"], result["output"])
