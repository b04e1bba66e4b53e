"""An underlay that loses packets, doubles them and lets later ones overtake (underlay_relay): streams arrive whole,
each datagram arrives as it was sent, and the counters know how many there were.
"""

from __future__ import annotations

import os
import random
import select
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest

from tests.host.rig import wait_until
from tests.host.underlay_relay import CLEAN, Fate, Relay
from tests.host.uvxlan_rig import End, Kind, Pair, give_addresses, stream

pytestmark = [pytest.mark.host, pytest.mark.slow]

PAIRS: Sequence[tuple[Kind, Kind]] = [("user", "user"), ("user", "kernel")]
FATES = {
    "loss": Fate(lost=0.01),
    "duplicates": Fate(doubled=0.05),
    "reordering": Fate(held=0.02),
    "all three": Fate(lost=0.005, doubled=0.02, held=0.01),
}
PIECES = 5
NAMES = "one", "two"
"""Of the ends, as the relay has them."""
UDP = socket.IPPROTO_UDP
_RCVBUFFORCE, _UDP_SEGMENT = 33, 103


@pytest.fixture
def relay(rng: random.Random) -> Iterator[Relay]:
    relay = Relay(rng)
    yield relay
    relay.close()


@pytest.mark.parametrize("kinds", PAIRS, ids=" and ".join)
def test_packets_are_lost_doubled_and_late(
    make_pair: Callable[..., Pair], relay: Relay, rng: random.Random, kinds: tuple[Kind, Kind]
) -> None:
    one, two = make_pair(*kinds, between=relay)
    give_addresses((one, two), 4)
    for name, fate in FATES.items():
        for source, sink in ((one, two), (two, one)):
            relay.fate = fate
            stream(source, sink, 4, PIECES)
            sent, came = datagrams(source, sink, relay, rng)
            assert set(came) <= set(sent), f"{name}: what came is not what was sent"
            if fate.lost == 0:
                assert set(came) == set(sent), name
            if fate.doubled == 0:
                assert max(came.values()) == 1, name
            assert len(came) < len(sent) or fate.lost == 0, f"{name}: the relay lost nothing"
            relay.fate = CLEAN
            stream(source, sink, 4, 1, flows=4)
    for end in (one, two):
        end.assert_nothing_refused()
        if end.kind == "user":
            assert end.count("joined_frames") > 0
            # A connection's last words may still be said.
            assert wait_until(partial(all_counted, end, relay)), (
                f"{end.forwarder.counters()}, {relay.came}, {relay.passed}"
            )


def all_counted(end: End, relay: Relay) -> bool:
    counters, name = end.forwarder.counters(), NAMES[end.number - 1]
    return (
        counters.sent_frames == relay.came[name].total()
        and counters.received_frames + overflown(end) == relay.passed[name].total()
    )


def overflown(end: End) -> int:
    """Datagrams for which a socket of this end had no room."""
    names, values = (line.split() for line in end.run("grep", "^Udp:", "/proc/thread-self/net/snmp").splitlines())
    return int(dict(zip(names, values, strict=True))["RcvbufErrors"])


def datagrams(source: End, sink: End, relay: Relay, rng: random.Random) -> tuple[Counter[bytes], Counter[bytes]]:
    """Sent and received, by two flows whose datagrams are such as might be joined: alike in length, and behind one
    another. Each has a number and is random.
    """
    came, passed = relay.came[NAMES[source.number - 1]], relay.passed[NAMES[sink.number - 1]]
    came_before, passed_before = came[UDP], passed[UDP]
    into = [_socket(sink), _socket(sink)]
    out = _socket(source)
    sent: Counter[bytes] = Counter()
    received: Counter[bytes] = Counter()
    for burst in range(60):
        size = rng.choice([5, 200, 1000, 1400])
        made = [struct.pack(">I", burst << 8 | at) + os.urandom(size) for at in range(20)]
        made[-1] = made[-1][: rng.randint(4, size + 4)]
        sent.update(made)
        to = into[burst % 2].getsockname()
        if burst % 3:
            for one in made:
                out.sendto(one, to)
        else:
            out.sendmsg([b"".join(made)], [(UDP, _UDP_SEGMENT, struct.pack("H", size + 4))], 0, to)
        # No more than a TAP's queue holds.
        assert wait_until(lambda: came[UDP] - came_before == sent.total())
    assert wait_until(lambda: not relay.holds)
    while received.total() < passed[UDP] - passed_before:
        ready, _, _ = select.select(into, [], [], 10)
        assert ready, f"{passed[UDP] - passed_before} left the underlay, {received.total()} came out of the tunnel"
        received.update(one_socket.recv(65536) for one_socket in ready)
    for each in (out, *into):
        each.close()
    return sent, received


def _socket(end: End) -> socket.socket:
    made = end.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 16 << 20)
    made.bind((end.address(4), 0))
    made.setblocking(False)
    return made
