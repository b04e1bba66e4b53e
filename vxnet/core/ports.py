"""Published ports: what may be asked for, who has which one, and numbers for those that nobody chose.

A port of mode ingress belongs to one service in the whole cluster; one of mode host to one container of a node. Two
that are bound to different addresses of the nodes do not meet. What is bound to an interface meets everything: which
addresses that has is another matter on every node.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from vxnet.model.address import IPAddress
from vxnet.model.cluster import CONTROL_PORT, GOSSIP_PORT, Node
from vxnet.model.errors import CallerError, ConflictError, ExhaustedError
from vxnet.model.published import FIRST_AUTO_PORT, LAST_AUTO_PORT, PublishedPort
from vxnet.model.service import Service, ServiceSpec

PORTS_MAX = 1000
"""Of one service or container: each is a socket on its nodes, and elements in a map."""


class Held(NamedTuple):
    """A port and whose it is, in the words of a refusal: ``service web``."""

    port: PublishedPort
    holder: str


def name_of(port: PublishedPort) -> str:
    """``80/tcp``, ``192.168.56.11:80/tcp``."""
    where = [f"[{one}]:" if one.version == 6 else f"{one}:" for one in port.addresses]
    place = where[0] if len(where) == 1 else f"{port.interface}:" if port.interface else ""
    return f"{place}{port.published or port.target}/{port.protocol}"


def meet(one: PublishedPort, other: PublishedPort) -> bool:
    """Whether there can be a packet for both."""
    if (one.published, one.protocol) != (other.published, other.protocol) or not one.published:
        return False
    if not one.addresses or not other.addresses:
        return True
    return any(_same_place(a, b) for a in one.addresses for b in other.addresses)


def _same_place(one: IPAddress, other: IPAddress) -> bool:
    return one.version == other.version and (one == other or one.is_unspecified or other.is_unspecified)


def holder_of(port: PublishedPort, held: Iterable[Held]) -> str:
    """The first that ``port`` meets; empty: it is free."""
    return next((one.holder for one in held if meet(port, one.port)), "")


def own_ports(data_port: int) -> tuple[Held, ...]:
    """Of vxnet itself, on every node."""
    kept = (
        (CONTROL_PORT, "tcp", "vxnet itself (the managers' port)"),
        (GOSSIP_PORT, "tcp", "vxnet itself (gossip)"),
        (GOSSIP_PORT, "udp", "vxnet itself (gossip)"),
        (data_port, "udp", "vxnet itself (VXLAN)"),
    )
    return tuple(
        Held(PublishedPort(target=number, published=number, protocol="tcp" if protocol == "tcp" else "udp"), whose)
        for number, protocol, whose in kept
    )


def check(ports: Sequence[PublishedPort]) -> None:
    """Raises :class:`CallerError` on what cannot be, and on two of ``ports`` that meet."""
    if len(ports) > PORTS_MAX:
        raise CallerError(f"{len(ports)} published ports are too many: {PORTS_MAX} is the most")
    for port in ports:
        if not 0 < port.target < 65536:
            raise CallerError(f"port {port.target} of a container is none", hint="it is a number from 1 to 65535")
        if not 0 <= port.published < 65536:
            raise CallerError(f"port {port.published} of a node is none", hint="it is a number from 1 to 65535")
        if port.addresses and port.interface:
            raise CallerError(f"port {name_of(port)} is bound to addresses and to an interface: one of them is given")
        _check_places(port)
        if port.mode == "host" and port.policy != "prefer-local":
            raise CallerError(
                f"port {name_of(port)}: policy={port.policy} is the routing mesh's, and mode=host goes round that"
            )
    by_number: dict[tuple[int, str], list[PublishedPort]] = {}
    for port in ports:
        same = by_number.setdefault((port.published, port.protocol), [])
        if any(meet(port, other) for other in same):
            raise CallerError(f"port {name_of(port)} is published twice", hint="leave one of them out")
        same.append(port)


def _check_places(port: PublishedPort) -> None:
    for one in port.addresses:
        mapped = one.ipv4_mapped if one.version == 6 else None
        if one.is_multicast or str(one) == "255.255.255.255" or mapped or (one.version == 6 and one.is_link_local):
            raise CallerError(
                f"port {port.published or port.target}/{port.protocol} cannot be bound to {one}",
                hint=f"write {mapped}" if mapped else "name a unicast address of the nodes, or an interface",
            )
        if port.mode == "host" and one.version == 6 and one.is_loopback:
            raise CallerError(
                f"port {port.published or port.target}/{port.protocol} of mode host cannot be bound to ::1",
                hint="use 127.0.0.1, or a service, whose ports of mode ingress answer there",
            )
        same = [other for other in port.addresses if other.version == one.version]
        if one.is_unspecified and len(same) > 1:
            raise CallerError(
                f"port {port.published or port.target}/{port.protocol} is bound to {one}, which is all addresses, and "
                f"to {next(other for other in same if other != one)}",
                hint="leave one of them out",
            )


# Of services: the managers' part


def settle(
    spec: ServiceSpec, id: str, services: Mapping[str, Service], nodes: Iterable[Node], data_port: int
) -> ServiceSpec:
    """``spec`` of service ``id`` with a number for each port of mode ingress, and those of mode host as a part of its
    tasks. Raises :class:`CallerError`, :class:`ConflictError` naming the holder, :class:`ExhaustedError`.
    """
    ports = spec.ports
    check(ports)
    if in_mesh(ports) and spec.endpoint_mode == "dnsrr":
        raise CallerError(
            "--endpoint-mode dnsrr and ports of mode ingress exclude each other",
            hint="publish with mode=host, or use --endpoint-mode vip",
        )
    held = [*own_ports(data_port), *held_by_services(services, but=id)]
    by_number: dict[tuple[int, str], list[Held]] = {}
    on_nodes = held_on_nodes(nodes)
    # What a service has already it keeps, also if a program came to have it on a host.
    had = services[id].spec.ports if id in services else ()
    for one in (*held, *on_nodes):
        by_number.setdefault((one.port.published, one.port.protocol), []).append(one)
    for port in ports:
        rivals = by_number.get((port.published, port.protocol), [])
        if any((port.published, port.protocol) == (one.published, one.protocol) for one in had):
            rivals = [one for one in rivals if one not in on_nodes]
        # Of two that lead to containers of a node alone, each may have its node: the scheduler sees to that.
        rivals = [one for one in rivals if port.mode == "ingress" or one.port.mode == "ingress"]
        if holder := holder_of(port, rivals):
            raise ConflictError(f"port {name_of(port)} is taken by {holder}", hint="publish another one")
    ports = number_all(ports, [one.port for one in (*held, *on_nodes)], modes=("ingress",))
    container = replace(spec.task.container, ports=tuple(port for port in ports if port.mode == "host"))
    return replace(spec, ports=ports, task=replace(spec.task, container=container))


def held_by_services(services: Mapping[str, Service], *, but: str = "") -> list[Held]:
    """Also what an update that is under way may have to go back to."""
    held = []
    for service in services.values():
        if service.id == but:
            continue
        held += [Held(port, f"service {service.name}") for port in service.spec.ports]
        if service.fallback is not None:
            more = [port for port in service.fallback.ports if port not in service.spec.ports]
            held += [Held(port, f"service {service.name}, whose update is under way") for port in more]
    return held


def held_on_nodes(nodes: Iterable[Node]) -> list[Held]:
    """By programs of the hosts, and containers that are no tasks. The mesh would take them from those."""
    return [
        Held(
            PublishedPort(
                target=one.number,
                published=one.number,
                protocol=one.protocol,
                mode="host",
                addresses=() if one.address is None else (one.address,),
            ),
            f"{one.holder} on {node.name}",
        )
        for node in nodes
        for one in node.ports
    ]


def number_all(
    ports: Sequence[PublishedPort], others: Iterable[PublishedPort], *, modes: Collection[str]
) -> tuple[PublishedPort, ...]:
    """Those of ``modes`` that nobody chose a number for have one: the lowest of the range that no other port of the
    protocol has, whatever it is bound to. Raises :class:`ExhaustedError`.
    """
    taken = {(port.published, port.protocol) for port in (*ports, *others)}
    numbered = []
    for port in ports:
        if not port.published and port.mode in modes:
            free = (n for n in range(FIRST_AUTO_PORT, LAST_AUTO_PORT + 1) if (n, port.protocol) not in taken)
            number = next(free, 0)
            if not number:
                raise ExhaustedError(
                    f"all {port.protocol} ports from {FIRST_AUTO_PORT} to {LAST_AUTO_PORT} are taken",
                    hint="choose one: -p PUBLISHED:TARGET",
                )
            taken.add((number, port.protocol))
            port = replace(port, published=number)
        numbered.append(port)
    return tuple(numbered)


def in_mesh(ports: Iterable[PublishedPort]) -> bool:
    """Whether one of them is the routing mesh's."""
    return any(port.mode == "ingress" for port in ports)
