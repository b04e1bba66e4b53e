"""Namespaces that are not vxnet's: held, looked into, and given a name server.

Only what is asked for is changed in them: an interface with its addresses, the table ``inet vxnet`` that leads to the
name server, and ``lo`` is up. All functions block for less than a millisecond.
"""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from vxnet.host import links, netns
from vxnet.host.netlink import Netlink
from vxnet.model.address import IPAddress
from vxnet.model.errors import CallerError, ConflictError, HostError, NotFoundError
from vxnet.model.host import DATAPATH_NAMESPACE

RESOLVERS = tuple(ipaddress.ip_address(f"127.0.0.{last}") for last in range(11, 16))
"""The first is Docker's too: in a container on one of Docker's own networks its name server is there already."""
RESOLV_CONF_OCTETS = 65536
_PORT_TRIES = 10
_START_FIELD = 19
"""Of /proc/PID/stat, counted behind the command's name (proc(5): 22)."""


class Held(NamedTuple):
    """A namespace that lives on because of this; give it back with :func:`release`."""

    namespace: int
    """Descriptor."""
    process: int
    """pidfd, readable once the process has ended; -1: the namespace is known by its path."""
    born: int

    @property
    def identity(self) -> tuple[int, int]:
        return netns.identity(self.namespace)

    @property
    def path(self) -> str:
        """By which this process opens it, whatever becomes of pids and names."""
        return f"/proc/self/fd/{self.namespace}"


def release(held: Held) -> None:
    for descriptor in (held.namespace, held.process):
        if descriptor >= 0:
            os.close(descriptor)


def of_process(pid: int) -> Held:
    """The namespace of a process. Raises :class:`NotFoundError`, :class:`HostError`."""
    try:
        process = os.pidfd_open(pid)
    except (ProcessLookupError, ValueError, OverflowError):
        raise NotFoundError(f"there is no process {pid} on this host") from None
    except OSError as error:
        raise HostError(f"cannot watch process {pid}: {error.strerror}", hint="is it a thread's id?") from error
    namespace = netns.open_path(f"/proc/{pid}/ns/net")
    # What is read here is of the process that the pidfd stands for, if that lives now.
    born = _born(pid)
    if namespace is None or born is None or select.select([process], [], [], 0)[0]:
        os.close(process)
        if namespace is not None:
            os.close(namespace)
        raise NotFoundError(f"process {pid} has just ended")
    return Held(namespace, process, born)


def at_path(path: str) -> Held:
    """The namespace that ``path`` names. Raises :class:`NotFoundError`, :class:`CallerError`."""
    try:
        namespace = netns.open_path(path)
    except OSError as error:
        raise CallerError(f"cannot open {path}: {error.strerror}") from None
    if namespace is None:
        raise NotFoundError(f"there is no namespace {path}", hint="`ip netns` lists those with a name in /run/netns")
    held = Held(namespace, -1, 0)
    if os.fstat(namespace).st_dev != os.stat("/proc/thread-self/ns/net").st_dev or not _is_network(namespace):
        release(held)
        raise CallerError(f"{path} is not a network namespace", hint="`ip netns add NAME` makes /run/netns/NAME")
    return held


def _is_network(namespace: int) -> bool:
    try:
        return netns.inside(namespace, lambda: True)
    except OSError:  # of another kind
        return False


def _born(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[_START_FIELD])
    except (OSError, IndexError, ValueError):
        return None


def names_still(path: str, identity: tuple[int, int]) -> bool:
    """Whether ``path`` is still this namespace."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == identity


def check_foreign(held: Held, what: str) -> None:
    """Raises :class:`ConflictError` for the host's own namespace, and for vxnet's."""
    own = os.stat("/proc/self/ns/net")
    if held.identity == (own.st_dev, own.st_ino):
        raise ConflictError(
            f"{what} is in the host's own network namespace",
            hint="start it in one of its own: `ip netns add NAME` and `ip netns exec NAME …`, or `unshare -n …`",
        )
    if names_still(str(netns.NAMED / DATAPATH_NAMESPACE), held.identity):
        raise ConflictError(f"{what} is in vxnet's own network namespace")


class Survey(NamedTuple):
    interfaces: frozenset[str]
    resolver: IPAddress
    """One of :data:`RESOLVERS` on which nobody listens."""


def survey(held: Held) -> Survey:
    """What is in a namespace already."""

    def look() -> Survey:
        taken = {address for table in ("udp", "tcp") for address in _listeners(table)}
        free = next((one for one in RESOLVERS if one not in taken), RESOLVERS[-1])
        return Survey(frozenset(name for _, name in socket.if_nameindex()), free)

    return netns.inside(held.namespace, look)


def _listeners(table: str) -> Iterable[IPAddress]:
    """Local addresses of IPv4 sockets."""
    for line in Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]:
        address = line.split()[1].split(":")[0]
        yield ipaddress.IPv4Address(int.from_bytes(bytes.fromhex(address), "little"))


def open_resolver(held: Held, address: IPAddress, port: int) -> tuple[socket.socket, socket.socket]:
    """Sockets in the namespace, (UDP, TCP that listens), on one port: ``port``, or another where that is taken or 0.
    Raises :class:`HostError`.
    """

    def bind(wanted: int) -> tuple[socket.socket, socket.socket]:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            udp.bind((str(address), wanted))
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind(udp.getsockname())
            tcp.listen()
        except OSError:
            udp.close()
            tcp.close()
            raise
        return udp, tcp

    def enter() -> tuple[socket.socket, socket.socket]:
        with Netlink() as netlink:
            loopback = links.dump(netlink)["lo"]
            if not loopback.up:
                netlink.batch([links.change(loopback.ifindex, up=True)])
        for wanted in (port, *[0] * _PORT_TRIES):
            try:
                return bind(wanted)
            except OSError as error:
                failure = error
        raise failure

    try:
        return netns.inside(held.namespace, enter)
    except OSError as error:
        raise HostError(f"cannot listen on {address} in the namespace: {error.strerror}") from error


def asks(resolver: IPAddress, pid: int, path: str) -> bool:
    """Whether the resolv.conf that goes with the namespace names ``resolver``: the process's own, or what ``ip netns
    exec`` would show."""
    place = Path(f"/proc/{pid}/root/etc/resolv.conf" if pid else f"/etc/netns/{Path(path).name}/resolv.conf")
    try:
        # It is the guest's: neither a device that never ends, nor a link that leads out of its root.
        with open(os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return False
            lines = [line.split() for line in file.read(RESOLV_CONF_OCTETS).decode(errors="replace").splitlines()]
    except OSError:
        return False
    return any(words[:2] == ["nameserver", str(resolver)] for words in lines)
