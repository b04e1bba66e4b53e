"""The system calls that a container may not make: Docker's default deny list, compiled to BPF by libseccomp.

libseccomp works here and not in the shim: its 300 kB of tables would be in every container's shim, which is to stay
below 1 MB, and here it is loaded once. The shim gets the finished program as a sealed file in memory that all
containers with the same capabilities share, and so needs no system call numbers of its own.

A deny list lets through what is not in it, so what comes after Linux 6.3 (:data:`NEWEST`) is answered with ENOSYS as
an older kernel would: nothing that this list's author has not seen. Processes then do without, as they can.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import struct
import sys
from typing import Final

from vxnet.model.errors import HostError

NEWEST: Final = 450
"""set_mempolicy_home_node, the last that libseccomp 2.5 knows. From 424 on, numbers are the same everywhere but in
Alpha."""
_ARM_PRIVATE: Final = 0x0F0000
"""32-bit ARM has calls of its own from here on; x32's begin above and are refused as a foreign architecture."""

DENIED: Final = (
    *("_sysctl", "acct", "add_key", "afs_syscall", "bpf", "chroot", "clock_settime", "clock_settime64", "clone3"),
    *("create_module", "delete_module", "fanotify_init", "finit_module", "fsconfig", "fsmount", "fsopen", "fspick"),
    *("get_kernel_syms", "get_mempolicy", "init_module", "io_uring_enter", "io_uring_register", "io_uring_setup"),
    *("ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "mbind"),
    *("migrate_pages", "mount", "mount_setattr", "move_mount", "move_pages", "nfsservctl", "open_by_handle_at"),
    *("open_tree", "perf_event_open", "pidfd_getfd", "pivot_root", "process_madvise", "query_module", "quotactl"),
    *("quotactl_fd", "reboot", "request_key", "set_mempolicy", "set_mempolicy_home_node", "setdomainname"),
    *("sethostname", "setns", "settimeofday", "stime", "swapoff", "swapon", "sysfs", "syslog", "umount", "umount2"),
    *("unshare", "uselib", "userfaultfd", "ustat", "vhangup", "vm86", "vm86old", "vserver"),
)
ALLOWED_WITH: Final = {
    "SYS_ADMIN": (
        *("bpf", "clone3", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "lookup_dcookie", "mount"),
        *("mount_setattr", "move_mount", "open_tree", "perf_event_open", "quotactl", "quotactl_fd", "setdomainname"),
        *("sethostname", "setns", "syslog", "umount", "umount2", "unshare"),
    ),
    "BPF": ("bpf",),
    "DAC_READ_SEARCH": ("open_by_handle_at",),
    "PERFMON": ("perf_event_open",),
    "SYSLOG": ("syslog",),
    "SYS_BOOT": ("reboot",),
    "SYS_CHROOT": ("chroot",),
    "SYS_MODULE": ("delete_module", "finit_module", "init_module"),
    "SYS_NICE": ("get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"),
    "SYS_PACCT": ("acct",),
    "SYS_PTRACE": ("kcmp", "pidfd_getfd", "process_madvise"),
    "SYS_RAWIO": ("ioperm", "iopl"),
    "SYS_TIME": ("clock_settime", "clock_settime64", "settimeofday", "stime"),
    "SYS_TTY_CONFIG": ("vhangup",),
}
"""Capability -> what it gives back."""
_ABSENT: Final = frozenset({"clone3"})
"""Answered with ENOSYS: its flags lie in memory, where no filter sees them, and the C library then uses clone."""
_NAMESPACE_FLAGS: Final = (0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x00020000)
"""CLONE_NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWNS."""
_PERSONALITIES: Final = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""Linux, Linux of 32 bits, either with an old uname; and the question which one."""
_AF_VSOCK: Final = 40

# linux/seccomp.h, seccomp.h, linux/filter.h
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EQUAL, _MASKED_EQUAL = 4, 7
_BAD_ARCHITECTURE = 2
_X86, _X86_64, _ARM, _AARCH64 = 0x40000003, 0xC000003E, 0x40000028, 0xC00000B7
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
_NR, _ARCHITECTURE = 0, 4
_FIRST_ARGUMENT = 16 if sys.byteorder == "little" else 20
"""Offsets in ``struct seccomp_data``; of the argument its lower half."""
_INSTRUCTION = struct.Struct("=HBBI")


class _Comparison(ctypes.Structure):
    """``struct scmp_arg_cmp``."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operation", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


@functools.cache  # one that was dropped would stay open
def filter_file(capabilities: frozenset[str]) -> int:
    """A descriptor of the program for a container with these capabilities (``struct sock_filter``\\ s, sealed). It is
    shared and stays open. Takes some milliseconds the first time. Raises :class:`HostError`: without it nothing starts.
    """
    program = _compile(capabilities)
    descriptor = os.memfd_create("vxnet-seccomp", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, program)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def denied(capabilities: frozenset[str]) -> frozenset[str]:
    """Names of what a container with these capabilities may not call at all."""
    given = {name for capability in capabilities for name in ALLOWED_WITH.get(capability, ())}
    return frozenset(DENIED) - given


def _compile(capabilities: frozenset[str]) -> bytes:
    library = _library()
    context = library.seccomp_init(_ALLOW)
    if not context:
        raise HostError("libseccomp makes no filter: out of memory?")
    try:
        native = library.seccomp_arch_native()
        compatible = {_X86_64: (_X86,), _AARCH64: (_ARM,)}.get(native, ())
        for other in compatible:
            _check(library.seccomp_arch_add(context, other), "an architecture")
        _check(library.seccomp_attr_set(context, _BAD_ARCHITECTURE, _ERRNO | errno.ENOSYS), "an attribute")
        for name in sorted(denied(capabilities)):
            _deny(library, context, name, errno.ENOSYS if name in _ABSENT else errno.EPERM)
        if "SYS_ADMIN" not in capabilities:
            for flag in _NAMESPACE_FLAGS:
                _deny(library, context, "clone", errno.EPERM, (0, _MASKED_EQUAL, flag, flag))
        _deny(library, context, "socket", errno.EPERM, (0, _EQUAL, _AF_VSOCK, 0))
        personality = {
            architecture: library.seccomp_syscall_resolve_name_arch(architecture, b"personality")
            for architecture in (native, *compatible)
        }
        return _before(personality) + _export(library, context)
    finally:
        library.seccomp_release(context)


def _before(personality: dict[int, int]) -> bytes:
    """What libseccomp has no words for, ahead of its program: too new is absent, and of the arguments of personality
    (its number by architecture) a few are good.
    """
    good = len(_PERSONALITIES)
    code = [
        (_LOAD, 0, 0, _NR),
        (_JUMP_GREATER_EQUAL, 0, 2, NEWEST + 1),
        (_JUMP_GREATER_EQUAL, 1, 0, _ARM_PRIVATE),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for architecture, number in personality.items():
        code += [
            (_LOAD, 0, 0, _ARCHITECTURE),
            (_JUMP_EQUAL, 0, good + 4, architecture),
            (_LOAD, 0, 0, _NR),
            (_JUMP_EQUAL, 0, good + 2, number),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            *((_JUMP_EQUAL, good - index, 0, value) for index, value in enumerate(_PERSONALITIES)),
            (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        ]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


def _deny(library: ctypes.CDLL, context: int, name: str, error: int, *when: tuple[int, int, int, int]) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number == -1:
        raise HostError(f"libseccomp does not know the system call {name}", hint="vxnet needs libseccomp 2.5 or later")
    comparisons = (_Comparison * max(len(when), 1))(*(_Comparison(*one) for one in when))
    done = library.seccomp_rule_add_array(context, _ERRNO | error, number, len(when), comparisons)
    _check(done, f"a rule for {name}")


def _export(library: ctypes.CDLL, context: int) -> bytes:
    descriptor = os.memfd_create("vxnet-seccomp-export", os.MFD_CLOEXEC)
    try:
        _check(library.seccomp_export_bpf(context, descriptor), "the program")
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)


def _check(result: int, what: str) -> None:
    if result < 0:
        raise HostError(f"libseccomp refuses {what} of the containers' filter: {os.strerror(-result)}")


@functools.lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise HostError(
            f"containers need libseccomp, which cannot be loaded: {error}", hint="apt-get install libseccomp2"
        ) from None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_arch_native.restype = ctypes.c_uint32
    library.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_syscall_resolve_name_arch.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Comparison),
    ]  # fmt: skip
    return library
