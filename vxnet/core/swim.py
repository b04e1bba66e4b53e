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

from vxnet.core import serf, wire
from vxnet.core.agenda import Agenda
from vxnet.core.broadcast import BroadcastQueue
from vxnet.core.keyring import KeyRing
from vxnet.core.members import Address, Member, Verdict, judge, kind_of, may_move, parse_address
from vxnet.core.oldpack import MalformedError
from vxnet.core.probe import Prober
from vxnet.core.stream import Stream
from vxnet.core.timing import LAN, Settings
from vxnet.model.address import IPAddress

MEMBERS_LIMIT = wire.NODES_LIMIT
EXTRA_PROBES = 4
"""Of n nodes that hear of a suspicion about so many look for themselves at once."""
_LAST_INCARNATION = (1 << 32) - 1


class Random(Protocol):
    """As :class:`random.Random`; not predictable by peers outside of tests, because nonces come from it too."""

    def random(self) -> float: ...
    def randrange(self, stop: int, /) -> int: ...
    def randbytes(self, n: int, /) -> bytes: ...
    def shuffle(self, x: list[str], /) -> None: ...


class MemberChanged(NamedTuple):
    before: Member | None
    after: Member


class UserMessage(NamedTuple):
    payload: bytes
    sender: Address


class Contacted(NamedTuple):
    """What became of a join()."""

    address: Address
    reached: bool


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
    ) -> None:
        """``address`` and ``port``: where others reach it. Raises :class:`CallerError` if the tags are too long."""
        meta = serf.encode_tags(tags)
        self.agenda = Agenda()
        self.agenda.observe(now, 0.0)
        self.me = Member(
            name, tags.get("id", ""), address, dict(tags), "alive", 1, port, meta, wire.VERSIONS, self.agenda.now
        )
        self.members: dict[str, Member] = {name: self.me}
        """By name, oneself and the gone included. Read only."""
        self.present = 1
        """How many of them are alive or suspect."""
        self.ring = ring
        self.settings = settings
        self.dropped: Counter[str] = Counter()
        self.sent_octets = 0
        self.rng = rng
        self._label = label
        self._clock = serf.Clock()
        self._news = BroadcastQueue()
        self._fresh: list[bytes] = []
        self._outbox: dict[Address, list[bytes]] = {}
        self._events: deque[Event] = deque()
        self._streams: deque[Stream] = deque()
        self._seeds: tuple[Address, ...] = ()
        self._by_endpoint: dict[Address, str] = {}
        self._accused_at: dict[str, float] = {}
        self.leaving = False
        self._prober = Prober(self)
        self._gossip_soon(self.me.name, self._alive(self.me))
        self.agenda.after(settings.push_pull_interval_s * (0.5 + rng.random() / 2), "push/pull", self._push_pull)
        self.agenda.after(settings.reconnect_interval_s, "reconnect", self._reconnect)
        self.agenda.after(settings.seed_interval_s, "seeds", self._try_seeds)

    # The verbs

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> None:
        self._observe(now)
        try:
            messages = wire.open_packet(data, self.ring, self._label)
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
        outbox, self._outbox = self._outbox, {}
        packets = []
        for addr, messages in outbox.items():
            to = self.members.get(self._by_endpoint.get(addr, ""))
            crc = to is not None and to.speaks_crc
            room = wire.PACKET_CONTENT - sum(len(message) + 2 for message in messages) - 2
            limit = self.settings.retransmissions(self.present)
            for packet in wire.compound([*messages, *self._news.take(room, 2, limit)]):
                sealed = wire.seal_packet(packet, self.ring, self._label, self.rng.randbytes(12), crc=crc)
                packets.append((sealed, addr))
                self.sent_octets += len(sealed)
        return packets

    def next_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    # Streams

    def streams_to_open(self) -> list[Stream]:
        streams, self._streams = list(self._streams), deque()
        return streams

    def accept(self, addr: Address) -> Stream:
        """For a connection that somebody opened."""
        return Stream(self, addr)

    def open_stream(self, stream: Stream) -> None:
        if len(self._streams) < 1024:
            self._streams.append(stream)
        else:
            self.dropped["too many streams wanted"] += 1

    def seal_stream(self, message: bytes) -> bytes:
        return wire.seal_stream(message, self.ring, self._label, self.rng.randbytes(12))

    def stream_reader(self) -> wire.StreamReader:
        return wire.StreamReader(self.ring, self._label)

    # What the daemon wants

    def join(self, addresses: Iterable[Address], now: float) -> None:
        """Ask each for its members. They are asked again later while no live member has such an address."""
        self._observe(now)
        self._seeds = tuple(dict.fromkeys(addr for addr in addresses if addr != self.me.endpoint))
        for addr in self._seeds:
            self._pull_from(addr, join=True)

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
        intent = wire.encode(wire.User(self._clock.leave_intent(self.me.name)))
        self.leaving = True
        dead = wire.encode(wire.Dead(self.me.incarnation, self.me.name, self.me.name))
        for member in self.pick(self.settings.direct_nodes, lambda member: member.present):
            self.send(member.endpoint, intent)
            if self.me.status == "left":
                self.send(member.endpoint, dead)
        if self.me.status == "left":
            self._news.add(self.me.name, dead)
        self.me = self.me._replace(status="left")
        self.members[self.me.name] = self.me

    def send_user(self, addr: Address, payload: bytes) -> None:
        """By datagram: ``payload`` must fit into one (:data:`wire.PACKET_CONTENT` less one)."""
        self.send(addr, wire.encode(wire.User(payload)))

    def send_user_stream(self, addr: Address, payload: bytes) -> None:
        self.open_stream(Stream(self, addr, wire.encode_user_stream(payload), timeout_s=self.settings.stream_timeout_s))

    def statistics(self) -> dict[str, int]:
        return {
            "members": len(self.members),
            "present": self.present,
            "health": self._prober.awareness.score,
            "news": len(self._news),
            "sent_octets": self.sent_octets,
            "dropped": self.dropped.total(),
        }

    # For the prober and streams

    def send(self, addr: Address, message: bytes) -> None:
        self._outbox.setdefault(addr, []).append(message)

    def pick(self, count: int, wanted: Callable[[Member], bool], besides: Sequence[str] = ()) -> list[Member]:
        """Up to ``count`` random members for which ``wanted`` holds."""
        found = [m for m in self.members.values() if m.name != self.me.name and m.name not in besides and wanted(m)]
        chosen: list[Member] = []
        while found and len(chosen) < count:
            at = self.rng.randrange(len(found))
            found[at], found[-1] = found[-1], found[at]
            chosen.append(found.pop())
        return chosen

    def accuse(self, news: wire.Suspect | wire.Dead) -> None:
        """Something that this node found out by itself."""
        self._accusation(news)

    def receive_stream(self, message: wire.Message, addr: Address) -> bytes:
        """The answer to the one message of a stream, unsealed; empty for none."""
        if isinstance(message, wire.PushPull):
            answer = self._local_state(join=message.join)
            self._merge(message)
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
        tolerance = self.settings.stall_fraction * self.settings.probe_interval_s(self.present)
        if self.agenda.observe(now, tolerance):
            self._prober.forget()

    def _receive(self, message: wire.Message, addr: Address) -> None:
        match message:
            case wire.Ping():
                if message.node in ("", self.me.name):
                    self.send(addr, wire.encode(wire.Ack(message.seq)))
                else:
                    self.dropped["ping for another"] += 1
            case wire.IndirectPing():
                self._prober.relay(message, addr)
            case wire.Ack():
                self._prober.acknowledged(message.seq)
            case wire.Nack():
                self._prober.refused(message.seq)
            case wire.Suspect() | wire.Dead():
                self._accusation(message)
            case wire.Alive():
                self._alive_news(message, pass_on=True)
            case wire.User():
                if message.payload[:1] and message.payload[0] <= serf.LAST_MESSAGE:
                    self._clock.observe(message.payload)
                else:
                    self._events.append(UserMessage(message.payload, addr))
            case _:
                self.dropped["not a message for datagrams"] += 1

    def _alive_news(self, news: wire.Alive, *, pass_on: bool) -> None:
        address = parse_address(news.address)
        if address is None or not news.port or not news.node:
            self.dropped["no address or name"] += 1
            return
        if news.node == self.me.name:
            self._hear_of_myself(news, address)
            return
        member = self.members.get(news.node)
        verdict = judge(member, news)
        if verdict is Verdict.ACCUSE and member is not None:
            self._answer_with_accusation(member, (str(address), news.port))
        if verdict is not Verdict.APPLY:
            return
        tags = serf.decode_tags(news.meta)
        node_id = tags.get("id", "") if "vxnet" in tags else ""
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
        self._replace(member, after)
        # A member that a third party told of is passed on only by who heard it from the air: else an old one would
        # wander for hours (memberlist#312).
        if pass_on:
            self._gossip_soon(news.node, wire.encode(news))

    def _accusation(self, news: wire.Suspect | wire.Dead) -> None:
        if news.node == self.me.name:
            if not self.leaving and news.incarnation >= self.me.incarnation:
                self._prober.awareness.change(1)
                self._assert_myself(news.incarnation)
            return
        member = self.members.get(news.node)
        verdict = judge(member, news)
        if member is None or verdict is Verdict.IGNORE:
            return
        if verdict is Verdict.CONFIRM:
            if self._prober.confirm(member, news.source):
                self._gossip_soon(news.node, wire.encode(news))
            return
        after = member._replace(status=kind_of(news), incarnation=news.incarnation, since=self.agenda.now)
        self._replace(member, after)
        self._gossip_soon(news.node, wire.encode(news))
        if after.status == "suspect":
            self._prober.suspect(after, news.source)
            if news.source != self.me.name and self.rng.random() * self.present < EXTRA_PROBES:
                self._prober.probe(after)

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
        self.members[self.me.name] = self.me
        self._gossip_soon(self.me.name, self._alive(self.me))

    def _answer_with_accusation(self, member: Member, addr: Address) -> None:
        last = self._accused_at.get(member.name)
        if last is not None and self.agenda.now - last < self.settings.accusation_interval_s:
            return
        if len(self._accused_at) > MEMBERS_LIMIT:
            self._accused_at.clear()
        self._accused_at[member.name] = self.agenda.now
        self.send(addr, self._claim(member))

    def _claim(self, member: Member) -> bytes:
        """What this node holds against ``member``, for its own ears."""
        if member.status == "suspect":
            return wire.encode(wire.Suspect(member.incarnation, member.name, self.me.name))
        source = member.name if member.status == "left" else self.me.name
        return wire.encode(wire.Dead(member.incarnation, member.name, source))

    @staticmethod
    def _alive(member: Member) -> bytes:
        return wire.encode(
            wire.Alive(
                member.incarnation, member.name, member.address.packed, member.port, member.meta, member.versions
            )
        )

    def _replace(self, before: Member | None, after: Member) -> None:
        self.members[after.name] = after
        was = before is not None and before.present
        self.present += after.present - was
        if before is not None and before.endpoint != after.endpoint:
            self._by_endpoint.pop(before.endpoint, None)
        self._by_endpoint[after.endpoint] = after.name
        if after.status != "suspect":
            self._prober.settle(after.name)
        if after.present and not was:
            self._prober.enlist(after.name)
            if before is not None and before.status == "dead":
                # Back from the other side of a partition, perhaps: it knows others.
                self._pull_from(after.endpoint, join=False)
        if not after.present:
            self.agenda.after(self.settings.dead_kept_s, ("forget", after.name), lambda: self._forget(after.name))
        else:
            self.agenda.cancel(("forget", after.name))
        self._events.append(MemberChanged(before, after))

    def _forget(self, name: str) -> None:
        member = self.members.pop(name, None)
        if member is not None:
            self._by_endpoint.pop(member.endpoint, None)
            self._accused_at.pop(name, None)

    # News

    def _gossip_soon(self, subject: str, message: bytes) -> None:
        self._news.add(subject, message)
        self._fresh.append(message)
        if "fresh" not in self.agenda:
            self.agenda.after(self.settings.coalesce_s, "fresh", self._flood)
        if "gossip" not in self.agenda:
            self.agenda.after(self.settings.gossip_interval_s, "gossip", self._gossip)

    def _flood(self) -> None:
        """What is new goes out without waiting for a tick: to everybody if they are few."""
        fresh, self._fresh = self._fresh, []
        few = self.present <= self.settings.direct_nodes
        count = self.settings.direct_nodes if few else self.settings.gossip_nodes
        for member in self.pick(count, lambda member: member.present):
            for message in fresh:
                self.send(member.endpoint, message)

    def _gossip(self) -> None:
        limit = self.settings.retransmissions(self.present)
        for member in self.pick(self.settings.gossip_nodes, lambda member: member.present):
            for message in self._news.take(wire.PACKET_CONTENT - 2, 2, limit):
                self.send(member.endpoint, message)
        # Without anybody to tell it to, news waits for the first to come.
        if len(self._news):
            self.agenda.after(self.settings.gossip_interval_s, "gossip", self._gossip)

    # Full exchanges

    def _pull_from(self, addr: Address, *, join: bool) -> None:
        key = ("pulling", addr)
        if key in self.agenda and not join:
            return
        self.agenda.after(1.0, key, lambda: None)
        if join:
            self._gossip_soon(self.me.name, self._alive(self.me))
        self.open_stream(
            Stream(
                self,
                addr,
                self._local_state(join=join),
                on_answer=self._pulled,
                on_failure=lambda: self._events.append(Contacted(addr, False)) if join else None,
                timeout_s=self.settings.stream_timeout_s,
            )
        )

    def _pulled(self, message: wire.Message, addr: Address) -> bool:
        if not isinstance(message, wire.PushPull):
            self.dropped["no push/pull in answer to one"] += 1
            return False
        self._merge(message)
        self._events.append(Contacted(addr, True))
        return True

    def _local_state(self, *, join: bool) -> bytes:
        states = {"alive": 0, "suspect": 1, "dead": 2, "left": 3}
        nodes = tuple(
            wire.NodeState(m.name, m.address.packed, m.port, m.meta, m.incarnation, states[m.status], m.versions)
            for m in self.members.values()
        )
        return wire.encode(wire.PushPull(join, nodes, self._clock.user_state()))

    def _merge(self, remote: wire.PushPull) -> None:
        self._clock.merge(remote.user_state)
        for node in remote.nodes:
            match node.state:
                case wire.State.ALIVE:
                    news = wire.Alive(node.incarnation, node.name, node.address, node.port, node.meta, node.versions)
                    self._alive_news(news, pass_on=False)
                case wire.State.LEFT:
                    self._accusation(wire.Dead(node.incarnation, node.name, node.name))
                case wire.State.SUSPECT | wire.State.DEAD:
                    # A dead one is only suspected, so that it may still speak for itself.
                    if node.name not in self.members:
                        alive = wire.Alive(
                            node.incarnation, node.name, node.address, node.port, node.meta, node.versions
                        )
                        self._remember_gone(alive)
                    self._accusation(wire.Suspect(node.incarnation, node.name, self.me.name))
                case _:
                    self.dropped["unknown node state"] += 1

    def _remember_gone(self, node: wire.Alive) -> None:
        """A node that was dead before this one came: known, so that an old "alive" cannot raise it here, and so that
        it is found when it comes back."""
        address = parse_address(node.address)
        if address is None or not node.node or node.node == self.me.name or len(self.members) >= MEMBERS_LIMIT:
            return
        tags = serf.decode_tags(node.meta)
        node_id = tags.get("id", "") if "vxnet" in tags else ""
        gone = Member(
            node.node, node_id, address, tags, "dead", node.incarnation, node.port, node.meta, node.versions,
            self.agenda.now,
        )  # fmt: skip
        self._replace(None, gone)

    def _push_pull(self) -> None:
        for member in self.pick(1, lambda member: member.status == "alive"):
            self._pull_from(member.endpoint, join=False)
        self.agenda.after(self.settings.push_pull_s(self.present), "push/pull", self._push_pull)

    def _reconnect(self) -> None:
        for member in self.pick(1, lambda member: member.status == "dead"):
            self.send(member.endpoint, self._claim(member))
            self._prober.greet(member)
        self.agenda.after(self.settings.reconnect_interval_s, "reconnect", self._reconnect)

    def _try_seeds(self) -> None:
        missing = [addr for addr in self._seeds if not self._is_present(addr)]
        if missing and not self.leaving:
            self._pull_from(missing[self.rng.randrange(len(missing))], join=self.present == 1)
        self.agenda.after(self.settings.seed_interval_s, "seeds", self._try_seeds)

    def _is_present(self, addr: Address) -> bool:
        member = self.members.get(self._by_endpoint.get(addr, ""))
        return member is not None and member.present
