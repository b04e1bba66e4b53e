"""What a lab is, as its file ``/run/vxnet-lab/<lab>/lab.json`` says it, and the lock that guards the file.

The file is written before and while the lab grows, so that ``down`` can take away a lab whose ``up`` was killed at any
point. Nothing in it is trusted blindly: a process counts only while its start time matches (:mod:`vxnet.lab.process`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from msgspec.structs import replace

from vxnet.lab.process import Process
from vxnet.model import codec
from vxnet.model.address import IPAddress, IPInterface
from vxnet.model.cluster import Record
from vxnet.model.errors import CallerError, HostError, NotFoundError

RUN: Final = Path("/run/vxnet-lab")
"""Of all labs on this machine; a folder each, named like the lab."""
DISKS: Final = Path("/var/lib/vxnet-lab")
"""``<lab>/<host>``: what survives ``kill`` and ``start``."""
NETNS: Final = Path("/run/netns")
"""Where ``ip netns`` looks. Labs leave links there, not mounts, so that nothing is held alive by a name."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


class LabHost(Record, frozen=True, kw_only=True):
    name: str
    kind: Literal["host", "outside"]
    """``outside``: a machine on the underlay without a daemon."""
    interfaces: tuple[IPInterface, ...]
    """Of its eth1. The first is the one it advertises."""
    datapath: str = "auto"
    """What its daemon is told to use: kernel, userspace, auto."""
    init: Process | None = None
    """Its pid 1. None: not started, or killed."""
    daemon: Process | None = None

    @property
    def address(self) -> IPAddress:
        return self.interfaces[0].ip


class LabState(Record, frozen=True, kw_only=True):
    name: str
    mtu: int = 1500
    underlay: Process | None = None
    """Holds the namespace of the bridge that joins the hosts."""
    hosts: tuple[LabHost, ...] = ()
    daemon_argv: tuple[str, ...] = ()
    """What every host runs; empty: nothing."""
    unplugged: tuple[str, ...] = ()
    """Hosts whose link is cut."""
    parted: tuple[tuple[str, str], ...] = ()
    """Pairs of hosts that do not hear each other."""

    def host(self, name: str) -> LabHost:
        for host in self.hosts:
            if host.name == name:
                return host
        known = ", ".join(host.name for host in self.hosts)
        raise NotFoundError(f"lab {self.name!r} has no host {name!r}", hint=f"it has {known}" if known else "")

    def with_host(self, changed: LabHost) -> LabState:
        hosts = tuple(changed if host.name == changed.name else host for host in self.hosts)
        return replace(self, hosts=hosts)


def check_name(name: str) -> str:
    """``name``, if a lab may have it: it becomes a part of file, cgroup and namespace names."""
    if not _NAME.fullmatch(name):
        raise CallerError(
            f"a lab cannot be named {name!r}", hint="use up to 32 letters, digits, '-' and '_', a letter or digit first"
        )
    return name


def folder(name: str) -> Path:
    return RUN / name


def log_file(lab: str, host: str) -> Path:
    """What the host's daemon writes to stdout and stderr."""
    return folder(lab) / f"{host}.log"


def disk(lab: str, host: str) -> Path:
    return DISKS / lab / host


def netns_link(lab: str, host: str = "") -> Path:
    """For ``ip -n``. A dot parts the two names, as neither may hold one."""
    return NETNS / (f"vxnet-lab-{lab}.{host}" if host else f"vxnet-lab-{lab}")


def netns_links(lab: str) -> list[Path]:
    """All of a lab, dead ones too."""
    return [netns_link(lab), *NETNS.glob(f"{netns_link(lab).name}.*")]


def names() -> tuple[str, ...]:
    """Of the labs that there are, whole or not."""
    if not RUN.is_dir():
        return ()
    return tuple(sorted(path.name for path in RUN.iterdir() if path.is_dir()))


def load(name: str) -> LabState:
    """Raises :class:`NotFoundError`. A lab that was killed before it wrote its first state is an empty one."""
    check_name(name)
    try:
        return codec.from_json((folder(name) / "lab.json").read_bytes(), LabState)
    except FileNotFoundError:
        if folder(name).is_dir():
            return LabState(name=name)
        others = ", ".join(names())
        hint = f"there is {others}" if others else "make one with `vxnet lab up`"
        raise NotFoundError(f"there is no lab {name!r}", hint=hint) from None
    except ValueError as error:
        hint = "`vxnet lab down` removes the lab"
        raise HostError(f"cannot read {folder(name) / 'lab.json'}: {error}", hint=hint) from None


def save(state: LabState) -> None:
    """Whole or not at all: a reader never meets half a file."""
    new = folder(state.name) / "lab.json.new"
    new.write_bytes(codec.to_json(state) + b"\n")
    new.replace(folder(state.name) / "lab.json")


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One change of a lab at a time. The lock ends with its holder, however that ends."""
    path = RUN / f"{check_name(name)}.lock"
    descriptor = lock(path)
    try:
        yield
    finally:
        if not folder(name).exists():
            path.unlink(missing_ok=True)
        os.close(descriptor)
        with contextlib.suppress(OSError):  # the last one out
            RUN.rmdir()


def lock(path: Path) -> int:
    """A descriptor that holds the lock; closing it lets go. The holder may unlink the file before that."""
    while True:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # another `down` has just removed the folder
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # The holder may have unlinked the file while this one waited: then this is a lock that nobody else will meet.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)


def forget(name: str) -> None:
    """Removes all files of a lab. Its processes must have ended: they hold mounts of the disks."""
    for tree in (DISKS / name, folder(name)):
        if tree.exists():
            shutil.rmtree(tree)
    with contextlib.suppress(OSError):
        DISKS.rmdir()
