"""Builds a sandbox, runs a program in it, and reports how the program ended.

The process that starts here enters new namespaces and forks process 1 of them. Process 1 builds the file system, forks
the program, and waits until the program has ended, its time is over or it has printed too much. Then process 1 ends,
and with it the kernel kills everything that is left in the sandbox.

The process that starts here stays outside and adds up the memory of all processes inside. Above the limit it kills
process 1: the kernel's own limit counts each process alone.

The process that starts here and process 1 ask the kernel for a signal at the death of their parent. It does not come
to a process that asks after that death, and new user ids cancel the request. So each parent also holds one end of a
pipe, whose close tells of its end, and the child looks at it after each request.

The job is read as JSON from standard input, and the report is written as JSON to standard output.
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
"""User and group of the program inside the sandbox."""
HIGHEST_ID = 2_000_000_000
"""Ids that root can give to the program are below this one; some tools give a meaning to those above."""
OPEN_FILES = 64
STACK = 8 << 20
KEPT_OUTPUT = 4096
"""Bytes at the end of the output that the report quotes."""
WATCHED_EVERY = 0.02
"""Seconds between two looks at the memory of all processes in a sandbox."""
HELD = ("RssAnon:", "RssShmem:", "VmSwap:")
"""Lines of /proc/PID/status, in KiB: memory that a process holds, without the files of libraries that it maps."""
FREE = 100
"""No file descriptor from this one on is in use."""


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    job = json.load(sys.stdin.buffer)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    for channel in (*job["channels"], job["lifeline"]):
        os.set_inheritable(channel, False)
    if _is_closed(job["lifeline"]):
        return
    own_lifeline, held = os.pipe()
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)  # process 1 hides the path from this process too
    try:
        has_spare_id = _enter_namespaces()
        if _is_closed(job["lifeline"]):
            return
        init = os.fork()
        if init == 0:
            os.close(held)
            os.close(proc)
            _be_init(job, has_spare_id, [job["lifeline"], own_lifeline])
    except (kernel.Refused, OSError) as error:
        _report(_refusal(error, "processes"))
        return

    signal.signal(signal.SIGTERM, lambda *_: os.kill(init, signal.SIGKILL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    for channel in job["channels"]:
        os.close(channel)  # the process at the other end must see when the program ends
    too_much = _watch_memory(init, proc, job["memory"])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if too_much:
        _report(_ended("memory", 0, b""))


def _watch_memory(init: int, proc: int, limit: int) -> bool:
    """Waits until process 1 has ended, and ends it if the processes of its sandbox together hold too much memory.

    Args:
        init: process 1, by its number outside.
        proc: the open folder /proc of the host.
        limit: bytes. Memory that processes share counts in each of them.

    Returns:
        Whether they held too much.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    too_much = False
    while os.waitpid(init, os.WNOHANG)[0] != init:  # it ends after all processes of its namespace
        if not too_much and sum(_held(pid, proc) for pid in _descendants(init, proc)) > limit:
            too_much = True
            os.kill(init, signal.SIGKILL)
        signal.sigtimedwait({signal.SIGCHLD}, WATCHED_EVERY)
    return too_much


def _descendants(pid: int, proc: int) -> list[int]:
    """The processes of a sandbox other than process 1, which gets those whose parent has ended."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in _threads(pid, proc):
            for child in map(int, _read(f"{pid}/task/{thread}/children", proc).split()):
                found += [child, *_descendants(child, proc)]
    return found


def _threads(pid: int, proc: int) -> list[str]:
    folder = os.open(f"{pid}/task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=proc)
    try:
        return os.listdir(folder)  # noqa: PTH208 - of an open folder
    finally:
        os.close(folder)


def _read(path: str, folder: int) -> str:
    with os.fdopen(os.open(path, os.O_RDONLY, dir_fd=folder), encoding="utf-8", errors="replace") as file:
        return file.read()


def _held(pid: int, proc: int) -> int:
    """Bytes of memory that a process holds; 0 if it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        lines = (line.split() for line in _read(f"{pid}/status", proc).splitlines())
        return sum(int(words[1]) << 10 for words in lines if words[0] in HELD)
    return 0


def _is_closed(lifeline: int) -> bool:
    """Whether the process at the other end of a pipe has ended."""
    poll = select.poll()
    poll.register(lifeline, 0)
    return bool(poll.poll(0))


def _report(report: dict[str, Any]) -> None:
    text = json.dumps(report).encode() + b"\n"
    while text:
        text = text[os.write(1, text) :]


def _refusal(error: kernel.Refused | OSError, used: str) -> dict[str, Any]:
    """The report of a sandbox that could not be built.

    Args:
        used: what the step used, if that was not a file.
    """
    step = error.step if isinstance(error, kernel.Refused) else f"using {error.filename or used}"
    return {"refused": step, "errno": error.errno}


