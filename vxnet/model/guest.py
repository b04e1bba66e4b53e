"""Network namespaces of others that are on vxnet's networks: a process's, a Docker container's, one with a name."""

from __future__ import annotations

from vxnet.model.address import IPAddress
from vxnet.model.cluster import Record
from vxnet.model.container import Attachment


class GuestWish(Record, frozen=True, kw_only=True):
    """``network connect NET --pid PID | --netns PATH``."""

    pid: int = 0
    netns: str = ""
    """Path to open: ``/run/netns/NAME``."""
    name: str = ""
    """By which others find it; empty: the path's last part, or ``pid-PID``."""
    ip: IPAddress | None = None
    ip6: IPAddress | None = None
    aliases: tuple[str, ...] = ()
    ifname: str = ""
    """Of the interface that it gets; empty: the first ethN that is free there."""


class Guest(Record, frozen=True, kw_only=True):
    """As it is kept on disk, while it lives."""

    id: str
    """64 hexadecimal digits, as a container's."""
    name: str
    pid: int = 0
    """It lives as long as this process; 0: as long as ``path`` names the namespace."""
    born: int = 0
    """The process's start, in clock ticks since boot: a pid that was given anew is another process."""
    path: str = ""
    namespace: tuple[int, int]
    """Device and inode."""
    attachments: tuple[Attachment, ...] = ()
    resolver: IPAddress
    """Where names are answered, on port 53."""
    dns_port: int = 0
    """… and where the daemon listens there in truth."""
    created_at: float


class GuestView(Record, frozen=True, kw_only=True):
    """A line of ``network guests``."""

    id: str
    name: str
    pid: int = 0
    netns: str = ""
    networks: tuple[str, ...] = ()
    addresses: tuple[IPAddress, ...] = ()
    interfaces: tuple[str, ...] = ()
    resolver: IPAddress
    asks_resolver: bool = False
    """Whether its /etc/resolv.conf names that, as far as can be told."""
