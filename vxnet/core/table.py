"""All rows this node has heard of, as received, and the hashes by which two tables are compared.

::

    Table ── bucket 0…127 ── Ledger (owner, key) ── (kind, id) ── Entry: version, row, the batch it came in
                                   └ floor: what is not listed below it no longer exists

Nothing is judged here but what cannot be asked again: that a batch was signed by the key it names, and which of two
versions is newer. The merge is a maximum, so that order, doubling and loss do not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vxnet.core.layered import Layered
from vxnet.core.oldpack import MalformedError
from vxnet.core.rows import BUCKETS, Batch, BatchContent, LedgerKey, bucket_of, decode_content, row_hash, to_be_signed
from vxnet.model.row import Row, Version

LEDGER_ROWS_LIMIT = 20_000
LEDGER_OCTETS_LIMIT = 16 << 20
LEDGERS_LIMIT = 20_000
KEYS_PER_OWNER = 4
TABLE_OCTETS_LIMIT = 128 << 20
"""All batches that are kept, and the rows in them: batches travel packed, rows are kept unpacked. 100,000 rows take
about 50 MB."""
_NUMBER_OCTETS = 64
"""What one number that a floor leaves alone takes."""


class Entry:
    __slots__ = ("batch", "hash", "row", "version")

    def __init__(self, version: Version, row: Row, batch: Batch, hash_: int) -> None:
        self.version = version
        self.row = row
        self.batch = batch
        self.hash = hash_


class Ledger:
    """The rows of one owner's key."""

    def __init__(self, key: LedgerKey) -> None:
        self.key = key
        self.rows: dict[tuple[str, str], Entry] = {}
        self.floor = Version(0, 0)
        self.live: frozenset[int] = frozenset()
        self.floor_batch: Batch | None = None
        self.hash = 0
        self.revision = 0
        self.octets = 0
        self._floor_hash = 0
        self._batches: Counter[Batch] = Counter()

    def copy(self) -> Ledger:
        other = Ledger(self.key)
        other.rows = dict(self.rows)
        other.floor, other.live, other.floor_batch = self.floor, self.live, self.floor_batch
        other.hash, other.revision, other.octets = self.hash, self.revision, self.octets
        other._floor_hash = self._floor_hash
        other._batches = Counter(self._batches)
        return other

    @property
    def newest(self) -> Version:
        return max((entry.version for entry in self.rows.values()), default=self.floor)

    def get(self, kind: str, id_: str = "") -> bytes | None:
        entry = self.rows.get((kind, id_))
        return None if entry is None else entry.row.value

    def is_below_floor(self, version: Version) -> bool:
        """Its owner has said that there is no such row any more."""
        if version.incarnation != self.floor.incarnation:
            return version.incarnation < self.floor.incarnation
        return version.seq <= self.floor.seq and version.seq not in self.live

    def merge(self, batch: Batch, content: BatchContent) -> bool:
        """Whether anything of it is news. Raises :class:`MalformedError` if the ledger is full."""
        rows, octets = len(self.rows) + len(content.rows), self.octets + octets_of(batch, content)
        if rows > LEDGER_ROWS_LIMIT or octets > LEDGER_OCTETS_LIMIT:
            raise MalformedError("more rows than one owner may have")
        news = self._merge_floor(batch, content)
        for row in content.rows:
            news |= self._merge_row(batch, Version(content.incarnation, row.seq), row)
        self.revision += news
        return news

    def lacking(self, floor: Version, held: set[Version]) -> list[Batch]:
        """The batches that somebody who holds this needs."""
        wanted: dict[Batch, None] = {}
        if self.floor_batch is not None and self.floor > floor:
            wanted[self.floor_batch] = None
        for entry in self.rows.values():
            if entry.version not in held:
                wanted[entry.batch] = None
        return list(wanted)

    def batches(self) -> Iterator[Batch]:
        return iter(self._batches)

    def versions(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        by_incarnation: dict[int, list[int]] = {}
        for entry in self.rows.values():
            by_incarnation.setdefault(entry.version.incarnation, []).append(entry.version.seq)
        return tuple((incarnation, tuple(sorted(seqs))) for incarnation, seqs in sorted(by_incarnation.items()))

    def _merge_floor(self, batch: Batch, content: BatchContent) -> bool:
        floor = Version(content.incarnation, content.floor)
        if not content.floor or floor < self.floor:
            return False
        floor_hash = row_hash(self.key, floor.incarnation, Row("floor", str(sorted(content.live)), floor.seq, None))
        # Two floors of one version: their owner lies or was cloned. Any order will do, if it is everybody's.
        if floor == self.floor and floor_hash <= self._floor_hash:
            return False
        if self.floor_batch is not None:
            self._release(self.floor_batch)
        self._hold(batch)
        self.octets += _NUMBER_OCTETS * (len(frozenset(content.live)) - len(self.live))
        self.hash ^= self._floor_hash ^ floor_hash
        self.floor, self.live, self.floor_batch, self._floor_hash = floor, frozenset(content.live), batch, floor_hash
        for name in [name for name, entry in self.rows.items() if self.is_below_floor(entry.version)]:
            self._drop(name)
        return True

    def _merge_row(self, batch: Batch, version: Version, row: Row) -> bool:
        name = (row.kind, row.id)
        if self.is_below_floor(version):
            return False
        held = self.rows.get(name)
        if held is not None and version < held.version:
            return False
        hash_ = row_hash(self.key, version.incarnation, row)
        if held is not None:
            if version == held.version and hash_ <= held.hash:
                return False
            self._drop(name)
        self._hold(batch)
        self.rows[name] = Entry(version, row, batch, hash_)
        self.octets += _row_octets(row)
        self.hash ^= hash_
        return True

    def _drop(self, name: tuple[str, str]) -> None:
        entry = self.rows.pop(name)
        self.octets -= _row_octets(entry.row)
        self.hash ^= entry.hash
        self._release(entry.batch)

    def _hold(self, batch: Batch) -> None:
        if not self._batches[batch]:
            self.octets += _octets(batch)
        self._batches[batch] += 1

    def _release(self, batch: Batch) -> None:
        self._batches[batch] -= 1
        if not self._batches[batch]:
            del self._batches[batch]
            self.octets -= _octets(batch)


class Table:
    def __init__(self, base: Table | None = None) -> None:
        """``base``: one whose rows this one begins with; it must not change any more."""
        self.ledgers: Layered[LedgerKey, Ledger] = Layered(None if base is None else base.ledgers)
        self.buckets: list[int] = [0] * BUCKETS if base is None else list(base.buckets)
        self.revision = 0
        """Changes with every change."""
        self.octets: int = 0 if base is None else base.octets
        self.proven: Callable[[Ledger], bool] = lambda ledger: False
        """Which ledgers must not make room for others."""
        self.received: Callable[[Batch], None] = lambda batch: None
        """Called with each batch that brought news."""
        self._in_bucket: list[tuple[LedgerKey, ...]] = [()] * BUCKETS if base is None else list(base._in_bucket)
        self._by_owner: Layered[str, tuple[LedgerKey, ...]] = Layered(None if base is None else base._by_owner)

    def of_owner(self, owner: str) -> Iterable[Ledger]:
        return [self.ledgers[key] for key in self._by_owner.get(owner) or ()]

    def in_bucket(self, number: int) -> list[Ledger]:
        return [self.ledgers[key] for key in self._in_bucket[number]]

    def owners(self) -> Iterator[str]:
        return iter(tuple(self._by_owner))

    def batches(self) -> Iterator[Batch]:
        """All that rows and floors stand in, each once."""
        for ledger in self.ledgers.values():
            yield from ledger.batches()

    @property
    def root(self) -> int:
        root = 0
        for bucket in self.buckets:
            root ^= bucket
        return root

    def urgency(self, key: LedgerKey, content: BatchContent) -> int:
        """0 for what takes something away or changes it, 1 for what only adds."""
        ledger = self.ledgers.get(key)
        known = {} if ledger is None else ledger.rows
        return int(not any(row.value is None or (row.kind, row.id) in known for row in content.rows))

    def could_be_news(self, key: LedgerKey, content: BatchContent) -> bool:
        """Whether it would change anything, if it was signed."""
        ledger = self.ledgers.get(key)
        return ledger is None or _could_be_news(ledger, content)

    def receive(self, batch: Batch, content: BatchContent | None = None) -> bool:
        """Merge. Whether any of it was news. ``content``: the batch's, if it was decoded before. Raises
        :class:`MalformedError`: no batch, not signed, no room."""
        if content is None:
            content = decode_content(batch.content)
        key = LedgerKey(content.owner, content.key)
        if not self.could_be_news(key, content):
            return False
        check_signature(batch, content)
        ledger = self.ledgers.get(key)
        if ledger is None:
            ledger = self._make_room(key)
        elif self.ledgers.is_shared(key):
            self.ledgers[key] = ledger = ledger.copy()
        octets, hash_, more = ledger.octets, ledger.hash, octets_of(batch, content)
        try:
            while self.octets + more > TABLE_OCTETS_LIMIT:
                if not self._evict(ledger):
                    raise MalformedError("more rows than the table holds")
            if not ledger.merge(batch, content):
                return False
        except MalformedError:
            if not ledger.revision:
                self.remove(key)
            raise
        self.octets += ledger.octets - octets
        self.buckets[bucket_of(key.owner)] ^= ledger.hash ^ hash_
        self.revision += 1
        self.received(batch)
        return True

    def remove(self, key: LedgerKey) -> None:
        ledger = self.ledgers.pop(key, None)
        if ledger is not None:
            self.octets -= ledger.octets
            number = bucket_of(key.owner)
            self.buckets[number] ^= ledger.hash
            self._in_bucket[number] = tuple(other for other in self._in_bucket[number] if other != key)
            self.revision += 1
            siblings = tuple(other for other in self._by_owner[key.owner] if other != key)
            if siblings:
                self._by_owner[key.owner] = siblings
            else:
                del self._by_owner[key.owner]

    def remove_owner(self, owner: str) -> None:
        for ledger in list(self.of_owner(owner)):
            self.remove(ledger.key)

    def _make_room(self, key: LedgerKey) -> Ledger:
        siblings = list(self.of_owner(key.owner))
        if len(siblings) >= KEYS_PER_OWNER:
            unproven = [ledger for ledger in siblings if not self.proven(ledger)]
            self.remove((unproven or siblings)[0].key)
        if len(self.ledgers) >= LEDGERS_LIMIT and not self._evict(None):
            raise MalformedError("more owners than the table holds")
        ledger = Ledger(key)
        self.ledgers[key] = ledger
        self._in_bucket[bucket_of(key.owner)] += (key,)
        self._by_owner[key.owner] = (*(self._by_owner.get(key.owner) or ()), key)
        return ledger

    def _evict(self, besides: Ledger | None) -> bool:
        """Throw out a ledger that nobody has vouched for. Those that somebody has go to the end: in a flood the next
        look comes soon, and should be short."""
        found, vouched = None, []
        for ledger in self.ledgers.values():
            if ledger is not besides:
                if not self.proven(ledger):
                    found = ledger
                    break
                vouched.append(ledger)
        for ledger in vouched:
            del self.ledgers[ledger.key]
            self.ledgers[ledger.key] = ledger
        if found is None:
            return False
        self.remove(found.key)
        return True


def check_signature(batch: Batch, content: BatchContent) -> None:
    """Raises :class:`MalformedError` unless the key in it signed it."""
    try:
        key = Ed25519PublicKey.from_public_bytes(content.key)
        key.verify(batch.signature, to_be_signed(batch.content))
    except (InvalidSignature, ValueError) as error:
        raise MalformedError("a batch with a wrong signature") from error


def _could_be_news(ledger: Ledger, content: BatchContent) -> bool:
    if content.floor and Version(content.incarnation, content.floor) >= ledger.floor:
        held = ledger.floor_batch
        if held is None or Version(content.incarnation, content.floor) > ledger.floor:
            return True
        if frozenset(content.live) != ledger.live:
            return True
    for row in content.rows:
        version = Version(content.incarnation, row.seq)
        entry = ledger.rows.get((row.kind, row.id))
        if not ledger.is_below_floor(version) and (
            entry is None or version > entry.version or (version == entry.version and row != entry.row)
        ):
            return True
    return False


def octets_of(batch: Batch, content: BatchContent) -> int:
    """What it takes at most to keep it."""
    return _octets(batch) + sum(map(_row_octets, content.rows)) + _NUMBER_OCTETS * len(content.live)


def _octets(batch: Batch) -> int:
    return len(batch.content) + len(batch.signature)


def _row_octets(row: Row) -> int:
    return len(row.kind) + len(row.id) + len(row.value or b"")
