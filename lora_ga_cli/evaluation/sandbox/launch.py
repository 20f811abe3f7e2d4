"""Builds a box around a program, runs it there, and reports how it ended.

The process that starts here enters namespaces of its own and forks process 1 of them. That one builds the file system,
forks the program, and waits: until it has ended, its time is over or it has printed too much. Then process 1 ends, and
with it the kernel kills whatever is left in the box.

The order comes as JSON on standard input, and the report goes as JSON to standard output.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any, NoReturn

from lora_ga_cli.evaluation.sandbox import filesystem, kernel, syscalls

NAMESPACES = (
    kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWCGROUP
)
ID = 1000
"""User and group of the program as the box sees it."""
HIGHEST_ID = 2_000_000_000
"""Ids for root to lend are looked for below; those above mean something to some tools."""
OPEN_FILES = 64
STACK = 8 << 20
KEPT_OUTPUT = 4096
"""Bytes of output that the report quotes, the last."""
FREE = 100
"""File descriptors from this one on are used by nobody."""


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    order = json.load(sys.stdin.buffer)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    for channel in order["channels"]:
        os.set_inheritable(channel, False)
    try:
        lent = _enter_namespaces()
        init = os.fork()
        if init == 0:
            _be_init(order, lent)
    except (kernel.Refused, OSError) as error:
        _report(_refusal(error, "processes"))
        return

    signal.signal(signal.SIGTERM, lambda *_: os.kill(init, signal.SIGKILL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    for channel in order["channels"]:
        os.close(channel)  # whoever listens at the other end must see the program go
    os.waitpid(init, 0)  # returns only when all in its namespace are gone
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _report(report: dict[str, Any]) -> None:
    text = json.dumps(report).encode() + b"\n"
    while text:
        text = text[os.write(1, text) :]


def _refusal(error: kernel.Refused | OSError, used: str) -> dict[str, Any]:
    """The report of a box that could not be built.

    Args:
        used: what the step used, where it was no file.
    """
    step = error.step if isinstance(error, kernel.Refused) else f"using {error.filename or used}"
    return {"refused": step, "errno": error.errno}


def _enter_namespaces() -> bool:
    """Leaves this process with all rights in new namespaces and none outside; says whether an id was lent to it.

    Root lends the program an id that nobody else uses, for the limit on processes does not bind root. Anyone else can
    only lend their own, and there the limit counts the box alone, or on kernels before 5.14 all their processes.
    """
    spare = _spare_id("/proc/self/uid_map"), _spare_id("/proc/self/gid_map")
    lent = os.geteuid() == 0 and None not in spare
    pid = os.getpid()
    wake, waker = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(waker)
        failed = errno.EPERM
        try:
            if os.read(wake, 1):
                _map_ids(pid, spare if lent else None)
            failed = 0
        except OSError as error:
            failed = error.errno or failed
        finally:
            os._exit(failed)
    os.close(wake)
    try:
        kernel.unshare(NAMESPACES)
        os.write(waker, b"!")
    finally:
        os.close(waker)
        failed = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
    if failed:
        raise kernel.Refused("mapping user and group ids", abs(failed))
    if lent:
        os.setgroups([])
    kernel.die_with_parent(signal.SIGKILL)
    return lent


def _spare_id(map_file: str) -> int | None:
    """An id that nobody uses, as far as one can tell; None where there is no other than one's own."""
    with open(map_file, encoding="ascii") as file:  # noqa: PTH123
        ranges = [[int(field) for field in line.split()] for line in file]
    top = max((first + count for first, _, count in ranges if first < HIGHEST_ID), default=0)
    spare = min(top, HIGHEST_ID) - 1 - os.getpid() % 1000  # two boxes at once have two
    return spare if any(first <= spare < first + count for first, _, count in ranges) and spare > 0 else None


def _map_ids(pid: int, spare: tuple[int | None, int | None] | None) -> None:
    if spare is None:
        users, groups = f"{ID} {os.geteuid()} 1", f"{ID} {os.getegid()} 1"
        _write(f"/proc/{pid}/setgroups", "deny")
    else:
        users, groups = (f"0 0 1\n{ID} {number} 1" for number in spare)
    _write(f"/proc/{pid}/gid_map", groups)
    _write(f"/proc/{pid}/uid_map", users)


