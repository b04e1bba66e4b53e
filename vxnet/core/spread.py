"""How rows get to every vxnet node: new ones are pushed (:mod:`vxnet.core.push`), lost ones found by comparing tables.

What datagrams lose, partitions hold back or bounded queues drop is found by anti-entropy (:mod:`vxnet.core.rows` draws
the exchange): with one node of a round in random order every few seconds, with a node that appears at once, and again
soon after an exchange that brought news.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

from vxnet.core import muster, rows
from vxnet.core.allowance import Allowance
from vxnet.core.author import Author
from vxnet.core.intake import Arrival, Intake
from vxnet.core.members import Address, Member
from vxnet.core.muster import octets
from vxnet.core.oldpack import MalformedError
from vxnet.core.push import DATAGRAM, LIGHT, Push
from vxnet.core.roster import Round, Span
from vxnet.core.rows import (
    Ask,
    Batch,
    Batches,
    Buckets,
    Digest,
    Have,
    Held,
    Ids,
    LedgerKey,
    Present,
    Relay,
    Roll,
    States,
    Want,
)
from vxnet.core.swim import Swim
from vxnet.core.table import Ledger, Table, check_signature
from vxnet.model.row import Version

HAVE_OCTETS = 1000
HELD_OCTETS = 70
"""Of one ledger in such a list."""
HAVE_LIMIT = 4096
"""Ledgers in one list of a peer's."""
DATAGRAMS_AT_ONCE = 12
"""An answer of more goes by stream: it is not lost in parts, and TCP paces it."""
STREAM_OCTETS = 1 << 20
ASKED_S = 0.5
"""What was asked for is not asked for again so soon: at a join many offer the same."""
SOON_S = 0.2
"""After a comparison that found a difference the next follows this soon, …"""
SOON_GROWTH = 1.5
SOON_CEILING_S = 1.0
"""… each time later, up to this: a difference that stays (a peer whose table is full) costs 1 kB a second."""
DOUBTS = 4
"""So many comparisons follow the last sign of a difference: each may be lost on its way."""
HOUSEKEEPING_S = 30.0
GONE_LIMIT = 20_000
SIGNATURE = 64
ASKED_LIMIT = 1 << 15
"""Ledgers that others may be asked for within :data:`ASKED_S`."""
ANSWERS_RATE = 8e6
ANSWERS_AT_ONCE = 64e6
"""Octets of answers to those who ask what this node holds, and whom it sees: a newcomer is sent the whole of it at
once, but nobody can have it sent again and again."""
STRANGERS_RATE = 64e3
STRANGERS_AT_ONCE = 256e3
"""… to addresses that are no member's. A newcomer's need not be one yet; but a packet that was recorded can be sent
again in anybody's name, and its answer is longer than it is."""
IN_FLIGHT_S = 0.3
"""An owner's rows that came so lately are followed by others, perhaps: no reason to ask for them."""
CALM_S = 0.3
"""After much news and then none for so long, the next comparison does not wait for its turn."""
FULL_S = 0.05
TOMBSTONE_S = 30.0
"""Deleted rows are carried along this long at most before a floor takes their place."""


