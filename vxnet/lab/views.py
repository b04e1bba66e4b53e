"""What ``lab up`` and ``lab ls`` show."""

from __future__ import annotations

from typing import Literal

from vxnet.lab.state import LabState
from vxnet.model.address import IPAddress
from vxnet.model.cluster import Record


class HostView(Record, frozen=True, kw_only=True):
    name: str
    addresses: tuple[IPAddress, ...]
    status: Literal["up", "daemon down", "down"]
    """``up`` of an outside machine or of a lab without daemons means just its namespaces."""
    link: Literal["up", "cut"] = "up"
    parted_from: tuple[str, ...] = ()
    outside: bool = False
    pid: int = 0
    """Of its init, as this machine counts; 0 when down."""
    daemon_pid: int = 0


class LabView(Record, frozen=True, kw_only=True):
    name: str
    hosts: tuple[HostView, ...]


def view(lab: LabState) -> LabView:
    hosts = []
    for host in lab.hosts:
        init = host.init if host.init and host.init.alive else None
        daemon = host.daemon if init and host.daemon and host.daemon.alive else None
        wanted = bool(lab.daemon_argv) and host.kind == "host"
        hosts.append(
            HostView(
                name=host.name,
                addresses=tuple(interface.ip for interface in host.interfaces),
                status="down" if not init else "daemon down" if wanted and not daemon else "up",
                link="cut" if host.name in lab.unplugged else "up",
                parted_from=tuple(b if a == host.name else a for a, b in lab.parted if host.name in (a, b)),
                outside=host.kind == "outside",
                pid=init.pid if init else 0,
                daemon_pid=daemon.pid if daemon else 0,
            )
        )
    return LabView(name=lab.name, hosts=tuple(hosts))
