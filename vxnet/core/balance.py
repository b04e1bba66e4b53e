"""Virtual IPs: which tasks stand behind them now.

A service's backends are the rows of its tasks on the network, in state *ready*, of owners that gossip does not call
dead. Draining ones get no new connections and keep those that they have; where all are draining they are better than
nobody. The order is by address, so that the same facts give the same record everywhere.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from vxnet.core.facts import ByOwner, Fact, Facts
from vxnet.model.address import IPAddress
from vxnet.model.host import STICKY_BUCKETS, VirtualService
from vxnet.model.row import Endpoint
from vxnet.model.service import PublicService

_WEIGHTS = struct.Struct(f">{STICKY_BUCKETS}Q")


class Tasks(NamedTuple):
    """Addresses of one service's tasks on one network."""

    ready: tuple[IPAddress, ...]
    draining: tuple[IPAddress, ...]


_Place = tuple[str, str]
"""Network and service, ids."""


class Balance:
    """Remembers what it made, for speed: the result is the same without. What stays equal stays the same object, so
    that who compares sees at a glance that nothing changed; a row that is another costs what its service costs."""

    def __init__(self) -> None:
        self._by_owner = ByOwner(_tasks_of)
        self._heard: dict[str, Mapping[_Place, Tasks]] = {}
        self._behind: dict[_Place, dict[str, Tasks]] = {}
        """By owner, for each service."""
        self._services: tuple[PublicService, ...] = ()
        self._addresses: dict[_Place, list[tuple[IPAddress, bool]]] = {}
        """Of each service, and whether the client's address chooses."""
        self._made: dict[str, dict[IPAddress, VirtualService]] = {}
        """By network; sorted."""
        self._result: dict[str, tuple[VirtualService, ...]] = {}

    def of(
        self, facts: Facts, services: Iterable[PublicService], networks: Collection[str]
    ) -> dict[str, tuple[VirtualService, ...]]:
        """By network, of those asked for. ``facts``: the rows that count, this host's own too."""
        changed = self._hear(self._by_owner.of(facts))
        services = tuple(services)
        if services != self._services or self._made.keys() != {*networks}:
            self._services = services
            self._arrange(networks)
        else:
            self._update(changed)
        return self._result

    def behind(self, network: str, service: str) -> Mapping[str, Tasks]:
        """Of a service on a network, by node, as of the last :meth:`of`."""
        return self._behind.get((network, service), _NOBODY_AT_ALL)

    def _hear(self, found: dict[str, Mapping[_Place, Tasks]]) -> set[_Place]:
        """Whose tasks are others than before."""
        before, self._heard = self._heard, found
        changed: set[_Place] = set()
        for owner in before.keys() | found.keys():
            old, new = before.get(owner, _NOBODY), found.get(owner, _NOBODY)
            if old is new:
                continue
            changed |= old.keys() | new.keys()
            for where in old.keys() - new.keys():
                del self._behind[where][owner]
            for where, tasks in new.items():
                self._behind.setdefault(where, {})[owner] = tasks
        return changed

    def _arrange(self, networks: Collection[str]) -> None:
        """All of it anew."""
        before, self._made, self._addresses = self._made, {network: {} for network in networks}, {}
        for service in self._services:
            for place in service.networks:
                if place.network in self._made:
                    sticky = service.affinity == "client-ip"
                    self._addresses[place.network, service.id] = [(address, sticky) for address in place.vips]
        for where, addresses in self._addresses.items():
            network = where[0]
            for address, sticky in addresses:
                known = before.get(network, {}).get(address)
                self._made[network][address] = self._virtual(where, address, known, sticky=sticky)
        for network, made in self._made.items():
            self._made[network] = dict(sorted(made.items(), key=lambda one: (one[0].version, one[0].packed)))
        self._result = {network: tuple(made.values()) for network, made in self._made.items()}

    def _update(self, changed: Iterable[_Place]) -> None:
        networks = set()
        for where in changed:
            for address, sticky in self._addresses.get(where, ()):
                known = self._made[where[0]][address]
                made = self._made[where[0]][address] = self._virtual(where, address, known, sticky=sticky)
                if made is not known:
                    networks.add(where[0])
        if networks:
            self._result = self._result | {network: tuple(self._made[network].values()) for network in networks}

    def _virtual(
        self, where: _Place, address: IPAddress, before: VirtualService | None, *, sticky: bool
    ) -> VirtualService:
        return _virtual(address, self._behind.get(where, {}).values(), before, sticky=sticky)


_NOBODY: Mapping[_Place, Tasks] = {}
_NOBODY_AT_ALL: Mapping[str, Tasks] = {}


def _tasks_of(_owner: str, rows: tuple[Fact, ...]) -> Mapping[_Place, Tasks]:
    found: dict[_Place, tuple[list[IPAddress], list[IPAddress]]] = {}
    for _, _, endpoint in rows:
        if isinstance(endpoint, Endpoint) and endpoint.service and endpoint.state != "starting":
            ready, draining = found.setdefault((endpoint.network, endpoint.service), ([], []))
            (ready if endpoint.state == "ready" else draining).extend(endpoint.addresses)
    return {where: Tasks(tuple(ready), tuple(draining)) for where, (ready, draining) in found.items()}


def _virtual(
    address: IPAddress, behind: Iterable[Tasks], before: VirtualService | None, *, sticky: bool
) -> VirtualService:
    version = address.version
    ready = {one for tasks in behind for one in tasks.ready if one.version == version}
    draining = {one for tasks in behind for one in tasks.draining if one.version == version} - ready
    chosen = _sorted(ready or draining)
    backends = buckets(address.packed, chosen) if sticky and chosen else chosen
    made = VirtualService(address=address, backends=backends, draining=_sorted(draining), sticky=sticky)
    return before if before == made and before is not None else made


@functools.lru_cache(1024)
def buckets(seed: bytes, backends: tuple[IPAddress, ...]) -> tuple[IPAddress, ...]:
    """Each bucket to the backend of the highest weight (rendezvous hashing, Thaler and Ravishankar 1998): one that goes
    moves its own clients only, one that comes takes its share."""
    weights = {
        backend: _WEIGHTS.unpack(hashlib.shake_128(seed + backend.packed).digest(_WEIGHTS.size)) for backend in backends
    }
    return tuple(
        max(backends, key=lambda backend: (weights[backend][bucket], backend.packed))
        for bucket in range(STICKY_BUCKETS)
    )


def _sorted(addresses: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
    return tuple(sorted(addresses, key=lambda address: address.packed))
