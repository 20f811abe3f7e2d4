"""What becomes of processes that train together when one of them fails: it says why, and the others end at once.

A process whose neighbour is gone would else wait for it for minutes, inside a library where no signal reaches it, and
fail with an error of its own. So a thread of each process looks after the others, through the store by which torch has
connected them: whether one has failed, whether those on this machine exist, and, in process 0, whether those on others
still answer. A second thread sees whether the store itself still answers, since a request to it has no time limit.

Only a program that has called `report_to` is watched and ended in this way. Importing this module costs nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from lora_ga_cli.machine import this_container

PERIOD = 0.5
"""Seconds between two looks at the others."""
SILENCE = 45.0
"""Seconds without an answer after which a process on another machine counts as lost."""
PATIENCE = 4.0
"""Seconds in which processes wait for each other."""
LAST = 15.0
"""Seconds that the one that failed has to end, before the others do."""
AT_THE_END = 60.0
"""Seconds that the process with the store waits for the others, when all is done."""
KILLED = "was killed or has crashed (a system kills a process when its memory runs out)"


def count() -> int:
    """The number of processes that train together (``WORLD_SIZE``)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def index() -> int:
    """The number of this process, from 0 (``RANK``)."""
    return int(os.environ.get("RANK", "0"))


class _State:
    """What this process knows of the others."""

    report: Callable[[str], None] | None = None
    watch: _Watch | None = None


def report_to(report: Callable[[str], None]) -> None:
    """Has this process watched, and ended if another one fails.

    Args:
        report: prints a message for the user, also from another thread.
    """
    _State.report = report


def watch() -> None:
    """Begins to look after the other processes, once. Nothing happens where there are none."""
    if count() > 1 and _State.report is not None and _State.watch is None:
        _State.watch = _Watch(_State.report)
        _State.watch.start()


def has_failed_first(code: int, *, by_itself: bool) -> bool:
    """Whether this process is the first that fails, and so the one that says why. The others then end.

    Args:
        code: the exit code of all processes.
        by_itself: whether the error cannot be what the end of another process has caused. Otherwise this waits a moment
            for signs of that, and does not return if there are any.
    """
    if count() == 1 or _State.report is None:
        return True
    if _State.watch is None:
        return _is_first_before_the_watch(code)
    is_first = _State.watch.fail(code, by_itself=by_itself)
    _State.watch = None
    return is_first


def have_all_failed(job: str) -> bool:
    """Whether every process has failed in this job of a sweep, so that all of them can go on to the next one.

    Args:
        job: a name that all processes have for it, each job another.
    """
    return _State.watch is None or _State.watch.have_all_failed(job)


def ended(*, by_signal: bool = False) -> None:
    """Tells the others that this process ends in good order, and waits a moment until they do too.

    Args:
        by_signal: a signal has ended it, which may have come from a launcher because another process is gone. If so,
            this does not return.
    """
    if _State.watch is not None:
        _outlive_launcher()
        has_store = index() == 0 and not _torchrun_has_store()
        _State.watch.end(waits=AT_THE_END if has_store else PATIENCE if by_signal else 0)
        if by_signal:
            _State.watch.end_if_another_failed()
        _State.watch = None


def _is_first_before_the_watch(code: int) -> bool:
    """The same before the processes are connected: torchrun has a store of its own, others have none."""
    if not _torchrun_has_store():
        return True
    try:
        store = _connected(timedelta(seconds=PATIENCE))
        own = f"{index()} {code}"
        return bool(store.compare_set(_name("failed"), "", own).decode() == own)
    except RuntimeError:  # of torch; the message twice is better than none
        return True


def _torchrun_has_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _name(key: str) -> str:
    """The name of an entry, which is another one for each attempt of torchrun."""
    attempt = "/".join(os.environ.get(f"TORCHELASTIC_{part}", "") for part in ("RUN_ID", "RESTART_COUNT"))
    return f"loraga/{attempt}/{key}"


