"""One node's gossip, whole: membership, rows and what counts of them, behind the five verbs.

::

    datagrams, streams, now ──> Swim ── members ──> who is here ──┐
                                  │                               ├──> rows(), paths()
                                  └── user messages ──> Spread ──> Table ──> Judge
                                                          └── Author (own rows)

Two clocks come in: ``now`` is monotonic and drives the protocol; ``wall`` (seconds since 1970) is what certificates
are held against.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vxnet.core import checkup
from vxnet.core.author import Author
from vxnet.core.checkup import Word
from vxnet.core.evidence import Judge
from vxnet.core.exchange import Contacted
from vxnet.core.facts import Facts
from vxnet.core.keyring import KeyRing
from vxnet.core.members import Address, Member
from vxnet.core.oldpack import MalformedError
from vxnet.core.roster import Roster
from vxnet.core.rows import Batch, decode_content
from vxnet.core.spread import Spread
from vxnet.core.stream import Stream
from vxnet.core.swim import MEMBERS_LIMIT, MemberChanged, Random, Swim, UserMessage
from vxnet.core.table import Table
from vxnet.core.timing import LAN, Settings
from vxnet.model.address import IPAddress
from vxnet.model.cluster import Signed
from vxnet.model.row import Certificate, Evidence, Leases, Value

VXNET_TAG = "vxnet"
"""Its value is the version of the row messages."""
RESTARTING_TAG = "restarting"
"""Seconds for which this node's rows stay although its daemon is silent."""
RESTARTING_LIMIT_S = 600
REPUBLISH_S = 60.0
"""A new life that never says it has published everything is taken to have after this."""
COMPLETE_S = 2.0
"""From the rows of a new life to the word that there are no others. Each batch goes its own way, and who hears that
word before the certificate or a row has no path until they come: a few milliseconds, long enough for a packet."""


