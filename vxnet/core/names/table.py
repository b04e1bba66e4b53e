"""The table behind the names: packed answers by (network, name, type), kept up by difference.

An answer is the same octets for every query (:mod:`vxnet.core.names.records`): a lookup is two dictionary reads and a
concatenation, and the same octets are laid into a C table (the differences that :meth:`Names.update` returns).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vxnet.core.facts import Fact, Facts
from vxnet.core.names.message import (
    ANY,
    NOERROR,
    NXDOMAIN,
    PTR,
    Query,
    Rejected,
    encode_name,
    encode_reverse,
    pack_reply,
    parse_query,
    reverse_prefix,
)
from vxnet.core.names.records import Answers, RRset, all_of, pack_addresses, pack_names
from vxnet.core.names.services import Service, ServiceNames
from vxnet.model.address import IPAddress, IPNetwork
from vxnet.model.cluster import Network
from vxnet.model.container import Container
from vxnet.model.row import Endpoint, RowKey, Value, Version
from vxnet.model.service import PublicService

_CONTAINER_ID = re.compile(r"[0-9a-f]{12}")


class View(NamedTuple):
    """What one container sees."""

    networks: tuple[str, ...]
    """Ids, in the order of its attachments: the first that has an address for a name answers."""
    forward: bool
    """Whether names that nobody here has may be asked outside: not from where only ``--internal`` networks are,
    because DNS itself would be the way out (CVE-2024-29018)."""
    servers: tuple[IPAddress, ...] = ()
    """Who is asked outside (``--dns``); empty: the host's resolvers."""


class Forward(NamedTuple):
    """Nobody here has this name: the host's resolvers are to be asked."""

    query: Query


def view_of(container: Container) -> View:
    networks = tuple(attachment.network for attachment in container.attachments)
    forward = container.gateway is not None or any(attachment.way_out for attachment in container.attachments)
    return View(networks, forward, container.spec.dns)


Claims = tuple[tuple[int, RowKey], ...]
"""Who has a name, and in which rank: 0 for the name itself, 1 for ``name.network``, which yields to it. A row that
claims a name in two ways is in it twice."""


class _Zone:
    """One network's names."""

    __slots__ = ("answers", "claims", "network", "reverse", "services", "suffix")

    def __init__(self, network: Network) -> None:
        self.network = network
        self.suffix = encode_name(network.name)
        self.answers: dict[bytes, Answers] = {}
        self.claims: dict[bytes, Claims] = {}
        self.reverse: dict[bytes, Claims] = {}
        self.services = ServiceNames(self.qualify)

    def keys(self, key: RowKey, endpoint: Endpoint) -> list[tuple[dict[bytes, Claims], bytes, Claims]]:
        """All that a row claims here: which table, name on the wire, and the claim."""
        found: list[tuple[dict[bytes, Claims], bytes, Claims]] = []
        plainly, qualifiedly = ((0, key),), ((1, key),)
        texts = [endpoint.name, *endpoint.aliases]
        if _CONTAINER_ID.match(key.id):
            texts.append(key.id[:12])
        for text in texts:
            if plain := encode_name(text):
                found.append((self.claims, plain, plainly))
                if qualified := self.qualify(plain):
                    found.append((self.claims, qualified, qualifiedly))
        found += [(self.reverse, encode_reverse(address), plainly) for address in endpoint.addresses]
        return found

    def qualify(self, name: bytes) -> bytes | None:
        """``name.network``, if that is not too long for DNS."""
        if self.suffix is None or len(name) + len(self.suffix) > 256:
            return None
        return name[:-1] + self.suffix

    def pack(
        self, name: bytes, rows: Mapping[RowKey, tuple[Version, Endpoint]], alone: dict[RowKey, Answers]
    ) -> Answers | None:
        """``alone``: the addresses of those that have a name for themselves; nearly all names are of one, and one has
        several. A service's name is nobody else's."""
        served = self.services.pack(name, rows)
        if served is not None:
            return served
        claims = self.claims.get(name)
        reverse = self.reverse.get(name)
        if claims is None and reverse is None:
            return None
        answers: Answers = {}
        if claims and len(claims) == 1:
            ((_rank, key),) = claims
            if key not in alone:
                alone[key] = pack_addresses([rows[key][1]])
            answers = alone[key]
        elif claims:
            best = min(rank for rank, _key in claims)
            answers = pack_addresses([rows[key][1] for rank, key in claims if rank == best])
        if reverse:
            names = {encode_name(rows[key][1].name) for _rank, key in reverse}
            targets = [target for name in names if name and (target := self.qualify(name))]
            if targets:
                answers = {**answers, PTR: pack_names(PTR, targets)}
        return answers


