"""Signals that ask a command to stop: Ctrl-C, SIGTERM of a scheduler, and SIGHUP of a terminal that is closed.

Where unfinished work can be saved, it is saved first: inside `deferred` a signal is only remembered, and the code there
asks for it with `requested`. Everywhere else a signal raises an `Interruption`, as Python's own handler does for
Ctrl-C.
A second Ctrl-C ends the process at once. A later SIGTERM or SIGHUP raises again, where the first did: what the first
one raised may have been lost, as in a destructor or in a library that catches everything.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

NAMES = {
    getattr(signal, name): said
    for name, said in {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP"}.items()
    if hasattr(signal, name)  # Windows has no SIGHUP
}
"""The signals that are handled everywhere, and what a user calls them."""


def name_of(number: int) -> str:
    """What a user calls a signal."""
    return NAMES.get(number) or signal.Signals(number).name


TOGETHER = 1.0
"""Seconds after a signal in which others mean the same: a launcher passes on what a scheduler has sent to everyone."""


class Interruption(KeyboardInterrupt):
    """A signal asked the command to stop. (Libraries know a KeyboardInterrupt, and clean up after it.)

    Args:
        number: the signal.
        kept: what is kept of the work; empty if nothing is.
    """

    def __init__(self, number: int, kept: str = ""):
        super().__init__(number, kept)
        self.number, self.kept = number, kept
        self.notes: list[str] = []
        """What else a user should know, such as that a sweep did not begin its other jobs."""
        self.then = "To go on"
        """What stands before the command that goes on with what is kept."""


class _State:
    """What this process knows of signals."""

    requested: int | None = None
    came = 0.0
    raises = True
    children: Callable[[], list[int]] | None = None
    is_worker = False


def requested() -> int | None:
    """The first signal that came inside `handled`; None if there was none."""
    return _State.requested


def stop_if_requested() -> None:
    """Raises an `Interruption` if a signal came.

    Work that is done piece by piece calls this between two pieces: an exception that is raised in a callback of a
    library may be lost.
    """
    if _State.requested is not None:
        raise Interruption(_State.requested)


def _handle(number: int, frame: Any) -> None:
    now = time.monotonic()
    again = _State.requested is not None and now - _State.came < TOGETHER
    if _State.requested is None:
        _State.requested = number
    if not again:
        _State.came = now
    if number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if _State.children is not None:
        for child in _State.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)  # a terminal sends Ctrl-C to them too, and a second one would kill them
    if _State.raises and not again:
        raise Interruption(number)


def _take_over() -> dict[int, Any]:
    """Handles the signals whose action is still the default one; returns their actions before.

    A signal that is ignored stays ignored (``nohup`` ignores SIGHUP), and a program's own handler stays.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}  # Python sets handlers in the main thread only
    before = {number: signal.getsignal(number) for number in NAMES}
    taken = {
        number: action for number, action in before.items() if action in (signal.SIG_DFL, signal.default_int_handler)
    }
    for number in taken:
        signal.signal(number, _handle)
    return taken


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handles signals inside the ``with`` block."""
    taken = _take_over()
    if taken:
        _State.requested, _State.raises = None, True
    try:
        yield
    finally:
        if _State.requested is not None:
            _end_workers()
        for number, action in taken.items():
            signal.signal(number, action)
        if taken:
            _State.requested = None


def _end_workers() -> None:
    """Ends the processes that read rows. They ignore SIGTERM, with which Python would end them and then wait."""
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError):  # it has ended by itself
            if child.pid is not None:
                os.kill(child.pid, signal.SIGKILL)  # joblib's processes have no method for it


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Inside the ``with`` block a signal raises nothing. One that came there is raised at its end.

    Raises:
        Interruption: at the end of the outermost such block.
    """
    before, _State.raises = _State.raises, False
    try:
        yield
    finally:
        _State.raises = before
    if before:
        stop_if_requested()


@contextlib.contextmanager
def prompt() -> Iterator[None]:
    """Inside the ``with`` block a signal raises an `Interruption` although the block lies in one of `deferred`."""
    before, _State.raises = _State.raises, True
    try:
        stop_if_requested()
        yield
    finally:
        _State.raises = before


@contextlib.contextmanager
def with_workers() -> Iterator[None]:
    """Inside the ``with`` block this process waits for child processes, each of which does jobs of its own.

    A signal is passed on to them as SIGTERM, and they are waited for, because each of them saves its work.

    Raises:
        Interruption: at the end, if a signal came.
    """
    import psutil

    this = psutil.Process()

    def children() -> list[int]:
        return [child.pid for child in this.children()]

    before, _State.children = _State.children, children
    try:
        kept = "every job that ran has saved its work, as its own line says, and no other job was started"
        with keeping(kept), deferred():
            yield
    finally:
        _State.children = before


def in_worker(launchers: Iterable[int] = ()) -> None:
    """Begins to handle signals in a child process that does jobs: outside of `prompt` a signal is only remembered.

    Args:
        launchers: signals of which the launcher's own handlers are replaced.
    """
    if not _State.is_worker:
        _State.is_worker, _State.requested, _State.raises = True, None, False
        _take_over()
        for number in launchers:
            signal.signal(number, _handle)


def ignored_in_worker(*_: Any) -> None:
    """Ignores the signals in a child process that works for this one, which will end it when its own work is saved.

    (A terminal sends Ctrl-C to all processes, and a scheduler SIGTERM.)
    """
    for number in NAMES:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def keeping(kept: str | Callable[[], str], then: str = "To go on") -> Iterator[None]:
    """Says what is kept if the ``with`` block is interrupted.

    Args:
        kept: what is kept, as a part of a sentence; nothing is added if the block itself has said it.
        then: what stands before the command that goes on.
    """
    try:
        yield
    except Interruption as stop:
        if not stop.kept:
            stop.kept, stop.then = kept if isinstance(kept, str) else kept(), then
        raise
