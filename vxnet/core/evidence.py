"""Which rows count: asked each time they are used, because certificates, leases and revocations may come later.

A ledger counts if its certificate row chains to the cluster's CA, names the owner and holds the key that signed; a row
with addresses counts if each of them lies in a block that a manager leased to the owner, its MAC follows from them, and
its VTEP is an address of the owner's certificate.
Of two owners that claim an address the one with the higher lease epoch is right. What does not count is kept, and
counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vxnet.core import trust
from vxnet.core.allocate import mac_of
from vxnet.core.table import Ledger, Table
from vxnet.model import codec
from vxnet.model.address import IPAddress
from vxnet.model.cluster import Lease, LeaseSet, Signed
from vxnet.model.errors import PeerError
from vxnet.model.row import Applied, Certificate, Endpoint, Gateway, Leases, RowKey, Value, Version

T = TypeVar("T")

RECHECK_S = 3600.0
"""A certificate that was good is looked at again after this: cheap, and it covers a clock that was set."""
DOUBT_S = 60.0
"""… and one that was not."""
_CACHE_LIMIT = 50_000
VALUES: Mapping[str, type[Value]] = {"endpoint": Endpoint, "gateway": Gateway, "applied": Applied}

EffectiveRow: TypeAlias = tuple[RowKey, Version, Value]


class _Judged(NamedTuple):
    rows: tuple[tuple[RowKey, Version, Value, tuple[int, ...]], ...]
    """The last: the lease's epoch of each address."""
    refused: tuple[str, ...]
    until: float
    revision: int


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
        self._lease_sets: dict[Leases, tuple[LeaseSet | None, float]] = {}
        self._judged: dict[Ledger, _Judged] = {}
        self._result: tuple[tuple[EffectiveRow, ...], Counter[str]] = ((), Counter())
        self._result_of: tuple[int, int] = (-1, -1)
        self._until = 0.0

    def update(self, *, roots: Sequence[bytes] | None = None, revoked: Collection[str] | None = None) -> None:
        before = self._roots, self._revoked
        self._roots = self._roots if roots is None else tuple(roots)
        self._revoked = self._revoked if revoked is None else frozenset(revoked)
        if (self._roots, self._revoked) != before:
            self.revision += 1
            self._holders.clear()
            self._lease_sets.clear()
            self._judged.clear()

    def is_proven(self, ledger: Ledger, wall: float) -> bool:
        return self._doubt(ledger, wall) is None

    def addresses(self, table: Table, owner: str, wall: float) -> frozenset[IPAddress]:
        """Where a manager has certified ``owner`` to be; empty if nothing proves it."""
        good = [ledger for ledger in table.of_owner(owner) if self._doubt(ledger, wall) is None]
        return self._addresses(max(good, key=lambda ledger: ledger.newest), wall) if good else frozenset()

    def effective(self, table: Table, wall: float) -> tuple[tuple[EffectiveRow, ...], Counter[str]]:
        """(rows that count, how many do not by reason). ``wall``: seconds since 1970."""
        if self._result_of != (table.revision, self.revision) or wall >= self._until:
            self._result = self._compute(table, wall)
            self._result_of = (table.revision, self.revision)
        return self._result

    def _compute(self, table: Table, wall: float) -> tuple[tuple[EffectiveRow, ...], Counter[str]]:
        refused: Counter[str] = Counter()
        chosen: list[_Judged] = []
        self._judged = {ledger: judged for ledger, judged in self._judged.items() if ledger.key in table.ledgers}
        self._until = wall + RECHECK_S
        for owner in table.owners():
            good: list[Ledger] = []
            for ledger in table.of_owner(owner):
                doubt = self._doubt(ledger, wall)
                if doubt is None:
                    good.append(ledger)
                else:
                    refused[doubt] += len(ledger.rows)
                    self._until = min(self._until, wall + DOUBT_S)
            if good:
                # A node that was given a new key has two; the later life is right.
                judged = self._judge(max(good, key=lambda ledger: ledger.newest), wall)
                self._until = min(self._until, judged.until)
                refused.update(judged.refused)
                chosen.append(judged)
        return _settle_claims(chosen, refused), refused

    def _doubt(self, ledger: Ledger, wall: float) -> str | None:
        """Why the ledger is not its owner's; None if it is."""
        if ledger.key.owner in self._revoked:
            return "node was removed"
        certificate = _decode(ledger.get("certificate"), Certificate)
        if certificate is None:
            return "no certificate"
        holder = self._holder(certificate.der, wall)
        if holder.identity is None:
            return "certificate is not this cluster's"
        if holder.identity.node != ledger.key.owner or holder.key != ledger.key.key:
            return "certificate is another's"
        return None

    def _addresses(self, ledger: Ledger, wall: float) -> frozenset[IPAddress]:
        certificate = _decode(ledger.get("certificate"), Certificate)
        return frozenset() if certificate is None else self._holder(certificate.der, wall).addresses

    def _holder(self, der: bytes, wall: float) -> _Holder:
        held = self._holders.get(der)
        if held is not None and wall < held.until:
            return held
        if len(self._holders) > _CACHE_LIMIT:
            self._holders.clear()
        try:
            identity = trust.verify_certificate(der, self._roots, wall)
            key = x509.load_der_x509_certificate(der).public_key()
            raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw) if isinstance(key, Ed25519PublicKey) else b""
            held = _Holder(identity, raw, trust.addresses(der), min(trust.validity(der)[1], wall + RECHECK_S))
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
        held = self._lease_sets.get(leases)
        if held is not None and wall < held[1]:
            return held
        if len(self._lease_sets) > _CACHE_LIMIT:
            self._lease_sets.clear()
        found: LeaseSet | None = None
        until = wall + RECHECK_S
        try:
            signed = Signed(content=leases.content, signature=leases.signature, certificate=leases.certificate)
            signer = trust.verify_signed(signed, trust.LEASES_PURPOSE, self._roots, wall)
            if signer.role == "manager" and signer.node not in self._revoked:
                found = codec.from_json(leases.content, LeaseSet)
        except (PeerError, ValueError):
            until = wall + DOUBT_S
        if found is not None and found.node != ledger.key.owner:
            found = None
        self._lease_sets[leases] = (found, until)
        return found, until

    def _judge(self, ledger: Ledger, wall: float) -> _Judged:
        held = self._judged.get(ledger)
        if held is not None and held.revision == ledger.revision and wall < held.until:
            return held
        leases, until = self._leases(ledger, wall)
        by_network: dict[tuple[str, int], list[Lease]] = {}
        for lease in leases.leases if leases is not None else ():
            by_network.setdefault((lease.network, lease.vni), []).append(lease)
        places = self._addresses(ledger, wall)
        rows: list[tuple[RowKey, Version, Value, tuple[int, ...]]] = []
        refused: list[str] = []
        for (kind, id_), entry in ledger.rows.items():
            if entry.row.value is None or kind not in VALUES:
                continue
            value = _decode(entry.row.value, VALUES[kind])
            if value is None:
                refused.append("unreadable")
                continue
            epochs = () if isinstance(value, Applied) else _epochs(value, by_network, places)
            if isinstance(epochs, str):
                refused.append(epochs)
            else:
                rows.append((RowKey(ledger.key.owner, kind, id_), entry.version, value, epochs))
        judged = _Judged(tuple(rows), tuple(refused), until, ledger.revision)
        self._judged[ledger] = judged
        return judged


