"""Which rows count: asked each time they are used, because certificates, leases and revocations may come later.

A ledger counts if its certificate row chains to the cluster's CA, names the owner and holds the key that signed; a row
with addresses counts if each of them lies in a block that a manager leased to the owner, its MAC follows from them, and
its VTEP is an address of the owner's certificate.
Of two owners that claim an address the one with the higher lease epoch is right. What does not count is kept, and
counted by reason.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from vxnet.core import lease_sets, trust
from vxnet.core.allocate import mac_of_packed
from vxnet.core.facts import Distinct, Fact, Facts
from vxnet.core.rows import LedgerKey
from vxnet.core.table import Entry, Ledger, Table
from vxnet.model import codec
from vxnet.model.address import IPAddress
from vxnet.model.cluster import LeaseSet
from vxnet.model.errors import PeerError
from vxnet.model.row import (
    ADDRESSES_MAX,
    ALIASES_MAX,
    Applied,
    Certificate,
    Endpoint,
    Gateway,
    Leases,
    RowKey,
    Value,
    Version,
)

T = TypeVar("T")

REMOVED = "node was removed"
"""Why rows count for nothing: what a removed node leaves is kept by everybody for a while."""
RECHECK_S = 3600.0
"""A certificate that was good is looked at again after this: cheap, and it covers a clock that was set."""
DOUBT_S = 60.0
"""… and one that was not."""
CLOCK_STEP_S = 1.0
"""A clock that goes back by more was set."""
LEASE_OCTETS = 460
"""In memory, once it is read (``tracemalloc``)."""
CACHE_OCTETS = 64 << 20
"""Of the certificates and leases that were looked at: those of 10,000 nodes take a quarter of it."""
NEVER = Version(0, 0)
VALUES: Mapping[str, type[Value]] = {"endpoint": Endpoint, "gateway": Gateway, "applied": Applied}


class _Verdict(msgspec.Struct, frozen=True, gc=False):
    """On one row. There are ten thousand: not a NamedTuple, which takes three times as long to make."""

    fact: Fact | None
    """None: it does not count."""
    claims: tuple[tuple[bytes, int], ...] = ()
    """Each address that it claims, with its VNI, and the epoch of the lease."""
    refused: str = ""


class _Opinion(NamedTuple):
    """Of one ledger, as long as it is as it is."""

    revision: int
    until: float
    doubt: str | None
    """Why it is not its owner's at all."""
    basis: tuple[LeaseSet | None, frozenset[IPAddress]] = (None, frozenset())
    """What each verdict follows from, beside the row."""
    verdicts: Mapping[Entry, _Verdict] = {}
    rows: tuple[Fact, ...] = ()
    refused: tuple[str, ...] = ()
    places: frozenset[bytes] = frozenset()
    """All that it claims."""
    twice: frozenset[bytes] = frozenset()
    """What it claims for several rows."""


class _Holder(NamedTuple):
    """What a certificate says, or why it says nothing."""

    identity: trust.Identity | None
    key: bytes
    addresses: frozenset[IPAddress]
    until: float


