"""What Serf's agents tell each other passes by way of our nodes, and cannot circle, pile up or go astray."""

from __future__ import annotations

import ipaddress
import random

import pytest

from vxnet.core import frame, serf, wire
from vxnet.core.members import Address
from vxnet.core.oldpack import pack
from vxnet.core.relay import MESSAGE_LIMIT, QUEUE_LIMIT, REMEMBERED
from vxnet.core.swim import Swim

AGENTS: list[Address] = [(f"192.0.2.{number}", 7946) for number in (11, 12)]
NODE: Address = ("192.0.2.2", 7946)


class Node:
    """One of ours that knows one other of ours and two agents; what it sends is kept."""

    def __init__(self, rng: random.Random, agents: int = 2) -> None:
        self.now = 10.0
        self.swim = Swim(
            name="h1",
            address=ipaddress.ip_address("192.0.2.1"),
            port=7946,
            tags={"id": "id1", "vxnet": "1"},
            ring=None,
            rng=rng,
            now=self.now,
        )
        others = [(NODE, "h2", {"id": "id2", "vxnet": "1"})]
        others += [(agent, f"s{number}", {"role": "a"}) for number, agent in enumerate(AGENTS[:agents])]
        for (address, port), name, tags in others:
            packed = ipaddress.ip_address(address).packed
            self.hear(wire.Alive(1, name, packed, port, serf.encode_tags(tags), wire.VERSIONS))
        self.run(5)

    def hear(self, message: wire.Message) -> None:
        self.swim.receive_datagram(wire.encode(message), AGENTS[0], self.now)

    def run(self, seconds: float) -> list[tuple[Address, bytes]]:
        """User messages sent meanwhile; everybody acknowledges every ping."""
        sent = []
        for _ in range(int(seconds / 0.05)):
            self.now += 0.05
            self.swim.handle_timer(self.now)
            for data, to in self.swim.datagrams_to_send(self.now):
                for message in frame.open_packet(data, None, ""):
                    if isinstance(message, wire.User):
                        sent.append((to, message.payload))
                    elif isinstance(message, wire.Ping):
                        self.swim.receive_datagram(wire.encode(wire.Ack(message.seq)), to, self.now)
        return sent


def event(number: int, size: int = 10) -> bytes:
    return b"\x03" + pack({"LTime": number, "Name": "deploy", "Payload": b"x" * size, "CC": False})


def query(flags: int) -> bytes:
    return b"\x04" + pack({"LTime": 7, "ID": 1, "Addr": bytes(4), "Port": 7946, "Flags": flags, "Name": "load"})


@pytest.mark.parametrize("payload", [event(5), query(1), b"\x00" + pack({"LTime": 9, "Node": "s1", "Prune": False})])
def test_it_goes_to_agents_a_bounded_number_of_times(rng: random.Random, payload: bytes) -> None:
    node = Node(rng)
    node.hear(wire.User(payload))
    sent = node.run(10)
    assert {to for to, _ in sent} == set(AGENTS) and {found for _, found in sent} == {payload}
    assert len(sent) <= node.swim.settings.retransmissions(4)
    node.hear(wire.User(payload))
    assert not node.run(10)


@pytest.mark.parametrize(
    "payload",
    [
        query(2),  # its asker asks everybody himself
        b"\x05" + pack({"LTime": 1}),  # an answer is for one
        b"\x09" + pack({"DestAddr": bytes(4)}) + b"\x03",
        b"\x03garbage",
        b"\x03" + pack([1]),
        event(5, MESSAGE_LIMIT),
    ],
)
def test_what_is_not_for_everybody_stays(rng: random.Random, payload: bytes) -> None:
    node = Node(rng)
    node.hear(wire.User(payload))
    assert not node.run(5)


def test_without_agents_nothing_is_kept(rng: random.Random) -> None:
    node = Node(rng, agents=0)
    for number in range(50):
        node.hear(wire.User(event(number)))
    assert not node.run(5) and not len(node.swim._relay)


def test_a_flood_stays_within_its_bounds(rng: random.Random) -> None:
    node = Node(rng)
    for number in range(3 * REMEMBERED):
        node.hear(wire.User(event(number)))
        assert len(node.swim._relay) <= QUEUE_LIMIT and len(node.swim._relay._seen) <= REMEMBERED
    assert len(node.run(60)) <= QUEUE_LIMIT * node.swim.settings.retransmissions(4)
    assert not len(node.swim._relay)
