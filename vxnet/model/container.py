"""Containers of this host."""

from __future__ import annotations

from typing import Literal

from vxnet.model.address import MAC, IPAddress, IPInterface
from vxnet.model.cluster import Record
from vxnet.model.published import PublishedPort

ContainerState = Literal["created", "running", "restarting", "exited", "dead"]
"""``restarting``: it has ended, and will run again by itself. ``dead``: its shim vanished without telling an exit
status.
"""
RestartName = Literal["no", "on-failure", "unless-stopped", "always"]


class RestartPolicy(Record, frozen=True, kw_only=True):
    """What comes after the end: :mod:`vxnet.core.restarts`."""

    name: RestartName = "no"
    retries: int = 0
    """Of ``on-failure``: how often it runs again; 0: as often as it fails."""


class NetworkWish(Record, frozen=True, kw_only=True):
    """``--network NET --ip A --alias X`` of one attachment."""

    network: str
    """Name or id."""
    ip: IPAddress | None = None
    ip6: IPAddress | None = None
    """One of each family at the most, whichever is which."""
    aliases: tuple[str, ...] = ()

    def address(self, version: int) -> IPAddress | None:
        """The one that was chosen of an IP version."""
        return next((one for one in (self.ip, self.ip6) if one is not None and one.version == version), None)


class Mount(Record, frozen=True, kw_only=True):
    """Something of the host's, or memory, in a container's file system. Device nodes on it do not open."""

    kind: Literal["bind", "tmpfs"]
    target: str
    source: str = ""
    """Of a bind: a path on the host. A directory is made where there is nothing."""
    read_only: bool = False
    executable: bool = False
    """Of a tmpfs: programs on it may run."""
    options: str = ""
    """Of a tmpfs, for the kernel: ``size=64m,mode=1777``."""


HOST_GATEWAY = "host-gateway"
"""Docker's word."""


class ContainerSpec(Record, frozen=True, kw_only=True):
    """What ``vxnet run`` asked for."""

    name: str = ""
    """Empty: one is made."""
    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    """``KEY=value``."""
    workdir: str = ""
    hostname: str = ""
    """Empty: the short id."""
    user: str = ""
    """``USER[:GROUP]``, names as the container's /etc/passwd has them or numbers; empty: root."""
    dns: tuple[IPAddress, ...] = ()
    """Whom this host asks for names from outside; empty: its own resolvers."""
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    """``NAME:ADDRESS``, for /etc/hosts; :data:`HOST_GATEWAY` as address: this host, as the container reaches it."""
    sysctls: dict[str, str] = {}
    """Of the container's network namespace: ``net.…``."""
    terminal: bool = False
    stdin: bool = False
    """``-i``: keep standard input open."""
    remove: bool = False
    """``--rm``."""
    restart: RestartPolicy = RestartPolicy()
    stop_signal: int = 0
    """What `stop` sends first; 0: SIGTERM."""
    stop_timeout_s: float | None = None
    """From that to SIGKILL; None: 10."""
    networks: tuple[NetworkWish, ...] = ()
    ports: tuple[PublishedPort, ...] = ()
    """Of this host, all with mode host."""
    mounts: tuple[Mount, ...] = ()
    read_only: bool = False
    """The root takes no writes; /dev, /run, /tmp and ``mounts`` may."""
    rootfs: str = ""
    """Path of a directory on the host; empty: the host's own root. What is written stays out of either."""
    memory: int = 0
    """Octets, and as many of swap; 0: no limit."""
    cpus: float = 0.0
    """Processors' worth of time; 0: no limit."""
    pids_limit: int = 0
    """Processes and threads; 0 or less: no limit."""
    cap_add: tuple[str, ...] = ()
    """Names of :mod:`vxnet.model.capability`, or ``ALL``."""
    cap_drop: tuple[str, ...] = ()
    seccomp: bool = True
    """Under the filter of :mod:`vxnet.host.seccomp`."""
    labels: dict[str, str] = {}

    @property
    def shares_host_network(self) -> bool:
        """``--network host``: it has no network namespace of its own."""
        return any(wish.network == "host" for wish in self.networks)


class Attachment(Record, frozen=True, kw_only=True):
    """A container's place on one network, once its addresses are given."""

    network: str
    """Id."""
    ifname: str
    mac: MAC
    addresses: tuple[IPInterface, ...]
    aliases: tuple[str, ...] = ()
    way_out: tuple[IPAddress, ...] = ()
    """Routers there, that lead out of the network; one a family at most. Of networks of one host, and ``vxnet_gw``."""


class TaskRef(Record, frozen=True, kw_only=True):
    """Of a container that is a service's task: what its rows tell, and what its end needs when the managers have
    forgotten it.
    """

    task: str
    """Id, as the service's."""
    service: str
    ports: tuple[str, ...] = ()
    stop_grace_s: float = 10.0
    drain_s: float = 5.0


class Container(Record, frozen=True, kw_only=True):
    id: str
    """64 hexadecimal digits; people see the first 12."""
    spec: ContainerSpec
    attachments: tuple[Attachment, ...] = ()
    task: TaskRef | None = None
    unready: bool = False
    """It has a health check that has not succeeded yet: its rows stay *starting*."""
    draining: bool = False
    """It is to end: its rows are *draining*."""
    gateway: Attachment | None = None
    """On ``vxnet_gw``; None where every network is internal."""
    published: tuple[PublishedPort, ...] = ()
    """``spec.ports`` with the numbers that it has on this host. While it runs they lead to it."""
    state: ContainerState = "created"
    pid: int = 0
    """Of its first process, as this host counts; 0 unless running."""
    netns: str = ""
    """Path of its network namespace where that is somebody else's (:mod:`vxnet.model.guest`); empty: of its process."""
    resolver: IPAddress | None = None
    """Where names are answered in there; None: 127.0.0.11."""
    exit_status: int | None = None
    error: str = ""
    """Why the command could not run, or could not be started again."""
    restarts: int = 0
    """By its policy, since somebody started it."""
    stopped: bool = False
    """Somebody ended it on purpose."""
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