def _connected(timeout: timedelta) -> Any:
    """A connection to the store of these processes. torch's own may be waiting for something in another thread."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is documented there

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)


class _Watch(threading.Thread):
    """The thread that looks after the other processes."""

    def __init__(self, report: Callable[[str], None]):
        super().__init__(name="loraga-peers", daemon=True)
        self.report, self.index, self.others = report, index(), [other for other in range(count()) if other != index()]
        self.machine = this_container()
        self.store: Any = None
        self.connected = threading.Event()
        self.busy = threading.Lock()  # one request at a time goes through a connection
        self.stopped = threading.Event()
        self.addresses: dict[int, tuple[str, int, str]] = {}
        self.beats: dict[int, tuple[bytes, float]] = {}
        self.looks = 0

    def run(self) -> None:
        try:
            store = _connected(timedelta(minutes=10))
        except RuntimeError:
            return  # torch's own connection fails too, and says so
        store.set(_name(f"address/{self.index}"), f"{os.getpid()} {_began(os.getpid())} {self.machine}")
        self.store = store
        self.connected.set()
        threading.Thread(target=self._look_after_store, name="loraga-store", daemon=True).start()
        while not self.stopped.wait(PERIOD):
            self.looks += 1
            if self._host_is_killed():
                self._end_without_store()
            try:
                with self.busy:
                    self.store.set(_name(f"alive/{self.index}"), str(self.looks))
                    failed, lost = self._failed(), self._lost()
            except RuntimeError:
                if self.stopped.wait(PERIOD):
                    return
                self._end_without_store()
            if self.stopped.is_set():
                return
            if failed is not None:
                self._end_with(*failed)
            if lost is not None:
                self._say_and_end(*lost)

    def _look_after_store(self) -> None:
        """Ends this process when a request to the store takes too long. Its own rounds are counted, and not the time of
        day, because the whole process may have stood still."""
        rounds, looks = 0, self.looks
        while not self.stopped.wait(PERIOD):
            rounds, looks = rounds + 1 if self.looks == looks else 0, self.looks
            if rounds * PERIOD > SILENCE:
                self._end_without_store(f"process 0, or torchrun on its machine, has not answered for {SILENCE:.0f} s")

    def fail(self, code: int, *, by_itself: bool) -> bool:
        """See `has_failed_first`."""
        _outlive_launcher()
        if not by_itself:
            time.sleep(PATIENCE)  # if another process was first, this one ends here
        try:
            is_first = self._claim(code)
        except RuntimeError:  # the store is gone, and the thread ends this process for it
            time.sleep(PATIENCE)
            return True
        self.end(waits=PATIENCE if is_first and not _torchrun_has_store() else 0)
        return is_first

    def have_all_failed(self, job: str) -> bool:
        """See the function of this name."""
        until, name = time.monotonic() + PATIENCE, _name(f"job/{job}")
        if not self.connected.wait(PATIENCE):
            return False
        try:
            with self.busy:
                failed = self.store.add(name, 1)
            while failed < len(self.others) + 1 and time.monotonic() < until:
                time.sleep(PERIOD / 5)
                with self.busy:
                    failed = self.store.add(name, 0)
        except RuntimeError:
            return False
        return bool(failed == len(self.others) + 1)

    def end(self, *, waits: float) -> None:
        """See `ended`.

        Args:
            waits: seconds in which the others may need the store that ends with this process.
        """
        self._tell_done()
        self._wait_for_others(waits)
        self.stopped.set()

    def end_if_another_failed(self) -> None:
        """Ends this process without a message if another one has said why."""
        failed = None
        if self.store is not None:
            with contextlib.suppress(RuntimeError), self.busy:
                failed = self._failed()
        if failed is not None:
            self._end_with(*failed)

    def _tell_done(self) -> None:
        if self.store is not None:
            with contextlib.suppress(RuntimeError), self.busy:
                self.store.set(_name(f"done/{self.index}"), "1")

    def _claim(self, code: int) -> bool:
        """Whether no other process had failed before."""
        if self.store is None:
            return True
        own = f"{self.index} {code}"
        with self.busy:
            return bool(self.store.compare_set(_name("failed"), "", own).decode() == own)

    def _wait_for_others(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self.store is not None and time.monotonic() < until:
            with contextlib.suppress(RuntimeError), self.busy:
                if all(self._is_done(other) for other in self.others):
                    return
            time.sleep(PERIOD / 5)

    def _is_done(self, other: int) -> bool:
        return bool(self.store.check([_name(f"done/{other}")]))

    def _failed(self) -> tuple[int, int] | None:
        """The process that failed first, and its exit code."""
        if not self.store.check([_name("failed")]):
            return None
        process, code = map(int, self.store.get(_name("failed")).split())
        return None if process == self.index else (process, code)

    def _lost(self) -> tuple[int, str] | None:
        """A process that is gone without having said why, and how that is known."""
        for other in self.others:
            address = self._address(other)
            if address is None:
                continue
            if address[0] == self.machine:
                if not _exists(address[1], address[2]) and not self._is_done(other) and self._failed() is None:
                    return other, KILLED
            elif self.index == 0 and self._is_silent(other) and not self._is_done(other):
                return other, f"on {address[0].partition('/')[0]} has not answered for {SILENCE:.0f} s"
        return None

    def _address(self, other: int) -> tuple[str, int, str] | None:
        if other not in self.addresses and self.store.check([_name(f"address/{other}")]):
            number, began, machine = self.store.get(_name(f"address/{other}")).decode().split(" ", 2)
            self.addresses[other] = machine, int(number), began
        return self.addresses.get(other)

    def _is_silent(self, other: int) -> bool:
        """Whether the count of another process has not changed for long."""
        if not self.store.check([_name(f"alive/{other}")]):
            return False
        beat, now = self.store.get(_name(f"alive/{other}")), time.monotonic()
        if other not in self.beats or self.beats[other][0] != beat:
            self.beats[other] = beat, now
        return now - self.beats[other][1] > SILENCE

    def _host_is_killed(self) -> bool:
        """Whether process 0 is gone that hosted the store. (At its end in good order it waits for the others.)"""
        address = self.addresses.get(0)
        is_here = address is not None and address[0] == self.machine and not _torchrun_has_store()
        return address is not None and is_here and not _exists(address[1], address[2])

    def _end_without_store(self, why: str = "process 0, or torchrun on its machine, is gone") -> None:
        """Ends this process when the others cannot be asked any more. One of each machine says why."""
        here = [other for other, address in self.addresses.items() if address[0] == self.machine and other > 0]
        if self.index == min([self.index, *here]):
            self.report(f"process 0 {KILLED}" if self._host_is_killed() else why)
        _leave(1)

    def _say_and_end(self, lost: int, what: str) -> None:
        if self._claim(1):
            self.report(f"process {lost} {what}")
            self._tell_done()
            self._wait_for_others(0 if _torchrun_has_store() else PATIENCE)
        _leave(1)

    def _end_with(self, process: int, code: int) -> None:
        """Ends this process after the one that failed, which launchers report as the first one."""
        self._tell_done()
        until = time.monotonic() + LAST
        address = self.addresses.get(process)
        while address and address[0] == self.machine and _exists(address[1], address[2]) and time.monotonic() < until:
            time.sleep(PERIOD / 5)
        time.sleep(4 * PERIOD if _torchrun_has_store() else 0)  # torchrun looks several times a second
        _leave(code)


def _began(number: int) -> str | None:
    """When a process of this machine began, in ticks since the machine's start; None if it has ended.

    The time of day would differ after the clock was set. Where there is no /proc, this is the same for all processes.
    """
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return None
        return "-"
    try:
        state, *fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in ("Z", "X") else fields[18]


def _exists(number: int, began: str) -> bool:
    """Whether a process of this machine runs that began then: numbers of processes are used again."""
    try:
        return _began(number) == began
    except OSError:
        return True  # nothing speaks against it


def _outlive_launcher() -> None:
    """Ignores SIGTERM, which torchrun sends when it sees that a process has ended; a moment later this one does too."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _leave(code: int) -> None:
    """Ends this process from another thread than its main one, which may be waiting inside a library."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
