"""New rows on their way to everybody: along a tree at once, and by name to whoever has missed them.

::

    owner ──> 3 nodes, a third of the ring each ──> 3 nodes, a ninth each ──> …      the batch (eager)
      ├ every 200 ms the batch to 3 random nodes, twice, while there is little to say
      └ every 200 ms: "I have these" to 3 random nodes, for a few rounds ──> "I lack these" ──> the batch (lazy)

This is Plumtree's eager and lazy push (Leitão, Pereira, Rodrigues: Epidemic Broadcast Trees, 2007), but for the tree:
SWIM gives every node the whole membership, so that a tree need not be learned from duplicates and mended with grafts.
Each batch takes another one, out of the arcs of the ring (:meth:`vxnet.core.roster.Roster.divide`), so that the load is
the same on all and a dead node not yet known cuts off nobody twice.

Up to ``direct_nodes`` the owner tells everybody itself. Between that and ``tree_from`` rows are pushed plainly, as
memberlist does it. All together send ``byte_rate`` octets a second at most; deletes and changes go before additions;
what waits too long is dropped, and found by comparison (:mod:`vxnet.core.spread`).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from vxnet.core import rows, wire
from vxnet.core.broadcast import SPARED, BroadcastQueue
from vxnet.core.members import Address, Member
from vxnet.core.oldpack import MalformedError
from vxnet.core.roster import Span, all_besides
from vxnet.core.rows import Ask, Batch, Ids, Relay
from vxnet.core.swim import Swim

DATAGRAM = wire.PACKET_CONTENT - 3
"""Octets of a row message that travels by datagram."""
OVERHEAD = wire.PACKET_LIMIT - wire.PACKET_CONTENT + 28
"""… and what comes on top of it: encryption, UDP, IP."""
ID = 8
IDS_AT_ONCE = 100
KEPT = 8192
"""Batches that can be asked for …"""
KEPT_OCTETS = 4 << 20
WAITING_OCTETS = 1 << 20
"""What waits for its turn to be sent; beyond it the least urgent is dropped."""
BURST_S = 0.5
"""Octets that may be sent at once after a silence, in seconds of ``byte_rate``."""
ASK_AFTER_S = 0.05
"""What is known by name only may still come along the tree."""
ASK_AGAIN_S = 0.15
ASK_TRIES = 8
SOURCES = 4
WANTED_LIMIT = 4096
LOAD_S = 1.0
"""Over which the load is averaged."""
LIGHT = 0.25
"""Load up to which rows wait for nothing. Above it, they wait to be joined to others of their owner's …"""
JOIN_S = 0.6
"""… so long, times the load."""


class Waiting(NamedTuple):
    urgency: int
    order: int
    batch: Batch
    span: Span


class Wanted:
    """A batch known by name only."""

    __slots__ = ("due", "sources", "tries")

    def __init__(self, due: float) -> None:
        self.due = due
        self.sources: list[Address] = []
        self.tries = 0


class Turn:
    """The same choice for all that is sent at once, so that it shares packets; another the next time."""

    def __init__(self, number: int) -> None:
        self._number = number

    def randrange(self, stop: int, /) -> int:
        return self._number % stop