class Judge:
    def __init__(self, roots: Sequence[bytes] = (), revoked: Collection[str] = ()) -> None:
        self._roots = tuple(roots)
        self._revoked = frozenset(revoked)
        self.revision = 0
        self._holders: dict[bytes, _Holder] = {}
        self._lease_sets: dict[LedgerKey, _Shown] = {}
        self._opinions: dict[Ledger, _Opinion] = {}
        self.remembered_octets = 0
        self._distinct: Distinct[bytes] = Distinct()
        self._result: tuple[Facts, Counter[str]] = (Facts({}), Counter())
        self._result_of: tuple[int, int] = (-1, -1)
        self._until = 0.0
        self._wall = 0.0

    def update(self, *, roots: Sequence[bytes] | None = None, revoked: Collection[str] | None = None) -> None:
        before = self._roots, self._revoked
        self._roots = self._roots if roots is None else tuple(roots)
        self._revoked = self._revoked if revoked is None else frozenset(revoked)
        if (self._roots, self._revoked) != before:
            self._think_again()

    def _think_again(self) -> None:
        self.revision += 1
        self._forget()
        self._opinions.clear()

    def _forget(self) -> None:
        """What costs a signature's time to find out again, and nothing else."""
        self._holders.clear()
        self._lease_sets.clear()
        self.remembered_octets = 0

    def _remember(self, octets: int) -> None:
        if self.remembered_octets + octets > CACHE_OCTETS:
            self._forget()
        self.remembered_octets += octets

    def _heed(self, wall: float) -> None:
        """A clock that was set back: what was found out in a future that is none any more would hold until then."""
        if wall < self._wall - CLOCK_STEP_S:
            self._think_again()
        self._wall = wall

    def is_proven(self, ledger: Ledger, wall: float) -> bool:
        self._heed(wall)
        return self._doubt(ledger, wall)[0] is None

    def addresses(self, table: Table, owner: str, wall: float) -> frozenset[IPAddress]:
        """Where a manager has certified ``owner`` to be; empty if nothing proves it."""
        self._heed(wall)
        ledgers = list(table.of_owner(owner))
        if len(ledgers) == 1 and (held := self._held(ledgers[0], wall)) is not None:
            return held.basis[1]
        good = [ledger for ledger in ledgers if self._doubt(ledger, wall)[0] is None]
        return self._addresses(_latest(good), wall) if good else frozenset()

    def effective(self, table: Table, wall: float) -> tuple[Facts, Counter[str]]:
        """(rows that count, how many do not by reason). ``wall``: seconds since 1970."""
        self._heed(wall)
        if self._result_of != (table.revision, self.revision) or wall >= self._until:
            self._result = self._compute(table, wall)
            self._result_of = (table.revision, self.revision)
        return self._result

    def _compute(self, table: Table, wall: float) -> tuple[Facts, Counter[str]]:
        refused: Counter[str] = Counter()
        opinions: dict[Ledger, _Opinion] = {}
        chosen: dict[str, _Opinion] = {}
        self._until = wall + RECHECK_S
        for owner in table.owners():
            good: list[Ledger] = []
            for ledger in table.of_owner(owner):
                opinions[ledger] = opinion = self._opinion(ledger, wall)
                self._until = min(self._until, opinion.until)
                if opinion.doubt is None:
                    good.append(ledger)
                else:
                    refused[opinion.doubt] += len(ledger.rows)
            if good:
                chosen[owner] = opinion = opinions[_latest(good)]
                refused.update(opinion.refused)
        self._opinions = opinions
        return Facts(_settle_claims(chosen, self._distinct, refused)), refused

    def _held(self, ledger: Ledger, wall: float) -> _Opinion | None:
        """The opinion on it that is good still."""
        held = self._opinions.get(ledger)
        return held if held is not None and held.revision == ledger.revision and wall < held.until else None

    def _opinion(self, ledger: Ledger, wall: float) -> _Opinion:
        if (good := self._held(ledger, wall)) is not None:
            return good
        held = self._opinions.get(ledger)
        doubt, until = self._doubt(ledger, wall)
        if doubt is not None:
            return _Opinion(ledger.revision, until, doubt)
        leases, leases_until = self._leases(ledger, wall)
        basis = leases, self._addresses(ledger, wall)
        # A row that was judged on the same grounds is not judged again: an owner may have thousands, and one is new.
        before = held.verdicts if held is not None and held.basis == basis else {}
        blocks = _blocks(leases)
        verdicts = {
            entry: before.get(entry) or _judge(ledger.key.owner, entry, blocks, basis[1])
            for entry in ledger.rows.values()
            if entry.row.value is not None and entry.row.kind in VALUES
        }
        claimed = [place for verdict in verdicts.values() for place, _epoch in verdict.claims]
        places = frozenset(claimed)
        twice = (place for place, times in Counter(claimed).items() if times > 1) if len(places) < len(claimed) else ()
        rows = tuple(verdict.fact for verdict in verdicts.values() if verdict.fact is not None)
        if held is not None and held.rows == rows:
            rows = held.rows
        return _Opinion(
            revision=ledger.revision,
            until=min(until, leases_until),
            doubt=None,
            basis=basis,
            verdicts=verdicts,
            rows=rows,
            refused=tuple(verdict.refused for verdict in verdicts.values() if verdict.refused),
            places=places,
            twice=frozenset(twice),
        )

    def _doubt(self, ledger: Ledger, wall: float) -> tuple[str | None, float]:
        """(why the ledger is not its owner's, or None if it is; until when that holds)."""
        if ledger.key.owner in self._revoked:
            return REMOVED, wall + RECHECK_S
        certificate = _decode(ledger.get("certificate"), Certificate)
        if certificate is None:
            return "no certificate", wall + RECHECK_S
        holder = self._holder(certificate.der, wall)
        if holder.identity is None:
            return "certificate is not this cluster's", holder.until
        if holder.identity.node != ledger.key.owner or holder.key != ledger.key.key:
            return "certificate is another's", holder.until
        return None, holder.until

    def _addresses(self, ledger: Ledger, wall: float) -> frozenset[IPAddress]:
        certificate = _decode(ledger.get("certificate"), Certificate)
        return frozenset() if certificate is None else self._holder(certificate.der, wall).addresses

    def _holder(self, der: bytes, wall: float) -> _Holder:
        held = self._holders.get(der)
        if held is not None and wall < held.until:
            return held
        if der not in self._holders:
            self._remember(len(der))
        try:
            identity = trust.verify_certificate(der, self._roots, wall)
            until = min(trust.validity(der)[1], wall + RECHECK_S)
            held = _Holder(identity, trust.public_key(der), trust.addresses(der), until)
        except PeerError:
            # It may be one that is not valid yet.
            held = _Holder(None, b"", frozenset(), wall + DOUBT_S)
        self._holders[der] = held
        return held

    def _leases(self, ledger: Ledger, wall: float) -> tuple[LeaseSet | None, float]:
        """(what a manager leased to the owner, until when that answer holds)."""
        leases = _decode(ledger.get("leases"), Leases)
        if leases is None:
            return None, wall + RECHECK_S
        held = self._lease_sets.get(ledger.key)
        if held is not None and held.leases == leases and wall < held.until:
            return held.found, held.until
        # Thousands of nodes show leases that one manager signed: its certificate is looked at once.
        signer = self._holder(leases.certificate, wall)
        found: LeaseSet | None = None
        if (
            signer.identity is not None
            and signer.identity.role == "manager"
            and signer.identity.node not in self._revoked
            and trust.is_signed_by(signer.key, trust.LEASES_PURPOSE, leases.content, leases.signature)
        ):
            with contextlib.suppress(ValueError, RecursionError):
                found = lease_sets.unpack(leases.content)
        if found is not None and found.node != ledger.key.owner:
            found = None
        # The one before of this owner's goes: there is a new one with each network.
        held = self._lease_sets.pop(ledger.key, None)
        self.remembered_octets -= held.octets if held is not None else 0
        octets = len(leases.content) + len(leases.certificate) + LEASE_OCTETS * len(found.leases if found else ())
        self._remember(octets)
        self._lease_sets[ledger.key] = _Shown(leases, found, signer.until, octets)
        return found, signer.until