def _epochs(
    value: Endpoint | Gateway, leases: Mapping[tuple[str, int], Sequence[Lease]], places: frozenset[IPAddress]
) -> tuple[int, ...] | str:
    """The lease's epoch of each address, or why the row has no effect."""
    blocks = leases.get((value.network, value.vni), ())
    epochs = []
    for address in value.addresses:
        found = [block.epoch for block in blocks if address.version == block.prefix.version and address in block.prefix]
        if not found:
            return "address is not leased to the owner"
        epochs.append(max(found))
    # Else a row could draw another container's frames to itself.
    if value.mac not in {mac_of(value.vni, address) for address in value.addresses}:
        return "MAC does not follow from the address"
    # Else it could send others' frames to a third host, and have that one let in.
    if value.vtep not in places:
        return "VTEP is not the owner's"
    return tuple(epochs)


def _settle_claims(chosen: Iterable[_Judged], refused: Counter[str]) -> tuple[EffectiveRow, ...]:
    """Of several rows that claim an address the one with the higher epoch, then the newer version."""
    best: dict[tuple[int, IPAddress], tuple[int, str, Version]] = {}
    judged = list(chosen)
    for group in judged:
        for key, version, value, epochs in group.rows:
            for address, epoch in zip(_addresses(value), epochs, strict=True):
                claim = (epoch, key.owner, version)
                place = (_vni(value), address)
                if place not in best or claim > best[place]:
                    best[place] = claim
    rows: list[EffectiveRow] = []
    for group in judged:
        for key, version, value, epochs in group.rows:
            claims = zip(_addresses(value), epochs, strict=True)
            if all(best[_vni(value), address] == (epoch, key.owner, version) for address, epoch in claims):
                rows.append((key, version, value))
            else:
                refused["address was given anew"] += 1
    return tuple(rows)


def _addresses(value: Value) -> tuple[IPAddress, ...]:
    return () if isinstance(value, Applied) else value.addresses


def _vni(value: Value) -> int:
    return 0 if isinstance(value, Applied) else value.vni


def _decode(packed: bytes | None, kind: type[T]) -> T | None:
    if packed is None:
        return None
    try:
        return codec.from_wire(packed, kind)
    except (ValueError, RecursionError):
        return None
