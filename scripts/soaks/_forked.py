"""Commands in processes of their own that need no second for imports: they are forks of this one."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, NoReturn


@dataclass
class Forked:
    """A command that runs in a fork of this process.

    Args:
        output: what it prints on standard output and standard error.
    """

    pid: int
    output: IO[str]

    def wait(self) -> int:
        """The exit code, or minus the signal that ended it."""
        self.output.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def start(words: Sequence[str], before: Callable[[], None] = lambda: None) -> Forked:
    """Begins a command line of loraga, as the program ``loraga`` does.

    Args:
        before: called in the new process first.

    Raises:
        RuntimeError: this process has several threads, whose locks a fork would inherit.
    """
    if threading.active_count() > 1:
        names = ", ".join(item.name for item in threading.enumerate())
        raise RuntimeError(f"several threads run, and a fork would inherit their locks: {names}")
    reads, writes = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reads)
        _become(words, writes, before)
    os.close(writes)
    return Forked(pid, os.fdopen(reads, encoding="utf-8", errors="replace"))


def _become(words: Sequence[str], output: int, before: Callable[[], None]) -> NoReturn:
    code = 70
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for number, name in ((1, "stdout"), (2, "stderr")):
            setattr(sys, name, os.fdopen(number, "w", buffering=1, encoding="utf-8"))
        sys.argv = ["loraga", *words]
        before()
        code = _run()
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run() -> int:
    from lora_ga_cli.cli import app

    app.run()
    return 0
