"""Membership: SWIM with Lifeguard over memberlist's messages, without a socket, a clock or a die.

Driven by the shell through five verbs (``receive_datagram``, ``handle_timer``, ``get_timer``, ``datagrams_to_send``,
``next_event``) and by streams: the core asks for connections (``streams_to_open``), takes in those of others
(``accept``), and each :class:`Stream` says what to write and when it is done. ``now`` is monotonic, in seconds.

A bad datagram never raises: it is counted in ``dropped`` by its reason.

What is not memberlist's: the rules in :mod:`vxnet.core.members`; news is sent at once, to everybody in a small cluster;
who hears of a suspicion may probe the suspect out of turn, so that confirmations do not wait for the round; a stall of
this process does not count as time (:mod:`vxnet.core.agenda`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from vxnet.core import frame, serf, wire
from vxnet.core.agenda import Agenda
from vxnet.core.exchange import Contacted, Exchange
from vxnet.core.keyring import NONCE, KeyRing
from vxnet.core.members import (
    Address,
    Member,
    Verdict,
    judge,
    kind_of,
    may_move,
    parse_address,
    read_tags,
    version_fault,
)
from vxnet.core.news import News
from vxnet.core.oldpack import MalformedError
from vxnet.core.probe import Prober
from vxnet.core.relay import Relay
from vxnet.core.roster import Roster
from vxnet.core.stream import Stream
from vxnet.core.timing import LAN, Settings
from vxnet.model.address import IPAddress
from vxnet.model.errors import CallerError

MEMBERS_LIMIT = wire.NODES_LIMIT
STREAMS_LIMIT = 1024
STREAM_OCTETS_LIMIT = 64 << 20
"""Of what waits to be said over streams that are to be opened."""
EXTRA_PROBES = 8
"""Of n nodes that hear of a suspicion about so many look for themselves at once."""
_LAST_INCARNATION = (1 << 32) - 1


class Random(Protocol):
    """As :class:`random.Random`; not predictable by peers outside of tests, because nonces come from it too."""

    def random(self) -> float: ...
    def randrange(self, stop: int, /) -> int: ...
    def randbytes(self, n: int, /) -> bytes: ...


class MemberChanged(NamedTuple):
    before: Member | None
    after: Member


class UserMessage(NamedTuple):
    payload: bytes
    sender: Address


Event: TypeAlias = MemberChanged | UserMessage | Contacted


class Swim:
    def __init__(
        self,
        *,
        name: str,
        address: IPAddress,
        port: int,
        tags: Mapping[str, str],
        ring: KeyRing | None,
        rng: Random,
        now: float,
        label: str = "",
        settings: Settings = LAN,
        roster: Roster | None = None,
    ) -> None:
        """``address`` and ``port``: where others reach it. ``roster``: whom it knows already. Raises
        :class:`CallerError` if the tags are too long."""
        meta = serf.encode_tags(tags)
        if len(label.encode()) > wire.LABEL_LIMIT:
            raise CallerError(f"a cluster's label has at most {wire.LABEL_LIMIT} octets")
        self.agenda = Agenda()
        self.agenda.observe(now, 0.0)
        self.me = Member(
            name, tags.get("id", ""), address, dict(tags), "alive", 1, port, meta, wire.VERSIONS, self.agenda.now
        )
        self.members = Roster() if roster is None else roster
        """By name, oneself and the gone included. Read only."""
        is_known = name in self.members
        self.members.put(self.me)
        self.ring = ring
        self.settings = settings
        self.dropped: Counter[str] = Counter()
        self.sent_octets = 0
        self.rng = rng
        self._label = label
        self.clock = serf.Clock()
        self._outbox: dict[Address, list[bytes]] = {}
        self._events: deque[Event] = deque()
        self._streams: deque[Stream] = deque()
        self._stream_octets = 0
        self._accused_at: dict[str, float] = {}
        self._hearsay: dict[str, int] = {}
        self._observed = -1.0
        self._interval_of = 0
        self._interval_s = 0.0
        self.leaving = False
        self.prober = Prober(self)
        self._news = News(self)
        self._exchange = Exchange(self)
        self._relay = Relay(self)
        if not is_known:
            self.introduce()

    # The verbs

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> None:
        self._observe(now)
        try:
            messages = frame.open_packet(data, self.ring, self._label)
        except MalformedError as error:
            self.dropped[str(error)] += 1
            return
        for message in messages:
            if isinstance(message, MalformedError):
                self.dropped[str(message)] += 1
            else:
                self._receive(message, addr)

    def handle_timer(self, now: float) -> None:
        self._observe(now)
        self.agenda.run()

    def get_timer(self) -> float | None:
        return self.agenda.next_timer()

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        self._observe(now)
        if not self._outbox:
            return []
        outbox, self._outbox = self._outbox, {}
        packets = []
        for addr, messages in outbox.items():
            if len(self._news):
                room = wire.PACKET_CONTENT - sum(len(message) + 2 for message in messages) - 2
                messages += self._news.take(room)
            to = self.at(addr) if self.ring is None else None
            crc = to is not None and to.speaks_crc
            for packet in messages if len(messages) == 1 else frame.compound(messages):
                nonce = b"" if self.ring is None else self.rng.randbytes(NONCE)
                sealed = frame.seal_packet(packet, self.ring, self._label, nonce, crc=crc)
                packets.append((sealed, addr))
                self.sent_octets += len(sealed)
        return packets

    def next_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    # Streams

    def streams_to_open(self) -> list[Stream]:
        if not self._streams:
            return []
        streams, self._streams, self._stream_octets = list(self._streams), deque(), 0
        return streams

    def accept(self, addr: Address) -> Stream:
        """For a connection that somebody opened."""
        return Stream(self, addr)

    def open_stream(self, stream: Stream) -> None:
        octets = self._stream_octets + len(stream.to_send)
        if len(self._streams) < STREAMS_LIMIT and octets <= STREAM_OCTETS_LIMIT:
            self._streams.append(stream)
            self._stream_octets = octets
        else:
            self.dropped["too many streams wanted"] += 1

    def seal_stream(self, message: bytes) -> bytes:
        return frame.seal_stream(message, self.ring, self._label, self.rng.randbytes(12))

    def stream_reader(self) -> frame.StreamReader:
        return frame.StreamReader(self.ring, self._label)

    # What the daemon wants

    def join(self, addresses: Iterable[Address], now: float) -> None:
        """Ask each for its members. They are asked again later while no live member has such an address."""
        self._observe(now)
        self._exchange.join([addr for addr in dict.fromkeys(addresses) if addr != self.me.endpoint])

    def set_tags(self, tags: Mapping[str, str], now: float) -> None:
        """Raises :class:`CallerError` if they are too long."""
        self._observe(now)
        meta = serf.encode_tags(tags)
        if meta != self.me.meta:
            self.me = self.me._replace(tags=dict(tags), meta=meta, id=tags.get("id", ""))
            self._assert_myself(self.me.incarnation)

    def leave(self, now: float) -> None:
        """Say goodbye, Serf's intent first: an agent that has not heard it calls a dead node failed. Call it again a
        moment later for those who missed it."""
        self._observe(now)
        intent = wire.encode(wire.User(self.clock.leave_intent(self.me.name)))
        self.leaving = True
        dead = wire.encode(wire.Dead(self.me.incarnation, self.me.name, self.me.name))
        for member in self.pick(self.settings.direct_nodes, lambda member: member.present):
            self.send(member.endpoint, intent)
            if self.me.status == "left":
                self.send(member.endpoint, dead)
        if self.me.status == "left":
            self._news.tell(self.me.name, dead)
        self.me = self.me._replace(status="left")
        self.members.put(self.me)

    def send_user(self, addr: Address, payload: bytes) -> None:
        """By datagram: ``payload`` must fit into one (:data:`wire.PACKET_CONTENT` less one)."""
        self.send(addr, wire.encode(wire.User(payload)))

    def send_user_stream(self, addr: Address, payload: bytes) -> None:
        self.open_stream(Stream(self, addr, wire.encode_user_stream(payload), timeout_s=self.settings.stream_timeout_s))

    def statistics(self) -> dict[str, int]:
        return {
            "members": len(self.members),
            "present": self.present,
            "health": self.prober.awareness.score,
            "news": len(self._news),
            "sent_octets": self.sent_octets,
            "dropped": self.dropped.total(),
        }

    # For the parts

    @property
    def present(self) -> int:
        """How many members are alive or suspect."""
        return self.members.present

    @property
    def present_hash(self) -> int:
        """Of them all: equal where two nodes see the same ones, with the same incarnations."""
        return self.members.present_hash

    @property
    def probe_interval_s(self) -> float:
        """For so many members as there are, for a node in good health."""
        n = self.members.present
        if n != self._interval_of:
            self._interval_of, self._interval_s = n, self.settings.probe_interval_s(n)
        return self._interval_s

    def send(self, addr: Address, message: bytes) -> None:
        self._outbox.setdefault(addr, []).append(message)

    def pick(self, count: int, wanted: Callable[[Member], bool], besides: Sequence[str] = ()) -> list[Member]:
        """Up to ``count`` random members for which ``wanted`` holds."""
        return self.members.pick(self.rng, count, wanted, (self.me.name, *besides))

    def at(self, addr: Address) -> Member | None:
        return self.members.at(addr)

    def pull_from(self, addr: Address) -> None:
        """Membership in full, unless that was just done."""
        self._exchange.pull_from(addr, join=False)

    def merge(self, nodes: Sequence[wire.NodeState], addr: Address) -> None:
        """What the node at ``addr`` knows."""
        self._exchange.merge_nodes(nodes, addr)

    def report(self, event: Event) -> None:
        self._events.append(event)

    def introduce(self) -> None:
        """Tell everybody, or whoever comes first, that this node lives."""
        self._news.tell(self.me.name, self._alive())

    def _alive(self) -> bytes:
        me = self.me
        return wire.encode(wire.Alive(me.incarnation, me.name, me.address.packed, me.port, me.meta, me.versions))

    def accuse(self, news: wire.Suspect | wire.Dead) -> None:
        """Something that this node found out by itself."""
        self.hear_accusation(news)

    def receive_stream(self, message: wire.Message, addr: Address) -> bytes:
        """The answer to the one message of a stream, unsealed; empty for none."""
        if isinstance(message, wire.PushPull):
            answer = self._exchange.local_state(join=message.join)
            self._exchange.merge(message, addr)
            return answer
        if isinstance(message, wire.Ping):
            if message.node in ("", self.me.name):
                return wire.encode(wire.Ack(message.seq))
            self.dropped["ping for another"] += 1
            return b""
        if isinstance(message, wire.User):
            self._receive(message, addr)
            return b""
        self.dropped["not a message for streams"] += 1
        return b""

    # Messages

    def _observe(self, now: float) -> None:
        if now == self._observed:
            return
        self._observed = now
        if self.agenda.observe(now, self.settings.stall_fraction * self.probe_interval_s):
            self.prober.forget()

    def _receive(self, message: wire.Message, addr: Address) -> None:
        match message:
            case wire.Ping():
                if message.node in ("", self.me.name):
                    self.send(addr, wire.encode(wire.Ack(message.seq)))
                else:
                    self.dropped["ping for another"] += 1
            case wire.IndirectPing():
                self.prober.relay(message, addr)
            case wire.Ack():
                self.prober.acknowledged(message.seq)
            case wire.Nack():
                self.prober.refused(message.seq)
            case wire.Suspect() | wire.Dead():
                self.hear_accusation(message)
                if message.node == self.me.name and message.incarnation < self.me.incarnation:
                    # Refuted long ago, but not everybody has heard of it.
                    self.send(addr, self._alive())
            case wire.Alive():
                self.hear_alive(message, pass_on=True)
            case wire.User():
                if message.payload[:1] and message.payload[0] <= serf.LAST_MESSAGE:
                    self.clock.observe(message.payload)
                    self._relay.hear(message.payload)
                else:
                    self._events.append(UserMessage(message.payload, addr))
            case _:
                self.dropped["not a message for datagrams"] += 1

    def hear_alive(self, news: wire.Alive, *, pass_on: bool) -> None:
        address = parse_address(news.address)
        if address is None or not news.port or not news.node:
            self.dropped["no address or name"] += 1
            return
        if news.node == self.me.name:
            self._hear_of_myself(news, address)
            return
        if fault := version_fault(news.versions):
            self.dropped[fault] += 1
            return
        member = self.members.get(news.node)
        verdict = judge(member, news)
        if verdict is Verdict.ACCUSE and member is not None:
            self._answer_with_accusation(member, (str(address), news.port))
        if verdict is not Verdict.APPLY:
            if pass_on and self._hearsay.get(news.node) == news.incarnation:
                del self._hearsay[news.node]
                self._news.tell(news.node, wire.encode(news))
            return
        tags, node_id = read_tags(news.meta)
        if member is not None and not may_move(member, news, node_id):
            self.dropped["name taken by another address"] += 1
            return
        if member is None and len(self.members) >= MEMBERS_LIMIT:
            self.dropped["too many members"] += 1
            return
        since = member.since if member is not None and member.status == "alive" else self.agenda.now
        after = Member(
            news.node, node_id, address, tags, "alive", news.incarnation, news.port, news.meta, news.versions, since
        )
        self.replace(member, after)
        # What a third party remembers is not passed on, else an old "alive" would wander for hours (memberlist#312);
        # once the node's own words come by, they are.
        if pass_on:
            self._hearsay.pop(news.node, None)
            self._news.tell(news.node, wire.encode(news))
        else:
            self._hearsay[news.node] = news.incarnation

    def hear_accusation(self, news: wire.Suspect | wire.Dead) -> None:
        if news.node == self.me.name:
            if not self.leaving and news.incarnation >= self.me.incarnation:
                self.prober.awareness.change(1)
                self._assert_myself(news.incarnation)
            return
        member = self.members.get(news.node)
        verdict = judge(member, news)
        if member is None or verdict is Verdict.IGNORE:
            return
        if verdict is Verdict.CONFIRM:
            if self.prober.confirm(member, news.source):
                self._news.tell(news.node, wire.encode(news))
            return
        after = member._replace(status=kind_of(news), incarnation=news.incarnation, since=self.agenda.now)
        self.replace(member, after)
        self._news.tell(news.node, wire.encode(news))
        if after.status == "suspect":
            self.prober.suspect(after, news.source)
            if news.source != self.me.name and self.rng.random() * self.present < EXTRA_PROBES:
                self.prober.probe(after)

    def _hear_of_myself(self, news: wire.Alive, address: IPAddress) -> None:
        """Somebody remembers an earlier life of this node, or takes another for it: say what holds."""
        same = (address, news.port, news.meta) == (self.me.address, self.me.port, self.me.meta)
        if self.leaving or news.incarnation < self.me.incarnation or (news.incarnation == self.me.incarnation and same):
            return
        self._assert_myself(news.incarnation)

    def _assert_myself(self, beats: int) -> None:
        """Alive, with an incarnation above ``beats``."""
        incarnation = min(max(self.me.incarnation, beats) + 1, _LAST_INCARNATION)
        self.me = self.me._replace(incarnation=incarnation)
        self.members.put(self.me)
        self.introduce()

    def _answer_with_accusation(self, member: Member, addr: Address) -> None:
        last = self._accused_at.get(member.name)
        if last is not None and self.agenda.now - last < self.settings.accusation_interval_s:
            return
        if len(self._accused_at) > MEMBERS_LIMIT:
            self._accused_at.clear()
        self._accused_at[member.name] = self.agenda.now
        self.send(addr, self.claim(member))

    def claim(self, member: Member) -> bytes:
        """What this node holds against ``member``, for its own ears."""
        if member.status == "suspect":
            return wire.encode(wire.Suspect(member.incarnation, member.name, self.me.name))
        source = member.name if member.status == "left" else self.me.name
        return wire.encode(wire.Dead(member.incarnation, member.name, source))

    def replace(self, before: Member | None, after: Member) -> None:
        self.members.put(after)
        if after.status != "suspect":
            self.prober.settle(after.name)
        if after.present and before is not None and before.status == "dead":
            # Back from the other side of a partition, perhaps: it knows others.
            self._exchange.meet_again(after.endpoint)
        if not after.present:
            self.agenda.after(self.settings.dead_kept_s, ("forget", after.name), lambda: self._forget(after.name))
        else:
            self.agenda.cancel(("forget", after.name))
        self._events.append(MemberChanged(before, after))

    def _forget(self, name: str) -> None:
        self.members.remove(name)
        self._accused_at.pop(name, None)
        self._hearsay.pop(name, None)
