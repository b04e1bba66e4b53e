"""Work in a host's namespaces: a short-lived thread enters them, and what it starts is born there.

The process itself stays where it is. Children are Python's own (``subprocess``), so signals, exit statuses and streams
of what runs in a host are those of any child.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from vxnet.host.netns import (
    CLONE_FS,
    CLONE_NEWNET,
    CLONE_NEWNS,
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    in_thread,
    mount,
    setns,
    umount,
    unshare,
)
from vxnet.lab.process import Process, open_pidfd
from vxnet.model.errors import UnavailableError

T = TypeVar("T")

CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWPID: Final = 0x20000000

OF_A_HOST: Final = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
"""All but the cgroup namespace: its root is the cgroup of whoever makes it, so the host's init makes that one."""


def in_new(work: Callable[[], T]) -> T:
    """Runs ``work`` in new namespaces of every kind but cgroup; the first child it starts becomes their pid 1."""

    def run() -> T:
        unshare(CLONE_FS | OF_A_HOST)
        return work()

    return in_thread(run)


def in_host(init: Process | None, name: str, work: Callable[[], T], kinds: int = OF_A_HOST) -> T:
    """Runs ``work`` in the namespaces (of these ``kinds``) of the host whose pid 1 is ``init``."""
    pidfd = open_pidfd(init) if init else None
    if pidfd is None:
        raise UnavailableError(f"host {name!r} is down", hint=f"start it with `vxnet lab start {name}`")

    def run() -> T:
        unshare(CLONE_FS)  # no thread enters a mount namespace with a shared cwd and root
        setns(pidfd, kinds)  # all at once, of this very process (Linux 5.8)
        return work()

    try:
        return in_thread(run)
    finally:
        os.close(pidfd)


def own_mounts() -> None:
    """Makes the calling thread's new mount namespace independent of the machine's, with what is / here at its root.

    The latter is not so in a chroot: who enters a mount namespace gets *its* root, not the one that its makers had.
    """
    here = os.open("/", os.O_PATH | os.O_CLOEXEC)
    own = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(own, CLONE_NEWNS)
        mount("none", "/", None, MS_REC | MS_PRIVATE)
        if not os.path.samestat(os.fstat(here), os.stat("/")):
            os.fchdir(here)
            mount(".", "/", None, MS_BIND | MS_REC)
            setns(own, CLONE_NEWNS)
    finally:
        os.close(own)
        os.close(here)
    _let_go_of_namespaces()


def _let_go_of_namespaces() -> None:
    """The machine's named namespaces would outlive their removal in this copy of its mounts."""
    for line in Path("/proc/thread-self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] == "nsfs":
            with contextlib.suppress(OSError):  # unmounted with another, below which it was
                umount(before.split()[4])