class Spread:
    def __init__(self, swim: Swim, table: Table, author: Author) -> None:
        self.dropped: Counter[str] = Counter()
        self._swim = swim
        self._table = table
        self._author = author
        self.push = Push(swim, self.dropped)
        self._intake = Intake(swim.agenda, self._check_batch)
        self._changed_at: dict[str, float] = {}
        self._round = Round(swim.rng)
        self._soon_s = SOON_S
        self._doubts = 0
        self._quiet_revision = 0
        self._is_flooded = False
        self._absent_since: dict[str, float] = {}
        self._gone: dict[str, float] = {}
        self._asked = 0
        self._answers = Allowance(ANSWERS_RATE, ANSWERS_AT_ONCE, swim.agenda.now)
        self._answers_to_strangers = Allowance(STRANGERS_RATE, STRANGERS_AT_ONCE, swim.agenda.now)
        agenda, settings = swim.agenda, swim.settings
        agenda.after(settings.digest_interval_s * swim.rng.random(), "digest", self._compare_with_next)
        agenda.after(HOUSEKEEPING_S, "rows kept", self._keep_house)

    def flush_soon(self) -> None:
        """The author has something to say."""
        if "flush" not in self._swim.agenda:
            self._swim.agenda.after(self.push.join_s, "flush", self.flush)

    def flush(self) -> None:
        if self.push.is_full:
            # Until then some of it may have changed again.
            self._swim.agenda.after(FULL_S, "flush", self.flush)
            return
        for batch in self._author.flush():
            content = rows.decode_content(batch.content)
            urgency = self._table.urgency(self._author.key, content)
            if self._table.receive(batch, content):
                self.push.tell_all(batch, urgency)
        if self._author.tombstones and "floor" not in self._swim.agenda:
            self._swim.agenda.after(TOMBSTONE_S, "floor", self._raise_floor)

    def member_changed(self, before: Member | None, after: Member) -> None:
        for member in (before, after):
            if member is not None and member.id and (member.id != after.id or not after.present):
                self._note_absent(member.id)
        if not after.is_vxnet or not after.present or (before is not None and before.present and before.is_vxnet):
            return
        self._gone.pop(after.id, None)
        self._absent_since.pop(after.id, None)
        # Everybody sees a newcomer; a few comparisons are enough for it.
        if self._swim.rng.random() * self._swim.present < self._swim.settings.direct_nodes:
            name = after.name
            self._swim.agenda.after(0.01 + 0.04 * self._swim.rng.random(), ("greet", name), lambda: self._greet(name))

    def receive(self, payload: bytes, sender: Address) -> None:
        try:
            message = rows.decode(payload)
            match message:
                case Batch():
                    self._receive_batch(message, Arrival(sender, None, is_found=False, is_rare=True))
                case Relay():
                    span = Span(message.begin, message.end)
                    self._receive_batch(message.batch, Arrival(sender, span, is_found=False, is_rare=True))
                case Batches():
                    self._receive_batches(message, sender)
                case Ids():
                    self.push.hear_ids(message, sender)
                case Ask():
                    self.push.hear_ask(message)
                case Digest():
                    if told := muster.differs(self._swim, message.members, sender):
                        self._answer_with((sender, told))
                    if message.root != self._root():
                        self._doubt()
                        if self._may_answer(sender):
                            buckets = b"".join(octets(bucket) for bucket in self._table.buckets)
                            self._answer(sender, Buckets(buckets))
                case Buckets():
                    self._compare(message, sender)
                case Have():
                    self._answer_have(message)
                case Want():
                    self._answer_want(message)
                case Roll():
                    self._answer_with(muster.hear_roll(self._swim, message))
                case Present():
                    self._answer_with(muster.hear_present(self._swim, message))
                case States():
                    self._answer_with(muster.hear_states(self._swim, message))
        except MalformedError as error:
            self.dropped[str(error)] += 1

    def statistics(self) -> dict[str, int]:
        return {
            "ledgers": len(self._table.ledgers),
            "row_octets": self._table.octets,
            "owners_noted": len(self._changed_at) + len(self._absent_since),
            "rows_unchecked": len(self._intake),
            **self.push.statistics(),
            "rows_dropped": self.dropped.total(),
        }

    # New rows

    def _receive_batch(self, batch: Batch, arrival: Arrival) -> None:
        if len(batch.signature) != SIGNATURE:
            raise MalformedError("a batch with a wrong signature")
        content = rows.decode_content(batch.content)
        key = LedgerKey(content.owner, content.key)
        if key == self._author.key:
            self._hear_of_myself(batch, content)
        elif content.owner not in self._gone:
            # Most of what gossip brings is known already, and a look is cheaper than a signature.
            if not self._table.could_be_news(key, content):
                self._pass_on(batch, arrival)
            elif not self._intake.add(batch, arrival):
                self.dropped["too many rows to check"] += 1

    def _check_batch(self, batch: Batch, arrival: Arrival) -> None:
        """It may be news, or may have been when it came."""
        content = rows.decode_content(batch.content)
        key = LedgerKey(content.owner, content.key)
        urgency = self._table.urgency(key, content)
        try:
            if not self._table.receive(batch, content):
                self._pass_on(batch, arrival)
                return
        except MalformedError as error:
            self.dropped[str(error)] += 1
            return
        if arrival.is_rare:
            self.push.tell(batch, urgency, arrival.span)
        if arrival.is_found:
            self._compare_soon()
        self._note_change(content.owner)
        if self.push.load > LIGHT:
            self._note_flood()
        if self._swim.members.of_id(content.owner) is None:
            self._note_absent(content.owner)
        if self._table.ledgers[key].get("certificate") is None:
            # Without it the rows mean nothing, and who sent them knows it.
            self._want(key, arrival.sender, "certificate")

    def _pass_on(self, batch: Batch, arrival: Arrival) -> None:
        if arrival.span is not None:
            self.push.pass_on(batch, arrival.span)

    def _receive_batches(self, message: Batches, sender: Address) -> None:
        # A few that somebody lacked others may lack too; of a whole table they would only hear what they know.
        arrival = Arrival(sender, None, is_found=True, is_rare=len(message.batches) <= DATAGRAMS_AT_ONCE)
        for batch in message.batches:
            try:
                self._receive_batch(batch, arrival)
            except MalformedError as error:
                self.dropped[str(error)] += 1

    def _hear_of_myself(self, batch: Batch, content: rows.BatchContent) -> None:
        """Rows in this node's name that it has not written in this life."""
        newest = max((row.seq for row in content.rows), default=content.floor)
        if (
            Version(content.incarnation, newest) <= self._author.newest
            or content.incarnation < self._author.incarnation
        ):
            return
        check_signature(batch, content)
        self._author.begin_anew(content.incarnation + 1)
        self.flush_soon()

    # Comparison

    def _compare_with_next(self) -> None:
        self._swim.agenda.after(self._swim.settings.digest_interval_s, "digest", self._compare_with_next)
        if not self._doubts:
            self._soon_s = SOON_S
        self._greet_next()

    def _greet_next(self) -> None:
        members = self._swim.members
        for _ in range(2 * len(members) if members.present > 1 else 0):
            member = members.nth(self._round.next(len(members)))
            if member.present and member.is_vxnet and member.name != self._swim.me.name:
                self._greet(member.name)
                return

    def _doubt(self) -> None:
        """The tables differ: but while rows are on their way they always do."""
        if self._table.revision == self._quiet_revision:
            self._compare_soon()
        else:
            self._quiet_revision = self._table.revision

    def _note_flood(self) -> None:
        """Under load the names of rows are told so few times that somebody is left out."""
        self._is_flooded = True
        if "flood" not in self._swim.agenda:
            self._swim.agenda.after(CALM_S, "flood", self._look_for_calm)

    def _look_for_calm(self) -> None:
        if self._is_flooded:
            self._is_flooded = False
            self._swim.agenda.after(CALM_S, "flood", self._look_for_calm)
        else:
            self._soon_s = SOON_S
            self._compare_soon()

    def _compare_soon(self) -> None:
        self._doubts = DOUBTS
        if "digest soon" not in self._swim.agenda:
            self._next_soon()

    def _next_soon(self) -> None:
        delay = self._soon_s * (0.5 + self._swim.rng.random() / 2)
        self._soon_s = min(self._soon_s * SOON_GROWTH, SOON_CEILING_S)
        self._swim.agenda.after(delay, "digest soon", self._compare_again)

    def _compare_again(self) -> None:
        self._greet_next()
        self._doubts -= 1
        if self._doubts:
            self._next_soon()

    def _greet(self, name: str) -> None:
        member = self._swim.members.get(name)
        if member is not None and member.present:
            self._send(member.endpoint, Digest(self._root(), octets(self._swim.present_hash)))

    def _compare(self, theirs: Buckets, sender: Address) -> None:
        if len(theirs.hashes) != 8 * rows.BUCKETS:
            raise MalformedError("not the buckets")
        if not self._may_answer(sender):
            return
        found = muster.differing(theirs.hashes, self._table.buckets)
        if found:
            self._doubt()
        buckets: list[int] = []
        ledgers: list[Ledger] = []
        size = 0
        for number in found:
            held = self._table.in_bucket(number)
            if buckets and size + HELD_OCTETS * len(held) > HAVE_OCTETS:
                self._send_have(sender, buckets, ledgers)
                buckets, ledgers, size = [], [], 0
            buckets.append(number)
            ledgers += held
            size += HELD_OCTETS * len(held)
        if buckets:
            self._send_have(sender, buckets, ledgers)

    def _send_have(self, addr: Address, buckets: list[int], ledgers: list[Ledger], *, answer: bool = True) -> None:
        held = tuple(Held(ledger.key.owner, ledger.key.key, octets(ledger.hash)) for ledger in ledgers)
        self._answer(addr, Have(tuple(buckets), held, answer, self._swim.me.name))

    def _answer_have(self, have: Have) -> None:
        source = self._swim.members.get(have.source)
        if source is None or not source.present:
            raise MalformedError("rows of a stranger")
        if len(have.ledgers) > HAVE_LIMIT:
            raise MalformedError("more ledgers than buckets hold")
        listed = {LedgerKey(held.owner, held.key): held.hash for held in have.ledgers}
        for key, hash_ in listed.items():
            ledger = self._table.ledgers.get(key)
            is_moving = self._swim.agenda.now - self._changed_at.get(key.owner, -IN_FLIGHT_S) < IN_FLIGHT_S
            if (ledger is None or octets(ledger.hash) != hash_) and key.owner not in self._gone and not is_moving:
                self._want(key, source.endpoint, hash_)
        if have.answer and self._may_answer(source.endpoint):
            mine = [
                ledger
                for number in {number for number in have.buckets if 0 <= number < rows.BUCKETS}
                for ledger in self._table.in_bucket(number)
                if listed.get(ledger.key) != octets(ledger.hash)
            ]
            for at in range(0, len(mine), 12):
                self._send_have(source.endpoint, [], mine[at : at + 12], answer=False)

    def _want(self, key: LedgerKey, addr: Address, what: Hashable) -> None:
        asked = ("asked", key, what)
        if asked in self._swim.agenda:
            return
        if self._asked >= ASKED_LIMIT:
            self.dropped["too much to ask for"] += 1
            return
        self._asked += 1
        self._swim.agenda.after(ASKED_S, asked, self._asked_before)
        ledger = self._table.ledgers.get(key)
        versions = () if ledger is None else ledger.versions()
        floor = Version(0, 0) if ledger is None else ledger.floor
        self._send(addr, Want(key.owner, key.key, (floor.incarnation, floor.seq), versions, self._swim.me.name))

    def _answer_want(self, want: Want) -> None:
        source = self._swim.members.get(want.source)
        ledger = self._table.ledgers.get(LedgerKey(want.owner, want.key))
        if source is None or not source.present or ledger is None or not self._may_answer(source.endpoint):
            return
        held = {Version(incarnation, seq) for incarnation, seqs in want.versions for seq in seqs}
        batches = ledger.lacking(Version(*want.floor), held)
        if len(batches) <= DATAGRAMS_AT_ONCE and all(len(batch.content) < DATAGRAM - 100 for batch in batches):
            for batch in batches:
                self._answer(source.endpoint, Batches((batch,)))
            return
        part: list[Batch] = []
        size = 0
        for batch in batches:
            if part and size + len(batch.content) > STREAM_OCTETS:
                self._answer(source.endpoint, Batches(tuple(part)), by_stream=True)
                part, size = [], 0
            part.append(batch)
            size += len(batch.content)
        if part:
            self._answer(source.endpoint, Batches(tuple(part)), by_stream=True)

    def _asked_before(self) -> None:
        self._asked -= 1

    def _may_answer(self, addr: Address) -> bool:
        may = self._allowance(addr).has_any(self._swim.agenda.now)
        if not may:
            self.dropped["asked for more than is answered"] += 1
        return may

    def _answer(self, addr: Address, message: rows.SyncMessage, *, by_stream: bool = False) -> None:
        payload = rows.encode(message)
        self._allowance(addr).spend(len(payload))
        if by_stream:
            self._swim.send_user_stream(addr, payload)
        else:
            self._reply((addr, payload))

    def _allowance(self, addr: Address) -> Allowance:
        return self._answers_to_strangers if self._swim.at(addr) is None else self._answers

    def _send(self, addr: Address, message: rows.SyncMessage) -> None:
        self._reply((addr, rows.encode(message)))

    def _answer_with(self, answer: tuple[Address, bytes] | None) -> None:
        if answer is not None and self._may_answer(answer[0]):
            self._allowance(answer[0]).spend(len(answer[1]))
            self._reply(answer)

    def _reply(self, answer: tuple[Address, bytes]) -> None:
        addr, payload = answer
        if len(payload) <= DATAGRAM:
            self._swim.send_user(addr, payload)
        else:
            self._swim.send_user_stream(addr, payload)

    # House

    def note_absent(self) -> None:
        """Rows were put into the table that did not come by gossip."""
        for owner in self._table.owners():
            if owner != self._author.key.owner and self._swim.members.of_id(owner) is None:
                self._note_absent(owner)

    def _note_absent(self, owner: str) -> None:
        """Since when. Whoever has neither a row nor a member's name needs no note: a liar has any number of those."""
        self._absent_since.setdefault(owner, self._swim.agenda.now)
        if len(self._absent_since) > 3 * GONE_LIMIT:
            of_id, of_owner = self._swim.members.of_id, self._table.of_owner
            noted = self._absent_since.items()
            self._absent_since = {one: since for one, since in noted if of_id(one) is not None or of_owner(one)}

    def _note_change(self, owner: str) -> None:
        now = self._swim.agenda.now
        self._changed_at[owner] = now
        if len(self._changed_at) > GONE_LIMIT:
            self._changed_at = {one: at for one, at in self._changed_at.items() if now - at < IN_FLIGHT_S}

    def is_gone(self, owner: str) -> bool:
        return owner in self._gone

    def _raise_floor(self) -> None:
        self._author.trim()
        self.flush()

    def _keep_house(self) -> None:
        """Rows of owners that have been away for long go, and are not taken in again from somebody who is late."""
        agenda = self._swim.agenda
        agenda.after(HOUSEKEEPING_S, "rows kept", self._keep_house)
        for owner in list(self._gone):
            if agenda.now - self._gone[owner] > self._swim.settings.dead_kept_s:
                del self._gone[owner]
        for owner, since in list(self._absent_since.items()):
            member = self._swim.members.of_id(owner)
            if member is not None and member.present:
                del self._absent_since[owner]
            elif agenda.now - since > self._swim.settings.paths_kept_s:
                del self._absent_since[owner]
                self._changed_at.pop(owner, None)
                self._table.remove_owner(owner)
                if len(self._gone) < GONE_LIMIT:
                    self._gone[owner] = agenda.now

    def _root(self) -> bytes:
        return octets(self._table.root)
