"""The endpoints of other hosts, as this host's segments shall know them.

::

    rows of an owner ── groups: one for each network and VTEP ──┐   kept for as long as the rows are the same
    rows of another  ── groups ─────────────────────────────────┴──> those of one network, one after the other

One new row among ten thousand costs the reading of its owner's rows, and the putting together of the groups.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from vxnet.core.facts import ByOwner, Distinct, Fact, Facts
from vxnet.model.address import MAC, IPAddress
from vxnet.model.host import Remote
from vxnet.model.row import Endpoint, Gateway

NetworkKey = tuple[str, int]
"""Id and VNI: a row that has one of them wrong is of no network."""


class Group(NamedTuple):
    """One owner's endpoints in one network behind one VTEP."""

    owner: str
    vtep: IPAddress
    remotes: tuple[Remote, ...]
    """By MAC."""
    macs: frozenset[MAC]
    addresses: frozenset[bytes]
    """Packed: they are hashed again and again."""
    is_torn: bool
    """Whether two of them claim one MAC or address."""


class Known(NamedTuple):
    """What a segment is to know of other hosts."""

    remotes: tuple[Remote, ...]
    """By owner and MAC."""
    vteps: tuple[IPAddress, ...]
    """Theirs, sorted."""


class _Network:
    """One network's groups as they were settled last."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self.here: tuple[frozenset[MAC], frozenset[bytes]] | None = None
        self.known = Known((), ())
        self.macs: Distinct[MAC] = Distinct()
        self.addresses: Distinct[bytes] = Distinct()


class Groups:
    """Of all owners, remembered from one look to the next."""

    def __init__(self) -> None:
        self._of_owner = ByOwner(_group)
        self._networks: dict[NetworkKey, _Network] = {}

    def of(self, facts: Facts, networks: Collection[NetworkKey]) -> dict[NetworkKey, list[Group]]:
        """Of these networks, each network's by owner."""
        found: dict[NetworkKey, list[Group]] = {key: [] for key in networks}
        for _owner, groups in sorted(self._of_owner.of(facts).items()):
            for key in groups.keys() & found.keys():
                found[key].extend(groups[key])
        self._networks = {key: self._networks.get(key) or _Network() for key in found}
        return found

    def settle(
        self, network: NetworkKey, groups: list[Group], macs: Iterable[MAC], addresses: Iterable[IPAddress]
    ) -> Known:
        """Of two that claim a MAC or an address, one that lives here (``macs``, ``addresses``) is right; then the first
        by node id."""
        here = frozenset(macs), frozenset(address.packed for address in addresses)
        held = self._networks[network]
        if held.here != here or list(map(id, held.groups)) != list(map(id, groups)):
            held.known = _settle(held, groups, *here)
            held.groups, held.here = groups, here
        return held.known


def _group(owner: str, rows: Iterable[Fact]) -> Mapping[NetworkKey, tuple[Group, ...]]:
    endpoints: dict[NetworkKey, dict[IPAddress, list[Endpoint | Gateway]]] = {}
    last: Endpoint | Gateway | None = None
    group: list[Endpoint | Gateway] = []
    for _key, _version, value in rows:
        if isinstance(value, Endpoint | Gateway):
            if last is None or value.vtep is not last.vtep or value.network != last.network or value.vni != last.vni:
                # Looked up where it changes: an address takes long to hash.
                by_vtep = endpoints.setdefault((value.network, value.vni), {})
                last, group = value, by_vtep.setdefault(value.vtep, [])
            group.append(value)
    return {
        key: tuple(_make(owner, vtep, by_vtep[vtep]) for vtep in sorted(by_vtep, key=lambda one: one.packed))
        for key, by_vtep in endpoints.items()
    }


def _make(owner: str, vtep: IPAddress, endpoints: Iterable[Endpoint | Gateway]) -> Group:
    remotes = tuple(
        Remote(mac=one.mac, addresses=one.addresses, vtep=one.vtep)
        for one in sorted(endpoints, key=lambda one: one.mac)
        if one.addresses
    )
    packed = [address.packed for remote in remotes for address in remote.addresses]
    macs, addresses = frozenset(remote.mac for remote in remotes), frozenset(packed)
    return Group(owner, vtep, remotes, macs, addresses, len(macs) + len(addresses) < len(remotes) + len(packed))


def _settle(network: _Network, groups: Sequence[Group], macs: frozenset[MAC], addresses: frozenset[bytes]) -> Known:
    remotes = tuple(chain.from_iterable(group.remotes for group in groups))
    places = {(group.owner, group.vtep.packed): group for group in groups}
    clear = [
        network.macs.are({None: macs, **{key: group.macs for key, group in places.items()}}),
        network.addresses.are({None: addresses, **{key: group.addresses for key, group in places.items()}}),
        not any(group.is_torn for group in groups),
    ]
    if all(clear):
        # Nearly always: nobody claims what another has.
        return Known(remotes, _sorted({group.vtep for group in groups if group.remotes}))
    kept = []
    taken_macs, taken = set(macs), set(addresses)
    for remote in remotes:
        free = tuple(address for address in remote.addresses if address.packed not in taken)
        if remote.mac in taken_macs or not free:
            continue
        taken_macs.add(remote.mac)
        taken.update(address.packed for address in free)
        whole = len(free) == len(remote.addresses)
        kept.append(remote if whole else Remote(mac=remote.mac, addresses=free, vtep=remote.vtep))
    return Known(tuple(kept), _sorted({remote.vtep for remote in kept}))


def _sorted(addresses: Collection[IPAddress]) -> tuple[IPAddress, ...]:
    return tuple(sorted(addresses, key=lambda address: (address.version, address.packed)))