class GossipNode:
    def __init__(
        self,
        *,
        node_id: str,
        name: str,
        address: IPAddress,
        port: int,
        tags: Mapping[str, str],
        keys: Sequence[bytes],
        key: Ed25519PrivateKey,
        certificate: bytes,
        roots: Sequence[bytes],
        incarnation: int,
        rng: Random,
        now: float,
        wall: float,
        leases: Signed | None = None,
        revoked: Collection[str] = (),
        label: str = "",
        settings: Settings = LAN,
        roster: Roster | None = None,
        table: Table | None = None,
    ) -> None:
        """``keys``: of the key ring, the one to use first; none: unencrypted. ``key`` is the certificate's.
        ``roster`` and ``table``: what it knows already.
        Raises :class:`CallerError` on bad keys and tags that are too long.
        """
        self._tags = {**tags, "id": node_id, VXNET_TAG: "1"}
        self._settings = settings
        self.swim = Swim(
            name=name,
            address=address,
            port=port,
            tags=self._tags,
            ring=KeyRing(keys) if keys else None,
            rng=rng,
            now=now,
            label=label,
            settings=settings,
            roster=roster,
        )
        self.table = Table() if table is None else table
        self.author = Author(node_id, key, incarnation)
        self.judge = Judge(roots, revoked)
        self._wall = wall
        self.table.proven = lambda ledger: self.judge.is_proven(ledger, self._wall)
        self.spread = Spread(self.swim, self.table, self.author)
        self._revoked = frozenset(revoked)
        self._members_changed = False
        self._seen_revision = -1
        self._contacts: list[Contacted] = []
        self._words: list[Word] = []
        self._republished = False
        self._remembered_until = 0.0
        self._disowned: dict[str, float] = {}
        """Nodes that somebody has said to be other ones, and since when."""
        self.author.put("certificate", "", Certificate(certificate))
        if leases is not None:
            self.author.put("leases", "", _leases(leases))
        self.spread.flush()
        self.swim.agenda.after(REPUBLISH_S, "republished", self._say_republished)

    # The verbs

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> None:
        self.swim.receive_datagram(data, addr, now)
        self._take_events()

    def handle_timer(self, now: float) -> None:
        self.swim.handle_timer(now)
        self._take_events()

    def get_timer(self) -> float | None:
        return self.swim.get_timer()

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        # What was asked for "at once" is due by now.
        self.handle_timer(now)
        return self.swim.datagrams_to_send(now)

    def next_event(self) -> Contacted | None:
        """What became of a join. Changes of members and rows are states, not events: see :meth:`take_changes`."""
        return self._contacts.pop(0) if self._contacts else None

    def next_word(self) -> Word | None:
        """What was said here in an examination (core/checkup)."""
        return self._words.pop(0) if self._words else None

    def take_changes(self) -> bool:
        """Whether members or rows are other than at the last call."""
        changed = self._members_changed or self._seen_revision != self.table.revision
        self._members_changed = False
        self._seen_revision = self.table.revision
        return changed

    # Streams

    def streams_to_open(self) -> list[Stream]:
        return self.swim.streams_to_open()

    def accept(self, addr: Address) -> Stream:
        return self.swim.accept(addr)

    # What the daemon says

    def join(self, addresses: Sequence[Address], now: float) -> None:
        self.swim.join(addresses, now)

    def leave(self, now: float) -> None:
        self.swim.leave(now)

    def put(self, kind: str, id_: str, value: Value | Evidence, now: float) -> None:
        """Raises :class:`CallerError` on a row that is too large."""
        self.swim.handle_timer(now)
        if self.author.put(kind, id_, value):
            self.spread.flush_soon()

    def delete(self, kind: str, id_: str, now: float) -> None:
        self.swim.handle_timer(now)
        if self.author.delete(kind, id_):
            self.spread.flush_soon()

    def say(self, word: Word, member: Member, now: float) -> None:
        """A part of an examination; it goes the way that it says."""
        self.swim.handle_timer(now)
        send = self.swim.send_user if word.by == "udp" else self.swim.send_user_stream
        send(member.endpoint, checkup.encode(word))

    def remember(self, batches: Iterable[Batch], now: float) -> None:
        """What an earlier life had heard of others. Their paths hold, for as long as a silent node's do, until they are
        met: a restart must not cut living containers."""
        for batch in batches:
            try:
                if decode_content(batch.content).owner != self.author.key.owner:
                    self.table.receive(batch)
            except MalformedError as error:
                self.spread.dropped[str(error)] += 1
        self.spread.note_absent()
        self._remembered_until = now + self._settings.paths_kept_s
        self._look_again(("remembered", ""), self._settings.paths_kept_s)

    def republished(self, now: float) -> None:
        """All rows of this life have been put: those of earlier ones are no more, which is told a little later."""
        self.swim.handle_timer(now)
        if not self._republished:
            self.swim.agenda.after(COMPLETE_S, "republished", self._say_republished)

    def restarting(self, seconds: int, now: float) -> None:
        """This daemon is about to fall silent for at most ``seconds``; its rows hold as they are. 0 takes it back."""
        tags = {**self._tags, RESTARTING_TAG: str(seconds)} if seconds else self._tags
        self.swim.set_tags(tags, now)

    def update(
        self,
        now: float,
        *,
        keys: Sequence[bytes] | None = None,
        roots: Sequence[bytes] | None = None,
        revoked: Collection[str] | None = None,
        leases: Signed | None = None,
        certificate: bytes | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """What is None stays. Raises :class:`CallerError` as the constructor does."""
        if keys is not None:
            self.swim.ring = KeyRing(keys) if keys else None
        if tags is not None:
            self._tags = {**tags, "id": self.swim.me.id, VXNET_TAG: "1"}
            self.swim.set_tags(self._tags, now)
        if certificate is not None:
            self.put("certificate", "", Certificate(certificate), now)
        if leases is not None:
            self.put("leases", "", _leases(leases), now)
        if revoked is not None and frozenset(revoked) != self._revoked:
            self._revoked = frozenset(revoked)
            self._members_changed = True
        before = self.judge.revision
        self.judge.update(roots=roots, revoked=revoked)
        if self.judge.revision != before:
            self._members_changed = True

    # What it knows

    def members(self) -> tuple[Member, ...]:
        """Oneself and the gone included, those that a manager removed not."""
        members = self.swim.members.values()
        return tuple(member for member in members if not member.id or member.id not in self._revoked)

    def rows(self, wall: float) -> Facts:
        """Rows that count, of owners that are here."""
        return self._of_visible(wall, paths=False)

    def paths(self, wall: float) -> Facts:
        """Rows that count, also of owners whose daemon fell silent not long ago: their containers may well live."""
        return self._of_visible(wall, paths=True)

    def refused(self, wall: float) -> Counter[str]:
        """How many rows are kept without effect, by reason."""
        return self.judge.effective(self.table, wall)[1]

    def places(self, node_id: str, wall: float) -> frozenset[IPAddress]:
        """The addresses at which a manager has certified a node to be. What a member's tags say is its own word, and
        everybody who has the key can say anything under any name."""
        return self.judge.addresses(self.table, node_id, wall)

    def age_s(self, member: Member) -> float:
        """How long its status is what it is."""
        return max(0.0, self.swim.agenda.now - member.since)

    def statistics(self) -> dict[str, int]:
        rows = sum(len(ledger.rows) for ledger in self.table.ledgers.values())
        return {**self.swim.statistics(), **self.spread.statistics(), "rows": rows}

    def dropped(self) -> Counter[str]:
        return self.swim.dropped + self.spread.dropped

    def _of_visible(self, wall: float, *, paths: bool) -> Facts:
        self._wall = wall
        effective, _ = self.judge.effective(self.table, wall)
        return effective.of(self._owners(paths=paths))

    def _owners(self, *, paths: bool) -> frozenset[str]:
        """Whose rows are shown."""
        now = self.swim.agenda.now
        found = {self.author.key.owner}
        if paths and now < self._remembered_until:
            found.update(self.table.owners())
            found.difference_update(member.id for member in self.swim.members.values() if member.id != self._tags["id"])
        if paths:
            kept_s = self._settings.paths_kept_s
            found.update(owner for owner, since in self._disowned.items() if now - since < kept_s)
        for member in self.swim.members.values():
            if not member.is_vxnet:
                continue
            if member.present:
                found.add(member.id)
            # "It has left" is nobody's signed word: only names follow from it. Who really leaves deletes its rows.
            elif member.status == "dead" or paths:
                kept_s = self._settings.paths_kept_s if paths else planned_absence_s(member)
                if now - member.since < kept_s:
                    found.add(member.id)
        return frozenset(found)

    def _take_events(self) -> None:
        while (event := self.swim.next_event()) is not None:
            match event:
                case MemberChanged(before, after):
                    self._members_changed = True
                    self.spread.member_changed(before, after)
                    self._note_identity(before, after)
                    if not after.present:
                        self._look_again(("names", after.name), planned_absence_s(after))
                        self._look_again(("paths", after.name), self._settings.paths_kept_s)
                case UserMessage(payload, _) if payload.startswith(checkup.MAGIC):
                    self._hear_word(payload)
                case UserMessage(payload, sender):
                    self.spread.receive(payload, sender)
                case Contacted():
                    self._contacts = [*self._contacts[-63:], event]

    def _hear_word(self, payload: bytes) -> None:
        try:
            self._words = [*self._words[-63:], checkup.decode(payload)]
        except MalformedError as error:
            self.spread.dropped[str(error)] += 1

    def _note_identity(self, before: Member | None, after: Member) -> None:
        """Who a member is, is nobody's signed word either: only names follow from it at once, as from a death."""
        same, now = after.id if after.is_vxnet else "", self.swim.agenda.now
        if self._disowned.pop(same, None) is not None:
            self.swim.agenda.cancel(("disowned", same))
        if before is not None and before.is_vxnet and before.id != same:
            if len(self._disowned) >= MEMBERS_LIMIT:
                kept_s = self._settings.paths_kept_s
                self._disowned = {owner: since for owner, since in self._disowned.items() if now - since < kept_s}
            if len(self._disowned) < MEMBERS_LIMIT:
                self._disowned[before.id] = now
                self._look_again(("disowned", before.id), self._settings.paths_kept_s)

    def _look_again(self, what: tuple[str, str], delay_s: float) -> None:
        """When what is shown of a node changes by time alone. ``what``: shown of whom; once each."""

        def look() -> None:
            self._members_changed = True

        if delay_s:
            self.swim.agenda.after(delay_s, what, look)

    def _say_republished(self) -> None:
        if not self._republished:
            self._republished = True
            self.author.republished()
            self.spread.flush_soon()


def planned_absence_s(member: Member) -> float:
    """For how long a node that left has said that it will be away; 0: it said nothing."""
    try:
        return float(min(max(int(member.tags.get(RESTARTING_TAG, "0")), 0), RESTARTING_LIMIT_S))
    except ValueError:
        return 0.0


def _leases(signed: Signed) -> Leases:
    return Leases(signed.content, signed.signature, signed.certificate)
