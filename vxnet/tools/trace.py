"""`vxnet trace A B`: which way a packet of container A's to B goes, and where it stops.

::

    A: name → address → route ─ eth0 ─ port ─ br<VNI> (neighbour, FDB) ─ vx<VNI> (FDB) ─ card ─ VTEP … B
       then one echo is sent, and seen at the port, the tunnel and the card: on its way out, and the reply on its way in

Everything is asked of the kernel, and held against what the daemon plans. What happens on B's host is seen from there:
the last hop says what to type.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Generator, Iterator
from typing import NamedTuple

from vxnet.cluster.client import Client
from vxnet.host import addresses, datapath, links, neighbours, netns
from vxnet.host.datapath import Home, Resident, bridge_name, tunnel_name
from vxnet.host.echo import echo
from vxnet.host.links import Link
from vxnet.host.neighbourhood import ways_to
from vxnet.host.neighbours import Rows
from vxnet.host.netlink import Netlink
from vxnet.host.taps import Echo, Taps
from vxnet.model.address import IPAddress
from vxnet.model.checkup import Diagnosis
from vxnet.model.errors import ConflictError, HostError, NotFoundError
from vxnet.model.host import DATAPATH_NAMESPACE, GATEWAY_BRIDGE, Interface, Sandbox, Segment
from vxnet.model.trace import Hop
from vxnet.tools.lookup import addresses_of

OCTETS = 84
"""Of the echo, as ping(8) sends it."""


class _Start(NamedTuple):
    diagnosis: Diagnosis
    box: Sandbox
    namespace: int
    name: str


def trace(client: Client, source: str, target: str) -> Iterator[Hop]:
    """From a container of this host to a name or an address. Raises what the daemon refuses, :class:`HostError`."""
    if os.geteuid() != 0:
        raise HostError("a trace looks into namespaces and at packets", hint="use sudo")
    container, diagnosis = client.container(source), client.diagnosis()
    box = next((one for one in diagnosis.plan.sandboxes if one.id == container.id), None)
    namespace = netns.open_path(box.netns) if box is not None else None
    if box is None or namespace is None:
        raise ConflictError(
            f"container {source} has no network of its own that could be looked at",
            hint="it must run, and be on a network: `vxnet inspect` tells",
        )
    try:
        yield from _from(client, _Start(diagnosis, box, namespace, container.spec.name), target)
    except OSError as error:
        raise HostError(f"cannot look there: {error.strerror or error}") from error
    finally:
        os.close(namespace)


def _from(client: Client, start: _Start, target: str) -> Iterator[Hop]:
    address = yield from _named(start, target)
    if address is None:
        return
    plan = start.diagnosis.plan
    virtual = next((one for part in plan.segments for one in part.services if one.address == address), None)
    real = address
    if virtual is not None:
        behind = ", ".join(str(one) for one in virtual.backends) or "nobody"
        yield Hop(where="virtual IP", found=f"{address} leads to one of: {behind}", ok=bool(virtual.backends))
        if not virtual.backends:
            return
        real = virtual.backends[0]
    interface = yield from _routed(start, real)
    if interface is None:
        return
    if interface.vni is None:
        yield from _way_out(start, interface, address)
        return
    segment = next(one for one in plan.segments if one.vni == interface.vni)
    yield from _overlay(client, start, interface, segment, real, address)


def _named(start: _Start, target: str) -> Generator[Hop, None, IPAddress | None]:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(target)
    if not start.box.dns_port:
        yield Hop(where="name", found=f"{start.name} has no name server", ok=False, advice="trace an address instead")
        return None
    found = addresses_of(start.namespace, start.box.resolver, target)
    where = f"name, of {start.box.resolver}"
    if found is None:
        advice = "`vxnet doctor` looks at names; rules in the container may be in the way"
        yield Hop(where=where, found="no answer", ok=False, advice=advice)
        return None
    if not found:
        advice = "is it on one of this container's networks? `vxnet network inspect -v NETWORK` lists who is"
        yield Hop(where=where, found=f"no address is known for {target}", ok=False, advice=advice)
        return None
    yield Hop(where=where, found=f"{target} is {', '.join(map(str, found))}")
    return found[0]


def _routed(start: _Start, address: IPAddress) -> Generator[Hop, None, Interface | None]:
    with Netlink(start.namespace) as netlink:
        way = addresses.paths(netlink, [address])[0]
        there = {link.ifindex: link for link in links.dump(netlink).values()}
    link = there.get(way.ifindex) if way is not None else None
    if link is None:
        advice = "is it on a network of this container's? an internal network has no way out"
        yield Hop(where="route", found=f"{start.name} has none to {address}", ok=False, advice=advice)
        return None
    interface = next((one for one in start.box.interfaces if one.name == link.name), None)
    if interface is None:
        yield Hop(where="route", found=f"{address} is by {link.name}, which is none of vxnet's", ok=link.name == "lo")
        return None
    own = ", ".join(str(one) for one in interface.addresses)
    yield Hop(where="route", found=f"{address} is by {link.name} ({own}, MAC {link.mac}, MTU {link.mtu})", ok=link.up)
    return interface


# On the overlay


def _overlay(
    client: Client, start: _Start, interface: Interface, segment: Segment, real: IPAddress, address: IPAddress
) -> Iterator[Hop]:
    namespace = netns.adopt_named(DATAPATH_NAMESPACE)
    if namespace is None:
        yield Hop(where="data path", found=f"there is no namespace {DATAPATH_NAMESPACE}", ok=False)
        return
    try:
        with Netlink(namespace) as netlink:
            found = links.dump(netlink)
            yield from _devices(interface, segment, found)
            bridge, tunnel = found.get(bridge_name(segment.vni)), found.get(tunnel_name(segment.vni))
            if bridge is None or tunnel is None:
                return
            home = Home(bridge.ifindex, tunnel.ifindex)
            there = neighbours.dump(netlink, {tunnel.ifindex: bridge.ifindex})
        names = {link.ifindex: link.name for link in found.values()}
        resident = _resident(start.diagnosis, segment, real)
        remote = next((one for one in segment.remotes if real in one.addresses), None)
        if resident is not None and resident.port in found:
            wanted = datapath.resident_rows(home, [Resident(resident, found[resident.port].ifindex)])
            yield from _rows(wanted, there, names)
            yield from _probe_here(start, namespace, interface, resident, address)
        elif remote is not None:
            if segment.kind == "kernel":
                yield from _rows(datapath.remote_rows(home, [remote]), there, names)
            yield from _probe_there(client, start, namespace, interface, segment, remote.vtep, real, address)
        else:
            yield Hop(
                where="neighbour",
                found=f"no row tells who has {real}: ARP goes to the {len(segment.flood)} other hosts of the network",
                ok=False,
                advice="is the container up? `vxnet network inspect -v` on its host and here, `vxnet gossip` compares",
            )
    finally:
        os.close(namespace)


def _resident(diagnosis: Diagnosis, segment: Segment, address: IPAddress) -> Interface | None:
    """Of a container on this host."""
    return next(
        (
            one
            for box in diagnosis.plan.sandboxes
            for one in box.interfaces
            if one.vni == segment.vni and address in [held.ip for held in one.addresses]
        ),
        None,
    )


def _devices(interface: Interface, segment: Segment, found: dict[str, Link]) -> Iterator[Hop]:
    bridge = found.get(bridge_name(segment.vni))
    for name, what in (
        (interface.port, "port"),
        (bridge_name(segment.vni), "bridge"),
        (tunnel_name(segment.vni), "tunnel"),
    ):
        link = found.get(name)
        if link is None:
            yield Hop(where=what, found=f"{name} is not there", ok=False, advice="`vxnet doctor` says what is wrong")
        elif not link.up:
            yield Hop(where=what, found=f"{name} is down", ok=False, advice="`vxnet doctor` says what is wrong")
        elif what != "bridge" and bridge is not None and link.master != bridge.ifindex:
            yield Hop(where=what, found=f"{name} is not on {bridge.name}", ok=False)
    yield Hop(
        where="bridge", found=f"{interface.port} and {tunnel_name(segment.vni)} on br{segment.vni}, MTU {segment.mtu}"
    )


def _rows(wanted: Rows, there: Rows, names: dict[int, str]) -> Iterator[Hop]:
    """The neighbour that answers for it, the bridge's row, the tunnel's row."""
    for key, value in reversed(wanted.items()):
        words = neighbours.describe(key, value, names)
        where = words.split()[0]
        if there.get(key) == value:
            yield Hop(where=where, found=words)
        else:
            has = neighbours.describe(key, there[key], names) if key in there else "nothing"
            advice = "the daemon mends this within a second; if it stays, `vxnet doctor` names what is in the way"
            yield Hop(where=where, found=f"the kernel has {has}, planned is {words}", ok=False, advice=advice)


def _probe_here(
    start: _Start, namespace: int, interface: Interface, other: Interface, address: IPAddress
) -> Iterator[Hop]:
    with Taps({"port": (namespace, interface.port), "other": (namespace, other.port)}) as taps:
        answered = _send(start, interface, address)
        seen = taps.seen(start.diagnosis.data_port)
    steps = [
        (f"the request enters {interface.port}", _any(seen["port"], "request"), f"rules in {start.name}?"),
        (f"and comes to {other.port}, a container of this host", _any(seen["other"], "request"), "`bridge fdb`"),
        (f"the reply leaves {other.port}", _any(seen["other"], "reply"), "rules in the other container?"),
        (f"and comes back to {interface.port}", _any(seen["port"], "reply"), "`bridge fdb`"),
    ]
    yield from _told(steps, answered)


def _probe_there(
    client: Client,
    start: _Start,
    namespace: int,
    interface: Interface,
    segment: Segment,
    vtep: IPAddress,
    real: IPAddress,
    address: IPAddress,
) -> Iterator[Hop]:
    members = client.gossip().members
    host = next((one for one in members if one.tags.get("vtep") == str(vtep)), None)
    name = host.name if host is not None else str(vtep)
    status = host.status if host is not None else "not known to gossip"
    way = ways_to([vtep]).get(vtep)
    if way is None:
        yield Hop(where="underlay", found=f"no route to {name}'s VTEP {vtep}", ok=False, advice="`ip route`")
        return
    found = f"{name} ({vtep}, {status}) by {way.interface}, MTU {way.mtu}, UDP {start.diagnosis.data_port}"
    yield Hop(where="underlay", found=found, ok=status == "alive")
    tunnel = tunnel_name(segment.vni)
    places: dict[str, tuple[int | None, str]] = {
        "port": (namespace, interface.port),
        "tunnel": (namespace, tunnel),
        "card": (None, way.interface),
    }
    with Taps(places) as taps:
        answered = _send(start, interface, address)
        seen = taps.seen(start.diagnosis.data_port)
    card = [one for one in seen["card"] if one.tunnel is not None and one.tunnel[2] == segment.vni]
    there = (
        f"look from there: `vxnet trace CONTAINER {_own(interface)}` on {name} for the way back, `vxnet doctor` here"
    )
    steps = [
        (f"the request enters {interface.port}", _any(seen["port"], "request"), f"rules in {start.name}?"),
        (f"goes into {tunnel}", _any(seen["tunnel"], "request"), "the bridge drops it: `bridge -d link`"),
        (
            f"leaves by {way.interface} to {vtep}",
            _any(card, "request"),
            "rules of this host's output? `nft list ruleset`",
        ),
        (f"the reply of {real} comes back by {way.interface}", _any(card, "reply"), there),
        (f"comes out of {tunnel}", _any(seen["tunnel"], "reply"), "rules of this host's input? `vxnet doctor`"),
        (f"and back to {interface.port}", _any(seen["port"], "reply"), "the bridge drops it: `bridge fdb`"),
    ]
    yield from _told(steps, answered)


def _own(interface: Interface) -> str:
    return str(interface.addresses[0].ip)


def _way_out(start: _Start, interface: Interface, address: IPAddress) -> Iterator[Hop]:
    yield Hop(
        where="way out",
        found=f"by {interface.port} on {interface.bridge or GATEWAY_BRIDGE}, NAT to this host's address",
    )
    with Taps({"port": (None, interface.port)}) as taps:
        answered = _send(start, interface, address)
        seen = taps.seen(start.diagnosis.data_port)
    beyond = "this host's forwarding drops it, or nobody answers: `vxnet doctor`, `nft list ruleset`"
    steps = [
        (f"the request enters {interface.port}", _any(seen["port"], "request"), f"rules in {start.name}?"),
        (f"the reply comes back to {interface.port}", _any(seen["port"], "reply"), beyond),
    ]
    yield from _told(steps, answered)


def _send(start: _Start, interface: Interface, address: IPAddress) -> bool:
    source = next((one.ip for one in interface.addresses if one.version == address.version), None)
    if source is None:
        raise NotFoundError(f"{interface.name} of {start.name} has no address of that family")
    return bool(netns.inside(start.namespace, lambda: echo(source, [(address, OCTETS)])))


def _any(seen: list[Echo], kind: str) -> bool:
    return any(one.kind == kind for one in seen)


def _told(steps: list[tuple[str, bool, str]], answered: bool) -> Iterator[Hop]:
    """Up to where it stops."""
    for words, happened, advice in steps:
        if not happened:
            yield Hop(where="probe", found=f"lost: not seen that {words.removeprefix('and ')}", ok=False, advice=advice)
            return
        yield Hop(where="probe", found=words)
    if answered:
        yield Hop(where="probe", found="answered")
    else:
        yield Hop(
            where="probe", found="the reply is there and is not taken", ok=False, advice="rules in the container?"
        )