def _enter_namespaces() -> bool:
    """Enters new namespaces, with all rights inside them and none outside.

    The limit on processes does not hold for root, so root gives the program a spare id that nobody uses. Other users
    can only map their own id; there the limit counts the processes of the sandbox, or, on kernels before 5.14, all
    processes of the user.

    Returns:
        Whether the program gets a spare id.
    """
    spare = _spare_id("/proc/self/uid_map"), _spare_id("/proc/self/gid_map")
    has_spare_id = os.geteuid() == 0 and None not in spare
    pid = os.getpid()
    wake, waker = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(waker)
        failed = errno.EPERM
        try:
            if os.read(wake, 1):
                _map_ids(pid, spare if has_spare_id else None)
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
    if has_spare_id:
        os.setgroups([])
    kernel.die_with_parent(signal.SIGKILL)
    return has_spare_id


def _spare_id(map_file: str) -> int | None:
    """An id that probably nobody uses; None if only the user's own id is mapped."""
    with open(map_file, encoding="ascii") as file:  # noqa: PTH123
        ranges = [[int(field) for field in line.split()] for line in file]
    top = max((first + count for first, _, count in ranges if first < HIGHEST_ID), default=0)
    spare = min(top, HIGHEST_ID) - 1 - os.getpid() % 1000  # sandboxes that run at the same time get different ids
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


def _be_init(job: dict[str, Any], has_spare_id: bool, lifelines: list[int]) -> NoReturn:
    """Process 1: writes the report and ends, which ends all other processes of the sandbox.

    Args:
        lifelines: pipes of which the processes outside hold the other ends.
    """
    try:
        kernel.die_with_parent(signal.SIGKILL)
        if any(map(_is_closed, lifelines)):
            os._exit(0)
        kernel.prctl("hiding from the program", kernel.PR_SET_DUMPABLE, 0)
        kernel.set_host_name("sandbox")
        filesystem.build(job["files"], disk=job["disk"], owner=ID)
        _report(_run(job, has_spare_id, lifelines))
    except (kernel.Refused, OSError) as error:
        _report(_refusal(error, "the file system"))
    finally:
        os._exit(0)


def _run(job: dict[str, Any], has_spare_id: bool, lifelines: list[int]) -> dict[str, Any]:
    wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    output, printed_to = os.pipe()
    os.set_blocking(output, False)
    fault, fault_to = os.pipe()
    deadline = time.monotonic() + job["seconds"]
    program = os.fork()
    if program == 0:
        _become_program(job, has_spare_id, printed_to, fault_to)
    for channel in (printed_to, fault_to, *job["channels"]):
        os.close(channel)
    with os.fdopen(fault, "rb") as file:
        refused = file.read()  # ends when the program has been started
    if refused:
        return json.loads(refused)
    report = _watch(program, output, wake, lifelines, deadline, job["output"])
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)  # otherwise the program could see its output close when this process ends
    return report


def _watch(program: int, output: int, wake: int, lifelines: list[int], deadline: float, limit: int) -> dict[str, Any]:
    """Waits for the end of the program, or of a process outside; child processes of the program may still run."""
    poll = select.poll()
    poll.register(output, select.POLLIN)
    poll.register(wake, select.POLLIN)
    for line in lifelines:
        poll.register(line, 0)  # its close is always told
    tail, length, status = b"", 0, None
    while status is None:
        left = deadline - time.monotonic()
        if left <= 0:
            return _ended("timed out", 0, tail)
        for ready, _ in poll.poll(left * 1000 + 1):
            if ready in lifelines:
                return _ended("killed", signal.SIGKILL, tail)  # nobody may read it
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
    """Reaps all ended child processes; returns the status of the program if it is one of them."""
    program_status = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return program_status
            if pid == program:
                program_status = status
    return program_status


def _become_program(job: dict[str, Any], has_spare_id: bool, output: int, fault: int) -> NoReturn:
    try:
        fault = fcntl.fcntl(fault, fcntl.F_DUPFD_CLOEXEC, FREE)
        inherited = [0, output, output, *job["channels"]]
        above = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, FREE) for file in inherited]
        for target, file in enumerate(above):
            os.dup2(file, target)
        os.closerange(len(inherited), FREE)
        os.setsid()
        os.chdir("/tmp")
        _limit(job)
        kernel.bound_no_capabilities()
        if has_spare_id:
            os.setresgid(ID, ID, ID)
            os.setresuid(ID, ID, ID)
        kernel.drop_capabilities()
        kernel.no_new_privileges()
        for number in (signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        start = f"import sys; sys.path.insert(0, {filesystem.FOLDER!r}); from {job['module']} import main; main()"
        kernel.install_filter(syscalls.build(os.uname().machine))
        python = os.path.realpath(sys.executable)
        os.execve(python, [python, "-I", "-S", "-B", "-X", "utf8", "-c", start], {})
    except (kernel.Refused, OSError) as error:
        refused = _refusal(error, "the limits")
    except KeyError:
        refused = {"refused": f"filtering system calls on {os.uname().machine}", "errno": errno.ENOSYS}
    os.write(fault, json.dumps(refused).encode())
    os._exit(1)


def _limit(job: dict[str, Any]) -> None:
    limits = {
        resource.RLIMIT_AS: job["memory"],
        resource.RLIMIT_CPU: int(job["seconds"]) + 1,
        # process 1 and its parent outside count too if they have the same id
        resource.RLIMIT_NPROC: job["tasks"] + 2,
        resource.RLIMIT_FSIZE: job["disk"],
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_STACK: STACK,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (soft, soft))