def _write(path: str, text: str) -> None:
    file = os.open(path, os.O_WRONLY)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def _be_init(order: dict[str, Any], lent: bool) -> NoReturn:
    """Process 1: it reports and ends, and takes all others with it."""
    try:
        kernel.die_with_parent(signal.SIGKILL)
        kernel.prctl("hiding from the program", kernel.PR_SET_DUMPABLE, 0)
        kernel.set_host_name("box")
        filesystem.build(order["files"], disk=order["disk"], owner=ID)
        _report(_run(order, lent))
    except (kernel.Refused, OSError) as error:
        _report(_refusal(error, "the file system"))
    finally:
        os._exit(0)


def _run(order: dict[str, Any], lent: bool) -> dict[str, Any]:
    wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    output, printed_to = os.pipe()
    os.set_blocking(output, False)
    fault, fault_to = os.pipe()
    deadline = time.monotonic() + order["seconds"]
    program = os.fork()
    if program == 0:
        _become_program(order, lent, printed_to, fault_to)
    for channel in (printed_to, fault_to, *order["channels"]):
        os.close(channel)
    with os.fdopen(fault, "rb") as file:
        refused = file.read()  # ends when the program is there
    if refused:
        return json.loads(refused)
    report = _watch(program, output, wake, deadline, order["output"])
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)  # or, as this process ends, it would still see its output break off
    return report


def _watch(program: int, output: int, wake: int, deadline: float, limit: int) -> dict[str, Any]:
    """Waits for the end of the program; its children need not have ended."""
    poll = select.poll()
    poll.register(output, select.POLLIN)
    poll.register(wake, select.POLLIN)
    tail, length, status = b"", 0, None
    while status is None:
        left = deadline - time.monotonic()
        if left <= 0:
            return _ended("timed out", 0, tail)
        for ready, _ in poll.poll(left * 1000 + 1):
            if ready == wake:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
                status = _reap(program)
                continue
            read = os.read(output, 65536)
            if not read:
                poll.unregister(output)
            tail, length = (tail + read)[-KEPT_OUTPUT:], length + len(read)
            if length > limit:
                return _ended("printed too much", 0, tail)
    with contextlib.suppress(BlockingIOError):
        while (read := os.read(output, 65536)) and length <= limit:
            tail, length = (tail + read)[-KEPT_OUTPUT:], length + len(read)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU:
        return _ended("timed out", 0, tail)
    return _ended("killed", -code, tail) if code < 0 else _ended("exited", code, tail)


def _ended(how: str, code: int, tail: bytes) -> dict[str, Any]:
    return {"how": how, "code": code, "output": tail.decode(errors="replace")}


def _reap(program: int) -> int | None:
    """Buries all dead children; the status of the program if it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return found
            if pid == program:
                found = status
    return found


def _become_program(order: dict[str, Any], lent: bool, output: int, fault: int) -> NoReturn:
    try:
        fault = fcntl.fcntl(fault, fcntl.F_DUPFD_CLOEXEC, FREE)
        inherited = [0, output, output, *order["channels"]]
        above = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, FREE) for file in inherited]
        for target, file in enumerate(above):
            os.dup2(file, target)
        os.closerange(len(inherited), FREE)
        os.setsid()
        os.chdir("/tmp")
        _limit(order)
        kernel.bound_no_capabilities()
        if lent:
            os.setresgid(ID, ID, ID)
            os.setresuid(ID, ID, ID)
        kernel.drop_capabilities()
        kernel.no_new_privileges()
        for number in (signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        start = f"import sys; sys.path.insert(0, {filesystem.BOX!r}); from {order['module']} import main; main()"
        kernel.install_filter(syscalls.build(os.uname().machine))
        python = os.path.realpath(sys.executable)
        os.execve(python, [python, "-I", "-S", "-B", "-X", "utf8", "-c", start], {})
    except (kernel.Refused, OSError) as error:
        refused = _refusal(error, "the limits")
    except KeyError:
        refused = {"refused": f"filtering system calls on {os.uname().machine}", "errno": errno.ENOSYS}
    os.write(fault, json.dumps(refused).encode())
    os._exit(1)


def _limit(order: dict[str, Any]) -> None:
    limits = {
        resource.RLIMIT_AS: order["memory"],
        resource.RLIMIT_CPU: int(order["seconds"]) + 1,
        # process 1 and the one outside count too, where they have the same id
        resource.RLIMIT_NPROC: order["tasks"] + 2,
        resource.RLIMIT_FSIZE: order["disk"],
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_STACK: STACK,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (most, most))
