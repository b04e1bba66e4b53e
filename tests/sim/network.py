"""A cluster in virtual time: the real core, a network that behaves as badly as it is told to.

The same seed gives the same run, event for event. Nothing sleeps; a second of a node takes about 0.2 ms.

    sim = Simulation(seed, 5)
    sim.run(10)                      # ten seconds pass
    sim.partition({1, 2}, {3, 4, 5})
    ...

A large cluster begins acquainted: all nodes stand on one view (:mod:`vxnet.core.layered`), and each holds what it sees
differently.
"""

from __future__ import annotations

import heapq
import ipaddress
import random
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from tests.gossip_cluster import Cluster, Papers, endpoint
from vxnet.core import table as core_table
from vxnet.core import wire
from vxnet.core.author import Author
from vxnet.core.gossip import VXNET_TAG, GossipNode
from vxnet.core.members import Address, Member
from vxnet.core.roster import Roster
from vxnet.core.rows import Batch, BatchContent
from vxnet.core.serf import encode_tags
from vxnet.core.stream import Stream
from vxnet.core.table import Table
from vxnet.core.timing import LAN, Settings
from vxnet.model.row import Certificate, Leases

PORT = 7946
WALL = 1_800_000_000.0
"""Wall clock at virtual time 0."""
SOCKET_BUFFER = 2000
"""Datagrams that a frozen node's socket holds."""
DATAGRAM_HEAD = 28
"""Octets of IPv4 and UDP."""
SEGMENT = 1448
SEGMENT_HEAD = 52
"""IPv4, TCP with timestamps."""
HANDSHAKES = 7 * SEGMENT_HEAD
"""SYN, SYN-ACK, ACK; two FINs and their ACKs."""
SYN_RTO_S = 1.0
RTO_S = 0.2
"""Linux's first retransmissions, of a SYN and of data."""
_VERIFIED_LIMIT = 1 << 16

_check_signature = core_table.check_signature
_verified: set[tuple[bytes, bytes]] = set()


def _check_once(batch: Batch, content: BatchContent) -> None:
    """A signature is the same for everybody, so that one of the nodes checks it. (Wrong ones are checked each time.)"""
    signed = (batch.content, batch.signature)
    if signed not in _verified:
        _check_signature(batch, content)
        if len(_verified) >= _VERIFIED_LIMIT:
            _verified.clear()
        _verified.add(signed)


core_table.check_signature = _check_once


class Weather(NamedTuple):
    loss: float = 0.0
    duplicate: float = 0.0
    least_delay_s: float = 0.0002
    greatest_delay_s: float = 0.002
    """Uniform between: a wide range reorders."""


class Change(NamedTuple):
    when: float
    seer: int
    name: str
    status: str


class WatchedRoster(Roster):
    """Tells of every change of a status."""

    def __init__(self, told: Callable[[Member], None], base: Roster | None) -> None:
        super().__init__(base)
        self._told = told

    def put(self, after: Member) -> Member | None:
        before = super().put(after)
        if before is None or before.status != after.status:
            self._told(after)
        return before


