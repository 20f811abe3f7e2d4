"""A filter of system calls (seccomp) that forbids what a program in a sandbox does not need.

Namespaces and limits (see `launch`) contain the program. The filter forbids what they leave open: memory that no limit
counts (memfd, System V IPC), new user namespaces, sockets of families without a namespace, and interfaces through
which programs have often escaped from containers.
"""

from __future__ import annotations

import errno
import struct

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
"""Offsets in ``struct seccomp_data``; that of an argument is its low half, as both machines are little-endian."""
ALLOW, FAIL, KILL = 0x7FFF0000, 0x00050000, 0x80000000
X32 = 0x40000000
"""Set in the numbers of a second set of calls that x86-64 kernels may offer."""
NAMESPACE_FLAGS = 0x7E020000
"""Every CLONE_NEW* of clone(2)."""

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
SHARED = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "memfd_secret": 447,
}
"""Denied calls whose number is the same on every machine (asm-generic/unistd.h)."""
DENIED = {
    "x86_64": {
        "shmget": 29,
        "socket": 41,
        "semget": 64,
        "msgget": 68,
        "ptrace": 101,
        "syslog": 103,
        "pivot_root": 155,
        "chroot": 161,
        "acct": 163,
        "mount": 165,
        "umount2": 166,
        "swapon": 167,
        "reboot": 169,
        "init_module": 175,
        "quotactl": 179,
        "mq_open": 240,
        "kexec_load": 246,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "unshare": 272,
        "perf_event_open": 298,
        "fanotify_init": 300,
        "name_to_handle_at": 303,
        "open_by_handle_at": 304,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "kcmp": 312,
        "finit_module": 313,
        "memfd_create": 319,
        "bpf": 321,
        "userfaultfd": 323,
    },
    "aarch64": {
        "umount2": 39,
        "mount": 40,
        "pivot_root": 41,
        "chroot": 51,
        "quotactl": 60,
        "acct": 89,
        "unshare": 97,
        "kexec_load": 104,
        "init_module": 105,
        "syslog": 116,
        "ptrace": 117,
        "reboot": 142,
        "mq_open": 180,
        "msgget": 186,
        "semget": 190,
        "shmget": 194,
        "socket": 198,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "swapon": 224,
        "perf_event_open": 241,
        "fanotify_init": 262,
        "name_to_handle_at": 264,
        "open_by_handle_at": 265,
        "setns": 268,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "kcmp": 272,
        "finit_module": 273,
        "memfd_create": 279,
        "bpf": 280,
        "userfaultfd": 282,
    },
}


def instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One BPF instruction; ``if_true`` and ``if_false`` are numbers of instructions to skip."""
    return struct.pack("=HBBI", code, if_true, if_false, operand)


def fail_with(error: int) -> bytes:
    return instruction(RETURN, FAIL | error)


def build(machine: str) -> bytes:
    """The filter as BPF instructions.

    Args:
        machine: the machine that `os.uname` names.

    Raises:
        KeyError: the numbers of its system calls are not in `DENIED`.
    """
    parts = [
        instruction(LOAD, ARCHITECTURE),
        instruction(EQUAL, AUDIT_ARCH[machine], if_true=1),
        instruction(RETURN, KILL),  # 32-bit programs number their calls differently
        instruction(LOAD, NUMBER),
    ]
    if machine == "x86_64":
        parts += [instruction(AT_LEAST, X32, if_false=1), instruction(RETURN, KILL)]
    for number in sorted({*SHARED.values(), *DENIED[machine].values()}):
        parts += [instruction(EQUAL, number, if_false=1), fail_with(errno.EPERM)]
    # the flags of clone3 are in memory, which a filter cannot read; the C library then uses clone
    parts += [instruction(EQUAL, CLONE3, if_false=1), fail_with(errno.ENOSYS)]
    parts += [
        instruction(EQUAL, CLONE[machine], if_false=3),
        instruction(LOAD, FIRST_ARGUMENT),
        instruction(ANY_BIT, NAMESPACE_FLAGS, if_false=1),
        fail_with(errno.EPERM),
        instruction(RETURN, ALLOW),
    ]
    return b"".join(parts)