class _Shown(NamedTuple):
    """What an owner last showed as its leases."""

    leases: Leases
    found: LeaseSet | None
    until: float
    octets: int


class _Block(NamedTuple):
    """A lease, as its first and last address are packed."""

    octets: int
    first: bytes
    last: bytes
    epoch: int


_Blocks = Mapping[tuple[str, int], Sequence[_Block]]
"""By network and VNI."""


def _blocks(leases: LeaseSet | None) -> _Blocks:
    found: dict[tuple[str, int], list[_Block]] = {}
    for lease in leases.leases if leases is not None else ():
        first, last = lease.prefix.network_address.packed, lease.prefix.broadcast_address.packed
        found.setdefault((lease.network, lease.vni), []).append(_Block(len(first), first, last, lease.epoch))
    return found


def _judge(owner: str, entry: Entry, blocks: _Blocks, places: frozenset[IPAddress]) -> _Verdict:
    row = entry.row
    value = _decode(row.value, VALUES[row.kind])
    if value is None:
        return _Verdict(None, refused="unreadable")
    claims = () if isinstance(value, Applied) else _claims(value, blocks, places)
    if isinstance(claims, str):
        return _Verdict(None, refused=claims)
    return _Verdict((RowKey(owner, row.kind, row.id), entry.version, value), claims)