class Simulation:
    def __init__(
        self,
        seed: int,
        count: int,
        *,
        weather: Weather = Weather(),
        encrypted: bool = False,
        settings: Settings = LAN,
        acquainted: bool = False,
    ) -> None:
        """``acquainted``: everybody knows everybody and all certificates; else all join the first."""
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.weather = weather
        self.cluster = Cluster(self.rng, WALL)
        self.nodes: dict[int, GossipNode] = {}
        self.packets = 0
        self.octets = 0
        """On the wire: headers of IP, UDP and TCP included, of Ethernet not."""
        self.sent: dict[int, int] = {}
        """The same, by sender."""
        self.blocked: set[tuple[int, int]] = set()
        """(from, to): one way."""
        self.frozen: set[int] = set()
        self.history: list[Change] = []
        self.wall_steps: dict[int, float] = {}
        """How far a node's wall clock is off."""
        self._settings = settings
        self._keys = (self.rng.randbytes(16),) if encrypted else ()
        self._papers: dict[int, Papers] = {}
        self._addresses: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self._lives: dict[int, int] = {}
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = 0
        self._held: dict[int, list[Callable[[], None]]] = {}
        self._wakes: dict[int, float] = {}
        self._known: tuple[Roster, Table] | None = None
        if acquainted:
            self._known = self._acquaint(count)
        for number in range(1, count + 1):
            self.start(number)
            if number > 1 and not acquainted:
                self.join(number, 1)

    # Acts of fate

    def start(self, number: int, *, address: str = "", remembering: Iterable[Batch] | None = None) -> GossipNode:
        """A new process, also after :meth:`kill`: with nothing in memory but what is to be ``remembering``."""
        papers = self._paper(number)
        if address:
            self._numbers.pop(self._addresses.get(number, ""), None)
            self._addresses[number] = address
        here = self._address(number)
        self._numbers[here] = number
        self._lives[number] = self._lives.get(number, 0) + 1
        first = self._lives[number] == 1 and self._known is not None
        roster, table = self._known if first and self._known is not None else (None, None)
        node = GossipNode(
            node_id=papers.id,
            name=f"h{number}",
            address=ipaddress.ip_address(here),
            port=PORT,
            tags={"vtep": here},
            keys=self._keys,
            key=papers.key,
            certificate=papers.certificate,
            roots=self.cluster.roots,
            leases=self.cluster.leases(papers.id, f"10.{number % 250}.0.0/16"),
            incarnation=self._lives[number],
            rng=random.Random(self.rng.random()),
            now=self.now,
            wall=self.wall(number),
            settings=self._settings,
            roster=WatchedRoster(lambda member: self._note(number, member), roster),
            table=Table(table),
        )
        if remembering is not None:
            node.remember(remembering, self.now)
        self.nodes[number] = node
        self._held[number] = []
        self._transmit(number)
        return node

    def join(self, number: int, other: int) -> None:
        self.nodes[number].join([(self._address(other), PORT)], self.now)
        self._transmit(number)

    def kill(self, number: int) -> None:
        del self.nodes[number]
        self.frozen.discard(number)
        self._wakes.pop(number, None)

    def freeze(self, number: int) -> None:
        """Its process stands still; its socket does not."""
        self.frozen.add(number)

    def thaw(self, number: int) -> None:
        self.frozen.discard(number)
        held, self._held[number] = self._held[number], []
        # An event loop may see its timers before its sockets.
        if self.rng.random() < 0.5:
            self._tick(number)
        for action in held:
            action()
        self._tick(number)

    def partition(self, *sides: Collection[int]) -> None:
        self.blocked = {(a, b) for one in sides for other in sides if one is not other for a in one for b in other}

    def heal(self) -> None:
        self.blocked = set()

    # What nodes do

    def put(self, number: int, id_: str, host: int) -> None:
        row = endpoint(f"10.{number % 250}.{host // 250}.{host % 250 + 1}", f"{number}-{id_}-{host}")
        self.nodes[number].put("endpoint", id_, row, self.now)
        self._transmit(number)

    def delete(self, number: int, id_: str) -> None:
        self.nodes[number].delete("endpoint", id_, self.now)
        self._transmit(number)

    def act(self, number: int, action: Callable[[GossipNode], None]) -> None:
        action(self.nodes[number])
        self._transmit(number)

    # What can be seen

    def wall(self, number: int) -> float:
        return WALL + self.now + self.wall_steps.get(number, 0.0)

    def names(self, number: int) -> set[str]:
        return {value.name for _, _, value in self.nodes[number].rows(self.wall(number)) if hasattr(value, "name")}

    def statuses(self, number: int) -> dict[str, str]:
        return {member.name: member.status for member in self.nodes[number].members()}

    def roots(self) -> set[int]:
        return {node.table.root for node in self.nodes.values()}

    def deaths(self, since: float = 0.0) -> list[tuple[float, int, str]]:
        return [(when, who, what) for when, who, what, status in self.history if status == "dead" and when >= since]

    # Time

    def run(self, seconds: float, *, until: Callable[[], bool] | None = None) -> float:
        """Let time pass; stop early once ``until`` holds (looked at every 10 ms). How long it took."""
        begun, end = self.now, self.now + seconds
        look = self.now
        events = self._events
        while True:
            if until is not None and self.now >= look:
                if until():
                    return self.now - begun
                look = self.now + 0.01
            if not events or events[0][0] > end:
                self.now = end
                return self.now - begun
            due, _, action, arguments = heapq.heappop(events)
            if due > self.now:
                self.now = due
            action(*arguments)

    def at(self, delay_s: float, action: Callable[..., None], *arguments: object) -> None:
        self._order += 1
        heapq.heappush(self._events, (self.now + delay_s, self._order, action, arguments))

    # Machinery

    def _address(self, number: int) -> str:
        return self._addresses.setdefault(number, f"192.{number // 62500}.{number // 250 % 250}.{number % 250}")

    def _paper(self, number: int) -> Papers:
        if number not in self._papers:
            self._papers[number] = self.cluster.papers(f"id{number}")
        return self._papers[number]

    def _acquaint(self, count: int) -> tuple[Roster, Table]:
        """What all would know after a while."""
        table = Table()
        for number in range(1, count + 1):
            papers = self._paper(number)
            author = Author(papers.id, papers.key, 1)
            signed = self.cluster.leases(papers.id, f"10.{number % 250}.0.0/16")
            author.put("certificate", "", Certificate(papers.certificate))
            author.put("leases", "", Leases(signed.content, signed.signature, signed.certificate))
            batches = author.flush()
            author.republished()
            for batch in [*batches, *author.flush()]:
                table.receive(batch)
        roster = Roster()
        for number in range(1, count + 1):
            here = self._address(number)
            tags = {"vtep": here, "id": f"id{number}", VXNET_TAG: "1"}
            address = ipaddress.ip_address(here)
            roster.put(
                Member(
                    f"h{number}",
                    f"id{number}",
                    address,
                    tags,
                    "alive",
                    1,
                    PORT,
                    encode_tags(tags),
                    wire.VERSIONS,
                    self.now,
                )
            )
        return roster, table

    def _delay(self) -> float:
        weather = self.weather
        return weather.least_delay_s + (weather.greatest_delay_s - weather.least_delay_s) * self.rng.random()

    def _transmit(self, number: int) -> None:
        node = self.nodes[number]
        packets = node.datagrams_to_send(self.now)
        if packets:
            weather, rng, blocked = self.weather, self.rng, self.blocked
            sender = (self._addresses[number], PORT)
            for data, addr in packets:
                size = len(data) + DATAGRAM_HEAD
                self.packets += 1
                self.octets += size
                self.sent[number] = self.sent.get(number, 0) + size
                target = self._numbers.get(addr[0])
                copies = 2 if weather.duplicate and rng.random() < weather.duplicate else 1
                for _ in range(copies):
                    if weather.loss and rng.random() < weather.loss:
                        continue
                    if target in self.nodes and not (blocked and (number, target) in blocked):
                        self.at(self._delay(), self._deliver, target, self.nodes[target], data, sender)
        for stream in node.streams_to_open():
            self._dial(number, node, stream)
        while node.next_event() is not None:
            pass
        due = node.get_timer()
        if due is not None and self._wakes.get(number, 0.0) != due:
            self._wakes[number] = due
            self.at(max(0.0, due - self.now), self._tick_if, number, due)

    def _tick_if(self, number: int, due: float) -> None:
        if self._wakes.get(number) == due and number in self.nodes:
            del self._wakes[number]
            self._tick(number)

    def _tick(self, number: int) -> None:
        if number not in self.frozen:
            # datagrams_to_send() does what is due.
            self._transmit(number)

    def _deliver(self, target: int, node: GossipNode, data: bytes, sender: Address) -> None:
        if self.nodes.get(target) is not node:
            return
        if target in self.frozen:
            if len(self._held[target]) < SOCKET_BUFFER:
                self._held[target].append(lambda: self._deliver(target, node, data, sender))
            return
        node.receive_datagram(data, sender, self.now)
        self._transmit(target)

    def _dial(self, number: int, node: GossipNode, stream: Stream) -> None:
        """TCP: what is lost comes later, which may be too late; silence where the other end does not answer."""
        failed_at = self.now + stream.timeout_s

        def fail() -> None:
            if self.nodes.get(number) is node:
                stream.fail(self.now)
                if number not in self.frozen:
                    self._transmit(number)

        def is_open(target: int) -> bool:
            ways = {(number, target), (target, number)}
            return target in self.nodes and target not in self.frozen and not ways & self.blocked

        def connect() -> None:
            target = self._numbers.get(stream.addr[0])
            if self.nodes.get(number) is not node:
                # Who has died in the meantime retransmits no SYN.
                return
            if target not in self.nodes:
                fail()
            elif not is_open(target):
                self.at(max(0.0, failed_at - self.now), fail)
            else:
                accepted = self.nodes[target].accept((self._addresses[number], 40000))
                answer = accepted.receive(stream.to_send, self.now)
                self._count_stream(number, len(stream.to_send))
                self._count_stream(target, len(answer))
                self._transmit(target)
                if not stream.done:
                    arrives = self.now + self._delay() + self._retransmitted(RTO_S)
                    if arrives > failed_at:
                        self.at(max(0.0, failed_at - self.now), fail)
                    else:
                        self.at(arrives - self.now, reply, answer)

        def reply(answer: bytes) -> None:
            if self.nodes.get(number) is not node:
                return
            if number in self.frozen:
                self._held[number].append(lambda: reply(answer))
                return
            stream.receive(answer, self.now)
            self._transmit(number)

        opened = self.now + 3 * self._delay() + self._retransmitted(SYN_RTO_S, 2) + self._retransmitted(RTO_S)
        if opened > failed_at:
            self.at(stream.timeout_s, fail)
        else:
            self.at(opened - self.now, connect)

    def _retransmitted(self, timeout_s: float, packets: int = 1) -> float:
        """How long lost ones hold up a connection: each time twice as long (RFC 6298)."""
        delay, reached = 0.0, (1 - self.weather.loss) ** packets
        while reached < 1 and delay < 60 and self.rng.random() > reached:
            delay, timeout_s = delay + timeout_s, 2 * timeout_s
        return delay

    def _count_stream(self, number: int, octets: int) -> None:
        """Acknowledgements are the other side's: one for every second segment."""
        segments = -(-octets // SEGMENT)
        size = octets + segments * SEGMENT_HEAD * 3 // 2 + HANDSHAKES // 2
        self.octets += size
        self.sent[number] = self.sent.get(number, 0) + size

    def _note(self, number: int, member: Member) -> None:
        self.history.append(Change(self.now, number, member.name, member.status))