class Names:
    """All networks' names on this host. Lookups never change it, updates replace its parts."""

    def __init__(self) -> None:
        self._zones: dict[str, _Zone] = {}
        self._rows: dict[RowKey, tuple[Version, Endpoint]] = {}
        self._heard: dict[str, tuple[Fact, ...]] = {}
        """By owner, as last taken over."""

    def __len__(self) -> int:
        return sum(len(zone.answers) for zone in self._zones.values())

    def update(
        self,
        rows: Iterable[tuple[RowKey, Version, Value]],
        networks: Mapping[str, Network],
        services: Iterable[PublicService] = (),
    ) -> dict[tuple[str, bytes], Answers | None]:
        """Take over the whole truth: all effective rows of the cluster, this host's own too, all networks by id, all
        services.

        Returns what became different, by network and name: the new answers, or None for a name that is gone. Only an
        owner with other rows than last time costs more than a comparison (:class:`~vxnet.core.facts.Facts`).
        """
        touched: set[tuple[str, bytes]] = set()
        heard, self._heard = self._heard, {}
        # With other networks an owner's same rows say something else.
        anew = self._follow(networks, touched)
        owners = Facts.gather(rows).by_owner
        for owner in heard.keys() - owners.keys():
            self._hear({}, self._known(heard[owner]), touched)
        for owner, facts in owners.items():
            before = heard.get(owner)
            if anew or before is not facts:
                wanted = {
                    key: (version, value)
                    for key, version, value in facts
                    if isinstance(value, Endpoint) and value.network in self._zones
                }
                self._hear(wanted, self._known(before or ()), touched)
            self._heard[owner] = facts
        self._follow_services(services, touched)
        return self._repack(touched)

    def _follow_services(self, services: Iterable[PublicService], touched: set[tuple[str, bytes]]) -> None:
        places: dict[str, dict[str, Service]] = {network: {} for network in self._zones}
        for service in services:
            for place in service.networks:
                if place.network in places:
                    places[place.network][service.id] = service, place
        for network, found in places.items():
            touched.update((network, name) for name in self._zones[network].services.follow(found, self._rows))

    def _known(self, facts: Iterable[Fact]) -> set[RowKey]:
        return {key for key, _, _ in facts if key in self._rows}

    def _hear(
        self, wanted: Mapping[RowKey, tuple[Version, Endpoint]], had: set[RowKey], touched: set[tuple[str, bytes]]
    ) -> None:
        """Of one owner: what it has now, and which of its rows are known."""
        known = self._rows
        for key in had - wanted.keys():
            self._claim(key, known.pop(key)[1], touched, add=False)
        for key, row in wanted.items():
            old = known.get(key)
            if old is not None:
                if old[0] == row[0]:
                    continue
                self._claim(key, old[1], touched, add=False)
            known[key] = row
            self._claim(key, row[1], touched, add=True)

    def answer(self, view: View, data: bytes, turn: int, *, tcp: bool = False) -> bytes | Forward | Rejected:
        """The reply to one message from a container. ``turn``: 32 random bits, which the order of addresses follows."""
        query = parse_query(data, tcp=tcp)
        if isinstance(query, Rejected):
            return query
        known = False
        for network in view.networks:
            zone = self._zones.get(network)
            if zone is None:
                continue
            answers = zone.answers.get(query.name)
            if answers:
                rrset = all_of(answers) if query.type == ANY else answers.get(query.type)
                # The name exists, the type does not: NOERROR. Asked upstream, AAAA would cost a round trip or more.
                return pack_reply(query, NOERROR) if rrset is None else _choose(query, rrset, turn)
            known |= answers is not None
        if known:
            return pack_reply(query, NOERROR)
        return self._miss(view, query)

    def _miss(self, view: View, query: Query) -> bytes | Forward:
        prefix = reverse_prefix(query.name)
        if prefix is not None:
            for network in view.networks:
                zone = self._zones.get(network)
                if zone is not None and any(_inside(prefix, subnet.prefix) for subnet in zone.network.subnets):
                    # Ours to know; the world outside has other hosts at these addresses, or must not hear of them.
                    whole = prefix.prefixlen == prefix.max_prefixlen
                    return pack_reply(query, NXDOMAIN if whole else NOERROR)
        return Forward(query) if view.forward else pack_reply(query, NXDOMAIN)

    def _follow(self, networks: Mapping[str, Network], touched: set[tuple[str, bytes]]) -> bool:
        """One zone a network; a network that changed begins anew. Whether any did, or came, or went.

        The ingress network has none: services are no neighbours because both publish ports.
        """
        networks = {key: network for key, network in networks.items() if not network.ingress}
        stale = {
            key
            for key, zone in self._zones.items()
            if (found := networks.get(key)) is not zone.network and found != zone.network
        }
        for network in stale:
            touched.update((network, name) for name in self._zones.pop(network).answers)
        if stale:
            self._rows = {key: row for key, row in self._rows.items() if row[1].network not in stale}
        new = networks.keys() - self._zones.keys()
        for key in new:
            self._zones[key] = _Zone(networks[key])
        return bool(stale or new)

    def _claim(self, key: RowKey, endpoint: Endpoint, touched: set[tuple[str, bytes]], *, add: bool) -> None:
        zone = self._zones[endpoint.network]
        for table, name, claim in zone.keys(key, endpoint):
            touched.add((endpoint.network, name))
            claims = table.get(name, ())
            if add:
                # Nearly all names are of one: the same tuple for all of an endpoint's.
                table[name] = claims + claim if claims else claim
            elif left := tuple(other for other in claims if other[1] != key):
                table[name] = left
            else:
                table.pop(name, None)
        if endpoint.service:
            touched.update((endpoint.network, name) for name in zone.services.claim(key, endpoint, add=add))

    def _repack(self, touched: Iterable[tuple[str, bytes]]) -> dict[tuple[str, bytes], Answers | None]:
        difference: dict[tuple[str, bytes], Answers | None] = {}
        alone: dict[RowKey, Answers] = {}
        for network, name in touched:
            zone = self._zones.get(network)
            answers = None if zone is None else zone.pack(name, self._rows, alone)
            difference[network, name] = answers
            if zone is None:
                continue
            if answers is None:
                zone.answers.pop(name, None)
            else:
                zone.answers[name] = answers
        return difference


