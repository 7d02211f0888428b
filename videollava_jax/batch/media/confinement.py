"""Confines a worker process: no network, no new programs, no new privileges, no signals to others. Linux; no JAX.

The filter is seccomp's, which needs no privileges: a list of system calls that fail with EPERM. Its instructions are
those of classic BPF (linux/filter.h, linux/seccomp.h, linux/audit.h).
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from dataclasses import dataclass

_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _ALL_THREADS = 1, 1  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050001, 0x80000000  # SECCOMP_RET_ALLOW, RET_ERRNO | EPERM, RET_KILL_PROCESS
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_GREATER_OR_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_X32 = 0x40000000  # another numbering of the same calls


@dataclass(frozen=True)
class _Machine:
    """The numbers of system calls on one architecture."""

    audit: int
    seccomp: int
    tgkill: int
    refused: dict[str, int]


_MACHINES = {
    "x86_64": _Machine(
        0xC000003E,
        317,
        234,
        {"socket": 41, "execve": 59, "execveat": 322, "kill": 62, "tkill": 200, "ptrace": 101, "process_vm_readv": 310,
         "process_vm_writev": 311, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "pidfd_open": 434,
         "pidfd_send_signal": 424, "io_uring_setup": 425, "bpf": 321, "userfaultfd": 323, "keyctl": 250},
    ),
    "aarch64": _Machine(
        0xC00000B7,
        277,
        131,
        {"socket": 198, "execve": 221, "execveat": 281, "kill": 129, "tkill": 130, "ptrace": 117,
         "process_vm_readv": 270, "process_vm_writev": 271, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240,
         "pidfd_open": 434, "pidfd_send_signal": 424, "io_uring_setup": 425, "bpf": 280, "userfaultfd": 282,
         "keyctl": 219},
    ),
}  # fmt: skip


def confine() -> bool:
    """Confines this process with all its threads from now on; returns whether the kernel did it.

    Its children are confined too. A process may still read files, and signal its own threads.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None or platform.system() != "Linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    raw = _program(machine, os.getpid())
    instructions = ctypes.create_string_buffer(raw, len(raw))
    program = struct.pack("@HP", len(raw) // 8, ctypes.addressof(instructions))
    return bool(libc.syscall(machine.seccomp, _SET_MODE_FILTER, _ALL_THREADS, program) == 0)


def _program(machine: _Machine, process: int) -> bytes:
    """Writes the filter: each instruction is a code, how many to skip if true and if false, and a number."""
    refused = sorted(machine.refused.values())
    # The returns stand at the end: what fails, what ends the process.
    checks: list[tuple[int, str, str, int]] = [
        (_LOAD, "", "", _ARCHITECTURE),
        (_JUMP_IF_EQUAL, "", "kill", machine.audit),
        (_LOAD, "", "", _NUMBER),
        (_JUMP_IF_GREATER_OR_EQUAL, "kill", "", _X32),
        *((_JUMP_IF_EQUAL, "fail", "", number) for number in refused),
        (_JUMP_IF_EQUAL, "", "allow", machine.tgkill),
        (_LOAD, "", "", _FIRST_ARGUMENT),
        (_JUMP_IF_EQUAL, "allow", "fail", process),
    ]
    returns = {"allow": _ALLOW, "fail": _FAIL, "kill": _KILL}
    where = {name: len(checks) + at for at, name in enumerate(returns)}
    raw = b""
    for at, (code, if_true, if_false, number) in enumerate(checks):
        skips = [where[name] - at - 1 if name else 0 for name in (if_true, if_false)]
        raw += struct.pack("=HBBI", code, *skips, number)
    return raw + b"".join(struct.pack("=HBBI", _RETURN, 0, 0, value) for value in returns.values())
