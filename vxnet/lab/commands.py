"""What the command line's ``vxnet lab …`` calls, one function a command.

They print nothing, and raise what is to be said.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from functools import partial

from vxnet.lab import foreground, operations, programs, state
from vxnet.lab.state import LabState
from vxnet.lab.views import LabView, view
from vxnet.model.errors import HostError, NotFoundError


def up(
    *,
    name: str = "lab",
    hosts: int = 3,
    outside: int = 0,
    mtu: int = 1500,
    ipv6: bool = False,
    join: bool = True,
    managers: int = 1,
    datapath: Sequence[str] = (),
    progress: Callable[[str], None] = lambda text: None,
) -> LabView:
    """Hosts h1…, a joined cluster whose first are its managers, outside machines x1…. Leaves nothing when it fails."""
    made = operations.create(
        name,
        hosts=hosts,
        outside=outside,
        mtu=mtu,
        ipv6=ipv6,
        join=join,
        managers=managers,
        datapath=datapath,
        progress=progress,
    )
    return view(made)


def down(*, name: str = "lab", all: bool = False) -> tuple[str, ...]:
    """Removes a lab, or all; the names of those that there were."""
    return tuple(found for found in (state.names() if all else (name,)) if operations.destroy(found))


def ls() -> tuple[LabView, ...]:
    """One whose file is damaged has no hosts."""
    views = []
    for name in state.names():
        with contextlib.suppress(NotFoundError):  # removed meanwhile
            try:
                views.append(view(state.load(name)))
            except HostError:
                views.append(view(LabState(name=name)))
    return tuple(views)


def exec_(*, host: str, argv: Sequence[str], name: str = "lab") -> int:
    """Runs a command on a host with this process's streams and terminal.

    Returns its exit status; 128 + N when signal N ended it. A program that is not there is a :class:`NotFoundError`.
    """
    init = state.load(name).host(host).init
    return foreground.wait_for(partial(programs.popen, init, host, argv))


def shell(*, host: str, name: str = "lab") -> int:
    """An interactive shell on a host; the exit status of the last command in it."""
    wanted = os.environ.get("SHELL", "")
    return exec_(host=host, argv=[wanted if os.access(wanted, os.X_OK) else "/bin/sh"], name=name)


def cut(*, host: str, other: str | None = None, name: str = "lab") -> None:
    operations.cut(name, host, other)


def heal(*, host: str | None = None, other: str | None = None, name: str = "lab") -> None:
    operations.heal(name, host, other)


def kill(*, host: str, daemon: bool = False, name: str = "lab") -> None:
    operations.kill_daemon(name, host) if daemon else operations.kill_host(name, host)


def start(*, host: str, name: str = "lab") -> None:
    operations.start_host(name, host)
