"""Takes from a process what decoding does not need: files, sockets, programs, other processes.

A decoder that hostile bytes have taken over can then only compute and answer. Everything that it may need has to be
imported and opened before.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterator

#: System calls that are allowed on Linux, x86_64. Others fail with EPERM, and so do all with another architecture's
#: numbers.
_ARCHITECTURE = 0xC000003E
_ALLOWED = {
    "read": 0, "write": 1, "close": 3, "poll": 7, "lseek": 8, "munmap": 11, "brk": 12, "rt_sigaction": 13,
    "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "readv": 19, "writev": 20, "sched_yield": 24, "mremap": 25,
    "madvise": 28, "getpid": 39, "exit": 60, "gettimeofday": 96, "getrusage": 98, "times": 100, "sigaltstack": 131,
    "gettid": 186, "time": 201, "futex": 202, "sched_getaffinity": 204, "restart_syscall": 219, "clock_gettime": 228,
    "clock_getres": 229, "exit_group": 231, "getcpu": 309, "getrandom": 318, "membarrier": 324, "rseq": 334,
}  # fmt: skip
_PROT_EXEC = 4
_WHOLE = 0xFFFFFFFF
#: Calls that are allowed for some arguments: number -> (argument, mask, what the masked argument must be); all must
#: hold.
_WITH_ARGUMENTS = {
    9: ((2, _PROT_EXEC, 0),),  # mmap
    10: ((2, _PROT_EXEC, 0),),  # mprotect
    # prlimit64 of this process, for its memory and CPU time alone
    302: ((0, _WHOLE, 0), (1, _WHOLE ^ resource.RLIMIT_AS ^ resource.RLIMIT_CPU, 0)),
}
_TGKILL = 234  # of this process: abort()
_SET_NO_NEW_PRIVS, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _AND, _IF_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_ALLOW, _FORBID = 0x7FFF0000, 0x00050001


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def confine() -> None:
    """Confines this process for good: it gets no new descriptor, and few system calls where Linux filters them."""
    free = os.dup(0)  # the lowest number that is free
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, free))
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (0, 0))
    if why_unfiltered() is not None:
        return
    code = b"".join(struct.pack("=HBBI", *each) for each in _instructions())
    libc = ctypes.CDLL(None, use_errno=True)
    none = ctypes.c_ulong(0)
    for call in (
        (_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), none, none, none),
        (_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), ctypes.byref(_Program(len(code) // 8, code)), none, none),
    ):
        if libc.prctl(*call):
            raise OSError(ctypes.get_errno(), "prctl")


def why_unfiltered() -> str | None:
    """Why system calls cannot be filtered here, in a few words; None if they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or sys.maxsize < 1 << 32:
        return f"there is no filter for {platform.system()} on {platform.machine()}"
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), None, ctypes.c_ulong(0), ctypes.c_ulong(0))
    return None if ctypes.get_errno() == errno.EFAULT else "the kernel does not filter them"  # it would read the filter


def _instructions() -> Iterator[tuple[int, int, int, int]]:
    """The filter, as the kernel's packet filters are written: (what, skip if true, skip if false, value)."""
    yield _LOAD, 0, 0, 4  # the architecture
    yield _IF_EQUAL, 1, 0, _ARCHITECTURE
    yield _RETURN, 0, 0, _FORBID
    yield _LOAD, 0, 0, 0  # the call's number
    conditional = _WITH_ARGUMENTS | {_TGKILL: ((0, _WHOLE, os.getpid()),)}
    for number, conditions in {**dict.fromkeys(_ALLOWED.values(), ()), **conditional}.items():
        yield _IF_EQUAL, 0, 4 * len(conditions) + 1, number
        for argument, mask, value in conditions:
            yield _LOAD, 0, 0, 16 + 8 * argument  # its lower half
            yield _AND, 0, 0, mask
            yield _IF_EQUAL, 1, 0, value
            yield _RETURN, 0, 0, _FORBID
        yield _RETURN, 0, 0, _ALLOW
    yield _RETURN, 0, 0, _FORBID
