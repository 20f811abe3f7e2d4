"""The system calls that build a sandbox and that Python does not offer."""

from __future__ import annotations

import ctypes
import errno
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECCOMP_MODE_FILTER = 2
CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The kernel refused a step of building a sandbox.

    Args:
        step: what was tried, as ``creating namespaces``.
        error: the errno of the refusal.
    """

    def __init__(self, step: str, error: int):
        self.step, self.errno = step, error
        super().__init__(f"{step}: {os.strerror(error)}")


def _call(step: str, name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        raise Refused(step, ctypes.get_errno())


def unshare(flags: int) -> None:
    """Moves this process into new namespaces, of the kinds that the flags name."""
    _call("creating namespaces", "unshare", ctypes.c_int(flags))


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mounts a file system, or changes how one is mounted.

    Args:
        source: the device or folder; None where the kind needs none.
        kind: the type of the file system, as ``tmpfs``; None where one is bound or changed.
        flags: a sum of ``MS_...``.
        options: those of the file system, as ``size=1m``.
    """
    texts = [text if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _call(f"mounting {target}", "mount", *texts[:3], ctypes.c_ulong(flags), texts[3])


def unmount(target: str) -> None:
    """Hides a mount at once, and removes it when nothing uses it any more."""
    _call(f"unmounting {target}", "umount2", os.fsencode(target), ctypes.c_int(MNT_DETACH))


def pivot_root(new: str, old: str) -> None:
    """Makes ``new`` the root of the file system, and mounts the former root at ``old``."""
    _call("changing the root of the file system", "pivot_root", os.fsencode(new), os.fsencode(old))


def set_host_name(name: str) -> None:
    _call("naming the sandbox", "sethostname", name.encode(), ctypes.c_size_t(len(name)))


def prctl(step: str, option: int, *arguments: int | ctypes.c_void_p) -> None:
    """Changes a property of this process.

    Args:
        step: what is tried, for `Refused`.
        option: one of ``PR_...``.
    """
    values = [value if isinstance(value, ctypes.c_void_p) else ctypes.c_ulong(value) for value in arguments]
    values += [ctypes.c_ulong(0)] * (4 - len(values))
    _call(step, "prctl", ctypes.c_int(option), *values)


def die_with_parent(signal: int) -> None:
    """Has the kernel send this process a signal when its parent ends."""
    prctl("following the parent", PR_SET_PDEATHSIG, signal)


def no_new_privileges() -> None:
    """No program that is started from here gets rights from its file, as with setuid."""
    prctl("giving up new privileges", PR_SET_NO_NEW_PRIVS, 1)


def bound_no_capabilities() -> None:
    """No program that is started from here can have a capability, whoever owns its file."""
    for capability in range(64):
        try:
            prctl("giving up capabilities", PR_CAPBSET_DROP, capability)
        except Refused as error:
            if error.errno != errno.EINVAL:
                raise
            break  # the first that this kernel does not know
    prctl("giving up capabilities", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)


def drop_capabilities() -> None:
    """Takes all capabilities from this process."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    _call("giving up capabilities", "capset", header, (ctypes.c_uint32 * 6)())


def install_filter(program: bytes) -> None:
    """Filters system calls from now on.

    Args:
        program: BPF instructions, 8 bytes each.
    """

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    filled = Program(len(program) // 8, program)
    address = ctypes.cast(ctypes.byref(filled), ctypes.c_void_p)
    prctl("filtering system calls", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, address)
