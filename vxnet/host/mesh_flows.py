"""Flows through published ports: which are stale, and what went through the routing mesh.

A flow keeps the task that its first packet was given. What that means for UDP, and for TCP's first packets:
:mod:`vxnet.host.conntrack`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterable

from vxnet.host import addresses, conntrack, elements
from vxnet.host.conntrack import Flow
from vxnet.host.elements import Count
from vxnet.host.mesh import COUNTERS, PROTOCOLS
from vxnet.host.netlink import Netlink
from vxnet.model.address import IPAddress, IPNetwork
from vxnet.model.host import HostPort, Ingress, MeshPort
from vxnet.model.mesh import MeshTraffic


def is_stale(ingress: Ingress | None, networks: Collection[IPNetwork], flow: Flow) -> bool:
    """Whether a flow through a published port goes to nobody who is behind it now. ``networks``: the mesh's; another
    program's mark may have the same bit, and what it leads elsewhere is its own.
    """
    if not any(flow.backend in network for network in networks):
        return False
    for port in ingress.ports if ingress is not None else ():
        if (
            port.published == flow.port
            and PROTOCOLS[port.protocol] == flow.protocol
            and port.version == flow.address.version
            and (not port.addresses or flow.address in port.addresses)
        ):
            return flow.backend not in port.backends and flow.backend not in port.draining
    return True


class Forgetter:
    """Forgets flows beside the work: the kernel looks through those of all namespaces for it, 5 ms and more, while what
    is new goes where it shall already."""

    def __init__(self, namespace: int) -> None:
        """``namespace``: the host's; it stays the caller's."""
        self._namespace = namespace
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._ingress: Ingress | None = None
        self._networks: frozenset[IPNetwork] = frozenset()
        """Of the mesh, now and before."""
        self._new: set[int] = set()
        self._ended: set[conntrack.End] = set()
        self._udp: set[int] = set()
        """IP versions of the flows of UDP that may be stale."""
        self._due = False

    def look(self, before: Ingress | None, ingress: Ingress | None, *, everywhere: bool) -> None:
        """Have those forgotten that are stale now, and those past ports that were not published ``before``.
        ``everywhere``: also of what was published before that."""
        with self._lock:
            self._udp |= {4, 6} if everywhere else _udp_versions(before) | _udp_versions(ingress)
            self._ingress = ingress
            self._networks |= {address.network for one in (before, ingress) if one for address in one.addresses}
            self._new |= _udp_ports(ingress) - _udp_ports(before)
            self._due = True
            self._begin()

    def look_at_ports(self, before: Iterable[HostPort], ports: Iterable[HostPort]) -> None:
        """Have UDP's flows forgotten to containers that a port of this host no longer leads to, and those past ports
        that led nowhere ``before``."""
        then, now = _ends(before), _ends(ports)
        if then == now:
            return
        with self._lock:
            self._new |= {end.port for end in now - then}
            self._ended = (self._ended | (then - now)) - now
            self._begin()

    def _begin(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="forgetter")
            with contextlib.suppress(RuntimeError):  # there can be none: with the next look then
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        while True:
            with self._lock:
                if not (self._due or self._new or self._ended):
                    self._thread = None
                    return
                due, ingress, networks = self._due, self._ingress, self._networks
                new, ended, udp = self._new, self._ended, self._udp
                self._due, self._new, self._ended, self._udp = False, set(), set(), set()
            with contextlib.suppress(OSError), Netlink(self._namespace, elements.NETLINK_NETFILTER) as netlink:
                if due:
                    questions = [conntrack.UNANSWERED, *(conntrack.UDP[version] for version in udp)]
                    conntrack.forget(netlink, lambda flow: is_stale(ingress, networks, flow), questions)  # noqa: B023
                if ended:
                    conntrack.forget_ended(netlink, ended)
                if new:
                    conntrack.forget_untranslated(netlink, new, self._own())

    def _own(self) -> set[IPAddress]:
        with Netlink(self._namespace) as netlink:
            return {one.interface.ip for one in addresses.dump(netlink)}

    def wait(self) -> None:
        """Until it is done."""
        thread = self._thread
        if thread is not None:
            thread.join()


def is_less(before: Ingress | None, ingress: Ingress | None) -> bool:
    """Whether a flow may be stale that was not ``before``, or one may go past a port that is new."""
    there = {id(port) for port in before.ports} if before is not None else set()
    kept = {id(port) for port in ingress.ports} if ingress is not None else set()
    new = {_place(port): port for port in ingress.ports if id(port) not in there} if ingress is not None else {}
    for port in before.ports if before is not None else ():
        if id(port) in kept:
            continue
        other = new.pop(_place(port), None)
        if other is None or not {*port.backends, *port.draining} <= {*other.backends, *other.draining}:
            return True
    return any(port.protocol == "udp" for port in new.values())


def _place(port: MeshPort) -> tuple[object, ...]:
    return port.protocol, port.published, port.version, port.addresses


def _udp_ports(ingress: Ingress | None) -> set[int]:
    return {port.published for port in ingress.ports if port.protocol == "udp"} if ingress is not None else set()


def _udp_versions(ingress: Ingress | None) -> set[int]:
    return {port.version for port in ingress.ports if port.protocol == "udp"} if ingress is not None else set()


def _ends(ports: Iterable[HostPort]) -> set[conntrack.End]:
    return {conntrack.End(port.published, to) for port in ports if port.protocol == "udp" for to in port.to}


def counted(netlink: Netlink) -> tuple[MeshTraffic, ...]:
    """By protocol and published port, what went through. Raises OSError where there is no mesh."""
    names = {number: name for name, number in PROTOCOLS.items()}
    new, refused, received, sent = (elements.counts(netlink, name) for name in COUNTERS)
    none = Count(0, 0)
    return tuple(
        MeshTraffic(
            protocol=names[key[0]],
            published=int.from_bytes(key[4:6], "big"),
            connections=count.packets,
            refused=refused.get(key, none).packets,
            # The first packet of each is counted where its way is chosen.
            received=count.octets + received.get(key, none).octets,
            sent=sent.get(key, none).octets,
        )
        for key, count in sorted(new.items())
    )
