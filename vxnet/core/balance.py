"""Virtual IPs: which tasks stand behind them now.

A service's backends are the rows of its tasks on the network, in state *ready*, of owners that gossip does not call
dead. Draining ones get no new connections and keep those that they have; where all are draining they are better than
nobody. The order is by address, so that the same facts give the same record everywhere.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Collection, Iterable
from typing import NamedTuple

from vxnet.core.facts import ByOwner, Fact, Facts
from vxnet.model.address import IPAddress
from vxnet.model.host import STICKY_BUCKETS, VirtualService
from vxnet.model.row import Endpoint
from vxnet.model.service import PublicService

_WEIGHTS = struct.Struct(f">{STICKY_BUCKETS}Q")


class _Tasks(NamedTuple):
    """Addresses of one service's tasks on one network."""

    ready: tuple[IPAddress, ...]
    draining: tuple[IPAddress, ...]


_Place = tuple[str, str]
"""Network and service, ids."""


class Balance:
    """Remembers what it made, for speed: the result is the same without, but records that stay equal stay the same
    objects, so that who compares them sees at a glance that nothing changed."""

    def __init__(self) -> None:
        self._by_owner = ByOwner(_tasks_of)
        self._made: dict[tuple[str, IPAddress], VirtualService] = {}

    def of(
        self, facts: Facts, services: Iterable[PublicService], networks: Collection[str]
    ) -> dict[str, tuple[VirtualService, ...]]:
        """By network, of those asked for. ``facts``: the rows that count, this host's own too."""
        tasks: dict[_Place, list[_Tasks]] = {}
        for found in self._by_owner.of(facts).values():
            for where, some in found.items():
                tasks.setdefault(where, []).append(some)
        before, self._made = self._made, {}
        virtual: dict[str, list[VirtualService]] = {network: [] for network in networks}
        for service in services:
            for place in service.networks:
                if place.network not in virtual:
                    continue
                behind = tasks.get((place.network, service.id), ())
                for address in place.vips:
                    key = place.network, address
                    made = _virtual(address, behind, before.get(key), sticky=service.affinity == "client-ip")
                    self._made[key] = made
                    virtual[place.network].append(made)
        return {network: _settled(found) for network, found in virtual.items()}


def _settled(found: list[VirtualService]) -> tuple[VirtualService, ...]:
    """Sorted, and one for each address."""
    unique = {(service.address.version, service.address.packed): service for service in found}
    return tuple(unique[key] for key in sorted(unique))


def _tasks_of(_owner: str, rows: tuple[Fact, ...]) -> dict[_Place, _Tasks]:
    found: dict[_Place, tuple[list[IPAddress], list[IPAddress]]] = {}
    for _, _, endpoint in rows:
        if isinstance(endpoint, Endpoint) and endpoint.service and endpoint.state != "starting":
            ready, draining = found.setdefault((endpoint.network, endpoint.service), ([], []))
            (ready if endpoint.state == "ready" else draining).extend(endpoint.addresses)
    return {where: _Tasks(tuple(ready), tuple(draining)) for where, (ready, draining) in found.items()}


def _virtual(
    address: IPAddress, behind: Iterable[_Tasks], before: VirtualService | None, *, sticky: bool
) -> VirtualService:
    version = address.version
    ready = {one for tasks in behind for one in tasks.ready if one.version == version}
    draining = {one for tasks in behind for one in tasks.draining if one.version == version} - ready
    chosen = _sorted(ready or draining)
    backends = _buckets(address, chosen) if sticky and chosen else chosen
    made = VirtualService(address=address, backends=backends, draining=_sorted(draining), sticky=sticky)
    return before if before == made and before is not None else made


@functools.lru_cache(1024)
def _buckets(address: IPAddress, backends: tuple[IPAddress, ...]) -> tuple[IPAddress, ...]:
    """Each bucket to the backend of the highest weight (rendezvous hashing, Thaler and Ravishankar 1998): one that goes
    moves its own clients only, one that comes takes its share."""
    weights = {
        backend: _WEIGHTS.unpack(hashlib.shake_128(address.packed + backend.packed).digest(_WEIGHTS.size))
        for backend in backends
    }
    return tuple(
        max(backends, key=lambda backend: (weights[backend][bucket], backend.packed))
        for bucket in range(STICKY_BUCKETS)
    )


def _sorted(addresses: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
    return tuple(sorted(addresses, key=lambda address: address.packed))