class Push:
    def __init__(self, swim: Swim, dropped: Counter[str]) -> None:
        self._swim = swim
        self._dropped = dropped
        self._waiting: list[Waiting] = []
        self._waiting_octets = 0
        self._order = 0
        self._kept: dict[bytes, Batch] = {}
        self._kept_octets = 0
        self._relayed: dict[bytes, None] = {}
        self._payloads = BroadcastQueue()
        self._ids = BroadcastQueue()
        self._wanted: dict[bytes, Wanted] = {}
        self._allowed = swim.settings.byte_rate * BURST_S
        self._rate = 0.0
        self._looked = swim.agenda.now
        self.audience: Callable[[Member], bool] | None = None
        """Whom rows are pushed to; others find them by comparison. None: everybody. Filtering by use for a network does
        not pay while all tables are whole: docs/performance.md, *who is told*."""

    # What the rest of the node sees

    @property
    def load(self) -> float:
        """The part of ``byte_rate`` that is in use."""
        self._pass_time()
        return self._rate / self._swim.settings.byte_rate

    @property
    def join_s(self) -> float:
        """How long the author waits for more: the fuller the batches, the fewer signatures and heads travel."""
        load = self.load
        return self._swim.settings.coalesce_s if load < LIGHT else JOIN_S * min(1.0, load)

    @property
    def is_full(self) -> bool:
        """The author had better wait, and send its newest rows later instead of all of them now."""
        return self._waiting_octets > self._swim.settings.byte_rate * BURST_S

    def statistics(self) -> dict[str, int]:
        return {
            "row_queue": len(self._waiting) + len(self._payloads) + len(self._ids),
            "row_queue_octets": self._waiting_octets + self._payloads.octets + self._ids.octets,
            "row_load_percent": round(100 * self.load),
        }

    def tell_all(self, batch: Batch, urgency: int) -> None:
        """A batch of this node's own."""
        self.tell(batch, urgency, all_besides(self._swim.me.name))

    def tell(self, batch: Batch, urgency: int, span: Span | None) -> None:
        """News. ``span``: who depends on this node for it; None: nobody, as far as is known."""
        id_ = batch.signature[:ID]
        self._keep(id_, batch)
        settings, n = self._swim.settings, self._swim.present
        self._ids.add(id_, id_, urgency)
        is_pushed = settings.direct_nodes < n < settings.tree_from
        if n > settings.direct_nodes and len(batch.content) < DATAGRAM - 100 and (is_pushed or self.load < LIGHT):
            if is_pushed and not len(self._payloads):
                self._swim.agenda.after(0.0, "row gossip", self._gossip)
            self._payloads.add(id_, rows.encode(batch), urgency)
        if span is not None and not is_pushed:
            self._wait(Waiting(urgency, self._order, batch, span))
        self._arm()

    def pass_on(self, batch: Batch, span: Span) -> None:
        """It is known here, and came along the tree only now: whoever is further down has it from nobody else."""
        id_ = batch.signature[:ID]
        if id_ in self._kept and id_ not in self._relayed:
            self._wait(Waiting(1, self._order, batch, span))

    # Messages

    def hear_ids(self, ids: Ids, sender: Address) -> None:
        member = self._swim.at(sender)
        if member is None or not member.is_vxnet or len(ids.ids) % ID or len(ids.ids) > DATAGRAM:
            raise MalformedError("ids of a stranger")
        for at in range(0, len(ids.ids), ID):
            id_ = ids.ids[at : at + ID]
            if id_ in self._kept:
                continue
            wanted = self._wanted.get(id_)
            if wanted is None:
                if len(self._wanted) >= WANTED_LIMIT:
                    self._dropped["too much to ask for"] += 1
                    return
                wanted = self._wanted[id_] = Wanted(self._swim.agenda.now + ASK_AFTER_S)
            if len(wanted.sources) < SOURCES and sender not in wanted.sources:
                wanted.sources.append(sender)
        self._arm_asking()

    def hear_ask(self, ask: Ask) -> None:
        source = self._swim.members.get(ask.source)
        if source is None or not source.present or len(ask.ids) % ID:
            raise MalformedError("asked by a stranger")
        for at in range(0, len(ask.ids), ID):
            batch = self._kept.get(ask.ids[at : at + ID])
            if batch is None:
                continue
            if not self._may_send():
                self._dropped["asked for more than may be sent"] += 1
                return
            self._send(source, rows.encode(batch))

    # The tree

    def _wait(self, waiting: Waiting) -> None:
        self._order += 1
        self._relayed[waiting.batch.signature[:ID]] = None
        if len(self._relayed) > KEPT:
            del self._relayed[next(iter(self._relayed))]
        heapq.heappush(self._waiting, waiting)
        self._waiting_octets += len(waiting.batch.content)
        if self._waiting_octets > WAITING_OCTETS:
            # A sorted list is a heap.
            self._waiting.sort()
            while self._waiting_octets > WAITING_OCTETS * SPARED:
                self._waiting_octets -= len(self._waiting.pop().batch.content)
                self._dropped["too many rows to pass on"] += 1
        if "rows waiting" not in self._swim.agenda:
            self._swim.agenda.after(0.0, "rows waiting", self._flow)

    def _flow(self) -> None:
        swim = self._swim
        turn = Turn(swim.rng.randrange(1 << 30))
        while self._waiting and self._may_send():
            waiting = heapq.heappop(self._waiting)
            self._waiting_octets -= len(waiting.batch.content)
            few = swim.present <= swim.settings.direct_nodes and not self.is_full
            count = swim.settings.direct_nodes if few else swim.settings.tree_fanout
            for member, part in swim.members.divide(turn, waiting.span, swim.me.name, count, self.audience):
                message = waiting.batch if part is None else Relay(waiting.batch, part.begin, part.end)
                self._send(member, rows.encode(message))
        if self._waiting:
            swim.agenda.after(max(0.01, -self._allowed / swim.settings.byte_rate), "rows waiting", self._flow)

    # Gossip

    def _arm(self) -> None:
        if "row gossip" not in self._swim.agenda:
            self._swim.agenda.after(self._swim.settings.gossip_interval_s, "row gossip", self._gossip)

    def _gossip(self) -> None:
        settings, n = self._swim.settings, self._swim.present
        # In a small cluster everybody was told already, and under load a comparison finds the last few for less.
        brief = n <= settings.direct_nodes or self.load > LIGHT
        rounds = settings.gossip_nodes if n <= settings.direct_nodes else 2 * settings.gossip_nodes
        limit = rounds if brief else settings.retransmissions(n)
        for member in self._swim.pick(settings.gossip_nodes, self._is_told):
            ids = self._ids.take(IDS_AT_ONCE * ID, 0, limit)
            if ids:
                self._send(member, rows.encode(Ids(b"".join(ids))))
            room = int(self._allowed / settings.gossip_nodes)
            for payload in self._payloads.take(room, OVERHEAD, settings.payload_sends):
                self._send(member, payload)
        if len(self._ids) or len(self._payloads):
            self._arm()

    def _arm_asking(self) -> None:
        if self._wanted and "rows wanted" not in self._swim.agenda:
            self._swim.agenda.after(ASK_AFTER_S, "rows wanted", self._ask)

    def _is_told(self, member: Member) -> bool:
        return member.present and member.is_vxnet and (self.audience is None or self.audience(member))

    def _ask(self) -> None:
        """Of each batch known by name one after the other of those who have it."""
        now = self._swim.agenda.now
        by_source: dict[Address, list[bytes]] = {}
        for id_, wanted in list(self._wanted.items()):
            if id_ in self._kept or wanted.tries == ASK_TRIES:
                del self._wanted[id_]
            elif wanted.due <= now:
                by_source.setdefault(wanted.sources[wanted.tries % len(wanted.sources)], []).append(id_)
                wanted.tries += 1
                wanted.due = now + ASK_AGAIN_S
        for source, ids in by_source.items():
            for at in range(0, len(ids), IDS_AT_ONCE):
                ask = Ask(b"".join(ids[at : at + IDS_AT_ONCE]), self._swim.me.name)
                self._swim.send_user(source, rows.encode(ask))
        self._arm_asking()

    # House

    def _keep(self, id_: bytes, batch: Batch) -> None:
        self._wanted.pop(id_, None)
        if id_ in self._kept:
            return
        self._kept[id_] = batch
        self._kept_octets += len(batch.content)
        while len(self._kept) > KEPT or self._kept_octets > KEPT_OCTETS:
            oldest = self._kept.pop(next(iter(self._kept)))
            self._kept_octets -= len(oldest.content)

    def _send(self, member: Member, payload: bytes) -> None:
        size = len(payload) + OVERHEAD
        self._allowed -= size
        self._rate += size / LOAD_S
        if len(payload) <= DATAGRAM:
            self._swim.send_user(member.endpoint, payload)
        else:
            self._swim.send_user_stream(member.endpoint, payload)

    def _may_send(self) -> bool:
        self._pass_time()
        return self._allowed > 0

    def _pass_time(self) -> None:
        passed = self._swim.agenda.now - self._looked
        if passed > 0:
            self._looked = self._swim.agenda.now
            rate = self._swim.settings.byte_rate
            self._allowed = min(self._allowed + passed * rate, rate * BURST_S)
            self._rate *= max(0.0, 1 - passed / LOAD_S) if passed < LOAD_S else 0.0
