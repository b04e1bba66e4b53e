"""Work in a host's namespaces: a short-lived thread enters them, and what it starts is born there.

The process itself stays where it is. Children are Python's own (``subprocess``), so signals, exit statuses and streams
of what runs in a host are those of any child.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, TypeVar

from vxnet.host.netns import CLONE_FS, CLONE_NEWNET, CLONE_NEWNS, in_thread, setns, unshare
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
