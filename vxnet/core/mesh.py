"""The routing mesh: which tasks stand behind a node's published ports, and why these.

::

    a connection to port 80 of a node ──> ready tasks of its own, if the policy likes those and there are any
                                     ──> else all ready ones (policy local: nobody)
                                     ──> else draining ones, which are better than nobody

Tasks are the rows of a service on the ingress network, in the states that :mod:`vxnet.core.balance` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import NamedTuple

from vxnet.core.balance import Tasks, buckets
from vxnet.core.facts import ByOwner, Fact, Facts
from vxnet.model.address import MAC, IPAddress, IPNetwork
from vxnet.model.host import HostFacts, MeshPort
from vxnet.model.published import PublishedPort, PublishPolicy
from vxnet.model.row import Gateway
from vxnet.model.service import PublicService

Behind = Mapping[str, Tasks]
"""A service's tasks on the ingress network, by node."""


class Choice(NamedTuple):
    """Whom a node gives the connections to a port."""

    tasks: tuple[IPAddress, ...]
    """All with the same chance; both families, in no order."""
    why: str


def choose(behind: Behind, node: str, policy: PublishPolicy) -> Choice:
    """For connections that come to ``node``."""
    own = behind.get(node, _NOBODY)
    if policy != "cluster" and own.ready:
        return Choice(own.ready, f"{policy}: ready here")
    if policy == "local":
        if own.draining:
            return Choice(own.draining, "local: only draining ones are here")
        return Choice((), "local: none is ready here, so it is refused")
    words = "none is ready here, so any" if policy == "prefer-local" else "any"
    if ready := tuple(chain.from_iterable(tasks.ready for tasks in behind.values())):
        return Choice(ready, f"{policy}: {words}")
    if draining := tuple(chain.from_iterable(tasks.draining for tasks in behind.values())):
        return Choice(draining, f"{policy}: only draining ones are left")
    return Choice((), "no task is ready, so it is refused")


_NOBODY = Tasks((), ())

Held = Mapping[str, tuple[IPAddress, ...]]
"""Addresses of this host's links, by name."""
NOTHING_HELD: Held = {}


class Mesh:
    """Remembers what it made, for speed: the result is the same without, and what stays equal stays the same object."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, PublishedPort], tuple[tuple[object, ...], tuple[MeshPort, ...]]] = {}
        self._result: tuple[MeshPort, ...] = ()
        self._feet = ByOwner(_feet)
        self._gateways: tuple[MAC, ...] = ()

    def gateways(self, facts: Facts, network: str, own: MAC) -> tuple[MAC, ...]:
        """Of all nodes' feet in ``network``, the ingress one; ``own``: this one's."""
        feet = chain.from_iterable(self._feet.of(facts).values())
        found = tuple(sorted({own, *(mac for where, mac in feet if where == network)}))
        if found != self._gateways:
            self._gateways = found
        return self._gateways

    def ports(
        self, services: Iterable[PublicService], behind: Callable[[str], Behind], node: str, held: Held
    ) -> tuple[MeshPort, ...]:
        """What ``node`` answers. ``behind``: of a service, by its id; ``held``: of ``node``, for ports that are bound
        to a link."""
        before, self._made = self._made, {}
        for service in services:
            published = [port for port in service.ports if port.mode == "ingress"]
            if not published:
                continue
            tasks = behind(service.id)
            sticky = service.affinity == "client-ip"
            for port in published:
                bound = held.get(port.interface, ()) if port.interface else ()
                seen = sticky, bound, tuple(tasks.items())
                key = service.id, port
                known = before.get(key)
                if known is None or known[0] != seen:
                    known = seen, _ports(port, choose(tasks, node, port.policy), tasks, bound, sticky=sticky)
                self._made[key] = known
        found = sorted(chain.from_iterable(made for _, made in self._made.values()), key=_order)
        if list(map(id, found)) != list(map(id, self._result)):
            self._result = tuple(found)
        return self._result


def _feet(_owner: str, rows: tuple[Fact, ...]) -> tuple[tuple[str, MAC], ...]:
    return tuple((row.network, row.mac) for _, _, row in rows if isinstance(row, Gateway))


def _order(port: MeshPort) -> tuple[object, ...]:
    return port.protocol, port.published, port.version, tuple(one.packed for one in port.addresses)


def _ports(
    port: PublishedPort, choice: Choice, behind: Behind, bound: tuple[IPAddress, ...], *, sticky: bool
) -> tuple[MeshPort, ...]:
    """Of each family to which it is bound."""
    everybody = {*chain.from_iterable((*tasks.ready, *tasks.draining) for tasks in behind.values())}
    made = []
    for version in (4, 6):
        addresses = bound if port.interface else port.addresses
        mine = tuple(one for one in addresses if one.version == version)
        if (addresses or port.interface) and not mine:
            continue
        chosen = _sorted({one for one in choice.tasks if one.version == version})
        others = _sorted({one for one in everybody if one.version == version} - {*chosen})
        seed = f"{port.protocol}/{port.published}".encode()
        made.append(
            MeshPort(
                protocol=port.protocol,
                published=port.published,
                version=4 if version == 4 else 6,
                target=port.target,
                addresses=() if any(one.is_unspecified for one in mine) else _sorted({*mine}),
                guarded=bool(port.sources),
                sources=_merged(one for one in port.sources if one.version == version),
                backends=buckets(seed, chosen) if sticky and chosen else chosen,
                draining=others,
                sticky=sticky,
            )
        )
    return tuple(made)


def _merged(sources: Iterable[IPNetwork]) -> tuple[IPNetwork, ...]:
    """Without overlaps, which the kernel's sets refuse. Of one family."""
    merged: list[IPNetwork] = []
    for one in sorted(sources, key=lambda one: (one.network_address.packed, one.prefixlen)):
        if not merged or one.network_address not in merged[-1]:
            merged.append(one)
    return tuple(merged)


def _sorted(addresses: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
    return tuple(sorted(addresses, key=lambda address: address.packed))


def by_link(facts: HostFacts) -> Held:
    """The host's addresses, by the name of their link."""
    held: dict[str, tuple[IPAddress, ...]] = {}
    for one in facts.addresses:
        held[one.interface] = (*held.get(one.interface, ()), one.address.ip)
    return held