def _claims(
    value: Endpoint | Gateway, blocks: _Blocks, places: frozenset[IPAddress]
) -> tuple[tuple[bytes, int], ...] | str:
    """Each address with the epoch of its lease, or why the row has no effect."""
    if len(value.addresses) > ADDRESSES_MAX or (isinstance(value, Endpoint) and len(value.aliases) > ALIASES_MAX):
        return "more addresses or aliases than anybody has"
    leased = blocks.get((value.network, value.vni))
    if leased is None:
        return "address is not leased to the owner"
    vni = value.vni.to_bytes(4, "big")
    claims = []
    follows = False
    for address in value.addresses:
        packed = address.packed
        epoch = -1
        for octets, first, last, granted in leased:
            if first <= packed <= last and len(packed) == octets and granted > epoch:
                epoch = granted
        if epoch < 0:
            return "address is not leased to the owner"
        claims.append((vni + packed, epoch))
        follows = follows or value.mac == mac_of_packed(value.vni, packed)
    # Else a row could draw another container's frames to itself.
    if not follows:
        return "MAC does not follow from the address"
    # Else it could send others' frames to a third host, and have that one let in.
    if value.vtep not in places:
        return "VTEP is not the owner's"
    return tuple(claims)


def _settle_claims(
    chosen: Mapping[str, _Opinion], distinct: Distinct[bytes], refused: Counter[str]
) -> dict[str, tuple[Fact, ...]]:
    """Of several rows that claim an address the one with the higher epoch, then the newer version."""
    if distinct.are({owner: opinion.places for owner, opinion in chosen.items()}) and not any(
        opinion.twice for opinion in chosen.values()
    ):
        return {owner: opinion.rows for owner, opinion in chosen.items() if opinion.rows}
    seen: set[bytes] = set()
    contested: set[bytes] = set()
    for opinion in chosen.values():
        contested |= opinion.twice | (seen & opinion.places)
        seen |= opinion.places
    best: dict[bytes, tuple[int, str, Version]] = {}
    for owner, opinion in chosen.items():
        if not contested.isdisjoint(opinion.places):
            for entry, verdict in opinion.verdicts.items():
                for place, epoch in verdict.claims:
                    if place in contested:
                        best[place] = max(best.get(place, (0, "", NEVER)), (epoch, owner, entry.version))
    rows = {}
    for owner, opinion in chosen.items():
        kept = opinion.rows
        if not contested.isdisjoint(opinion.places):
            lost = {
                RowKey(owner, entry.row.kind, entry.row.id)
                for entry, verdict in opinion.verdicts.items()
                for place, epoch in verdict.claims
                if place in contested and best[place] != (epoch, owner, entry.version)
            }
            if lost:
                kept = tuple(fact for fact in kept if fact[0] not in lost)
                refused["address was given anew"] += len(lost)
        if kept:
            rows[owner] = kept
    return rows


def _latest(ledgers: Sequence[Ledger]) -> Ledger:
    """A node that was given a new key has two; the later life is right."""
    return ledgers[0] if len(ledgers) == 1 else max(ledgers, key=lambda ledger: ledger.newest)


def _decode(packed: bytes | None, kind: type[T]) -> T | None:
    if packed is None:
        return None
    try:
        return codec.from_wire(packed, kind)
    except (ValueError, RecursionError):
        return None