def _choose(query: Query, rrset: RRset, turn: int) -> bytes:
    number, stride, body = rrset
    room = query.limit - 12 - len(query.question) - len(query.opt)
    if stride and number:
        # As many as fit: musl before 1.2.4 knows no TCP and takes what it gets.
        order = _shuffled(number, min(number, room // stride), turn)
        body = b"".join(body[one * stride : (one + 1) * stride] for one in order)
        return pack_reply(query, NOERROR, len(order), body, truncated=len(order) < number)
    if len(body) <= room:
        return pack_reply(query, NOERROR, number, body)
    return pack_reply(query, NOERROR, truncated=True)


def _shuffled(number: int, count: int, turn: int) -> list[int]:
    """``count`` of ``number`` in an order that follows from ``turn`` (32 random bits): those from a random one on, then
    shuffled by Fisher and Yates. csrc/dnsfast/message.c does the same, so that either can be checked by the other."""
    if number == 1:
        return [0]
    start = 0
    if count < number:
        turn = _draw(turn)
        start = (turn >> 16) * number >> 16
    order = [(start + one) % number for one in range(count)]
    for one in range(count):
        turn = _draw(turn)
        other = one + ((turn >> 16) * (count - one) >> 16)
        order[one], order[other] = order[other], order[one]
    return order


def _draw(turn: int) -> int:
    """A linear congruential step (Knuth, Lewis); the upper half is what is random."""
    return (turn * 1664525 + 1013904223) & 0xFFFFFFFF


def _inside(prefix: IPNetwork, subnet: IPNetwork) -> bool:
    if prefix.version != subnet.version or prefix.prefixlen < subnet.prefixlen:
        return False
    return prefix.supernet(new_prefix=subnet.prefixlen) == subnet
