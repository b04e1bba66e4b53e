"""A cluster in virtual time: the real core, a network that behaves as badly as it is told to.

The same seed gives the same run, event for event. Nothing sleeps; a minute of ten nodes takes about a second.

    sim = Simulation(seed, 5)
    sim.run(10)                      # ten seconds pass
    sim.partition({1, 2}, {3, 4, 5})
    ...
"""

from __future__ import annotations

import heapq
import ipaddress
import random
from collections.abc import Callable, Collection
from typing import NamedTuple

from tests.gossip_cluster import Cluster, Papers, endpoint
from vxnet.core.gossip import GossipNode
from vxnet.core.members import Address
from vxnet.core.stream import Stream
from vxnet.core.timing import LAN, Settings

PORT = 7946
WALL = 1_800_000_000.0
"""Wall clock at virtual time 0."""
SOCKET_BUFFER = 2000
"""Datagrams that a frozen node's socket holds."""


class Weather(NamedTuple):
    loss: float = 0.0
    duplicate: float = 0.0
    least_delay_s: float = 0.0002
    greatest_delay_s: float = 0.002
    """Uniform between: a wide range reorders."""


class Event(NamedTuple):
    due: float
    order: int
    action: Callable[[], None]


class Simulation:
    def __init__(
        self, seed: int, count: int, *, weather: Weather = Weather(), encrypted: bool = False, settings: Settings = LAN
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.weather = weather
        self.cluster = Cluster(self.rng, WALL)
        self.nodes: dict[int, GossipNode] = {}
        self.packets = 0
        self.octets = 0
        self.blocked: set[tuple[int, int]] = set()
        """(from, to): one way."""
        self.frozen: set[int] = set()
        self.history: list[tuple[float, int, str, str]] = []
        """(when, who saw it, which node, its new status)."""
        self._settings = settings
        self._keys = (self.rng.randbytes(16),) if encrypted else ()
        self._papers: dict[int, Papers] = {}
        self._addresses: dict[int, str] = {}
        self._lives: dict[int, int] = {}
        self._events: list[Event] = []
        self._order = 0
        self._held: dict[int, list[Callable[[], None]]] = {}
        self._wakes: dict[int, float] = {}
        self._seen: dict[int, dict[str, str]] = {}
        for number in range(1, count + 1):
            self.start(number)
            if number > 1:
                self.join(number, 1)

    # Acts of fate

    def start(self, number: int, *, address: str = "") -> GossipNode:
        """A new process, also after :meth:`kill`: with nothing in memory."""
        if number not in self._papers:
            self._papers[number] = self.cluster.papers(f"id{number}")
        papers = self._papers[number]
        self._addresses[number] = address or self._addresses.get(number) or f"192.0.{2 + number // 250}.{number % 250}"
        self._lives[number] = self._lives.get(number, 0) + 1
        node = GossipNode(
            node_id=papers.id,
            name=f"h{number}",
            address=ipaddress.ip_address(self._addresses[number]),
            port=PORT,
            tags={"vtep": self._addresses[number]},
            keys=self._keys,
            key=papers.key,
            certificate=papers.certificate,
            roots=self.cluster.roots,
            leases=self.cluster.leases(papers.id, f"10.{number}.0.0/16"),
            incarnation=self._lives[number],
            rng=random.Random(self.rng.random()),
            now=self.now,
            wall=WALL + self.now,
            settings=self._settings,
        )
        self.nodes[number] = node
        self._held[number] = []
        self._seen[number] = {}
        self._transmit(number)
        return node

    def join(self, number: int, other: int) -> None:
        self.nodes[number].join([(self._addresses[other], PORT)], self.now)
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
        for action in held:
            action()
        self._tick(number)

    def partition(self, *sides: Collection[int]) -> None:
        self.blocked = {(a, b) for one in sides for other in sides if one is not other for a in one for b in other}

    def heal(self) -> None:
        self.blocked = set()

    # What nodes do

    def put(self, number: int, id_: str, host: int) -> None:
        row = endpoint(f"10.{number}.{host // 250}.{host % 250 + 1}", f"{number}-{id_}-{host}")
        self.nodes[number].put("endpoint", id_, row, self.now)
        self._transmit(number)

    def delete(self, number: int, id_: str) -> None:
        self.nodes[number].delete("endpoint", id_, self.now)
        self._transmit(number)

    def act(self, number: int, action: Callable[[GossipNode], None]) -> None:
        action(self.nodes[number])
        self._transmit(number)

    # What can be seen

    def names(self, number: int) -> set[str]:
        return {value.name for _, _, value in self.nodes[number].rows(WALL + self.now) if hasattr(value, "name")}

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
        while True:
            if until is not None and self.now >= look:
                if until():
                    return self.now - begun
                look = self.now + 0.01
            if not self._events or self._events[0].due > end:
                self.now = end
                return self.now - begun
            event = heapq.heappop(self._events)
            self.now = max(self.now, event.due)
            event.action()

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, Event(self.now + delay_s, self._order, action))

    # Machinery

    def _number(self, addr: Address) -> int | None:
        return next((n for n, address in self._addresses.items() if address == addr[0] and n in self.nodes), None)

    def _delay(self) -> float:
        return self.rng.uniform(self.weather.least_delay_s, self.weather.greatest_delay_s)

    def _transmit(self, number: int) -> None:
        node = self.nodes[number]
        for data, addr in node.datagrams_to_send(self.now):
            self.packets += 1
            self.octets += len(data)
            target = self._number(addr)
            copies = 2 if self.rng.random() < self.weather.duplicate else 1
            for _ in range(copies):
                lost = self.rng.random() < self.weather.loss
                if target is not None and not lost and (number, target) not in self.blocked:
                    self._post(target, data, (self._addresses[number], PORT))
        for stream in node.streams_to_open():
            self._dial(number, node, stream)
        while node.next_event() is not None:
            pass
        if node.take_changes():
            self._note(number)
        due = node.get_timer()
        if due is not None and self._wakes.get(number, 0.0) != due:
            self._wakes[number] = due
            self.at(max(0.0, due - self.now), lambda: self._tick_if(number, due))

    def _tick_if(self, number: int, due: float) -> None:
        if self._wakes.get(number) == due and number in self.nodes:
            self._wakes.pop(number)
            self._tick(number)

    def _tick(self, number: int) -> None:
        if number in self.frozen:
            return
        self.nodes[number].handle_timer(self.now)
        self._transmit(number)

    def _post(self, target: int, data: bytes, sender: Address) -> None:
        node = self.nodes[target]

        def deliver() -> None:
            if self.nodes.get(target) is not node:
                return
            if target in self.frozen:
                if len(self._held[target]) < SOCKET_BUFFER:
                    self._held[target].append(deliver)
                return
            node.receive_datagram(data, sender, self.now)
            self._transmit(target)

        self.at(self._delay(), deliver)

    def _dial(self, number: int, node: GossipNode, stream: Stream) -> None:
        """TCP: all or nothing, and silence where the other end does not answer."""
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
            target = self._number(stream.addr)
            if target is None:
                fail()
            elif not is_open(target):
                self.at(max(0.0, failed_at - self.now), fail)
            else:
                accepted = self.nodes[target].accept((self._addresses[number], 40000))
                answer = accepted.receive(stream.to_send, self.now)
                self.octets += len(stream.to_send) + len(answer)
                self._transmit(target)
                if not stream.done:
                    self.at(self._delay(), lambda: reply(answer))

        def reply(answer: bytes) -> None:
            if self.nodes.get(number) is not node:
                return
            if number in self.frozen:
                self._held[number].append(lambda: reply(answer))
                return
            stream.receive(answer, self.now)
            self._transmit(number)

        # A handshake, then the data; lost segments only cost time.
        self.at(2 * self._delay() * (1 + 4 * self.weather.loss), connect)

    def _note(self, number: int) -> None:
        seen = self._seen[number]
        for name, status in self.statuses(number).items():
            if seen.get(name) != status:
                seen[name] = status
                self.history.append((self.now, number, name, status))
