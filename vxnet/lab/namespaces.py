"""Work in a host's namespaces: a short-lived thread enters them, and what it starts is born there.

Never a pool's thread, as there is no way back; the process itself stays where it is. Children are Python's own
(``subprocess``), so signals, exit statuses and streams of what runs in a host are those of any child.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from vxnet.lab.process import Process, open_pidfd
from vxnet.model.errors import UnavailableError

T = TypeVar("T")

CLONE_FS: Final = 0x00000200
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

OF_A_HOST: Final = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
"""All but the cgroup namespace: its root is the cgroup of whoever makes it, so the host's init makes that one."""

MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_BIND: Final = 0x1000
MS_MOVE: Final = 0x2000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MS_SHARED: Final = 0x100000
MNT_DETACH: Final = 0x2

_libc = ctypes.CDLL(None, use_errno=True)


def in_new(work: Callable[[], T]) -> T:
    """Runs ``work`` in new namespaces of every kind but cgroup; children it starts are the first of a pid namespace."""

    def enter() -> None:
        _check(_libc.unshare(CLONE_FS | OF_A_HOST), "unshare")

    return _in_thread(enter, work)


def in_host(init: Process | None, name: str, work: Callable[[], T], kinds: int = OF_A_HOST) -> T:
    """Runs ``work`` in the namespaces (of these ``kinds``) of the host whose pid 1 is ``init``."""
    pidfd = open_pidfd(init) if init else None
    if pidfd is None:
        raise UnavailableError(f"host {name!r} is down", hint=f"start it with `vxnet lab start {name}`")

    def enter() -> None:
        _check(_libc.unshare(CLONE_FS), "unshare")  # no thread enters a mount namespace with a shared cwd and root
        _check(_libc.setns(pidfd, kinds), "setns")

    try:
        return _in_thread(enter, work)
    finally:
        os.close(pidfd)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None)
    _check(_libc.mount(*arguments), target)


def unmount(target: str) -> None:
    """At once for lookups, and in earnest when the last user is gone."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), target)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _in_thread(enter: Callable[[], None], work: Callable[[], T]) -> T:
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            enter()
            results.append(work())
        except BaseException as error:  # noqa: BLE001  carried over to the caller, whatever it is
            failures.append(error)

    thread = threading.Thread(target=run, name="vxnet-lab")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
