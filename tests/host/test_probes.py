"""Packets to the VXLAN port between two throw-away hosts, and what is told of them: nft and a card that leaves its
checksums undone are the faults."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterator

import pytest

from tests.host.throwaway import Host, wire
from vxnet.host.probes import Arrived, Line, room

pytestmark = pytest.mark.host

ADDRESSES = (ipaddress.ip_address("192.168.56.11"), ipaddress.ip_address("192.168.56.12"))
VNI = 0xFFFFFF


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    one, other = Host(), Host()
    wire(one, "eth0", other, "eth0")
    for host, address in zip((one, other), ADDRESSES, strict=True):
        host.sh(f"ip addr add {address}/24 dev eth0")
    yield one, other
    one.close()
    other.close()


@pytest.fixture
def lines(hosts: tuple[Host, Host]) -> Iterator[Callable[..., Line]]:
    made: list[tuple[Host, Line]] = []

    def make(number: int, *, kernel: bool = True) -> Line:
        host = hosts[number]
        made.append((host, host.do(Line, ADDRESSES[number], 4789, VNI, 1500, kernel=kernel)))
        return made[-1][1]

    yield make
    for host, line in made:
        host.do(line.close)


def arrived(line: Line, count: int) -> list[Arrived]:
    found: list[Arrived] = []
    until = time.monotonic() + 5
    while len(found) < count and time.monotonic() < until:
        found += line.heard()
        time.sleep(0.01)
    time.sleep(0.05)  # what is too much would come now
    return found + line.heard()


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "by hand"])
def test_both_sizes_arrive_and_are_sound(hosts: tuple[Host, Host], lines: Callable[..., Line], kernel: bool) -> None:
    far, near = lines(1, kernel=kernel), lines(0, kernel=kernel)
    large = b"L".ljust(room(1500, 4), b"\x55")
    for content in (b"small", large):
        hosts[0].do(near.send, [ADDRESSES[1]], content)
    found = arrived(far, 4)
    assert sorted((one.content[:5], one.passed, one.damaged) for one in found) == sorted(
        (content[:5], passed, False) for content in (b"small", large) for passed in (False, True)
    )
    assert {len(one.content) for one in found} == {5, len(large)}
    assert near.heard() == [], "one's own packets are not heard"


def test_a_firewall_is_seen_behind_the_card(hosts: tuple[Host, Host], lines: Callable[..., Line]) -> None:
    hosts[1].sh(
        "nft add table ip filter; nft add chain ip filter INPUT '{ type filter hook input priority 0; policy drop; }'"
    )
    far, near = lines(1), lines(0)
    hosts[0].do(near.send, [ADDRESSES[1]], b"small")
    assert [one.passed for one in arrived(far, 1)] == [False]


def test_other_peoples_packets_are_not_heard(hosts: tuple[Host, Host], lines: Callable[..., Line]) -> None:
    far, near = lines(1), hosts[0].do(Line, ADDRESSES[0], 4789, VNI - 1, 1500, kernel=False)
    hosts[0].do(near.send, [ADDRESSES[1]], b"small")
    assert arrived(far, 0) == []
    hosts[0].do(near.close)


def test_nothing_is_left(hosts: tuple[Host, Host]) -> None:
    line = hosts[0].do(Line, ADDRESSES[0], 4789, VNI, 1500, kernel=True)
    hosts[0].do(line.close)
    assert "vxlan" not in hosts[0].run("ip", "-d", "link")
    assert hosts[0].run("ss", "-Hlnu", "sport", "=", ":4789") == ""
