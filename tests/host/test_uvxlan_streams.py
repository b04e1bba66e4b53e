"""Long streams through the user-space tunnel: to its like, the kernel's and Open vSwitch's, with more queues, and with
offloads on and off on either side.
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.host.uvxlan_rig import VNI, End, Kind, Pair, Talker, give_addresses, stream

pytestmark = [pytest.mark.host, pytest.mark.slow]

PIECES = 300
"""Of about a megabyte."""
PAIRS: Sequence[tuple[Kind, Kind]] = [("user", "user"), ("user", "kernel"), ("kernel", "user")]


@pytest.mark.parametrize("kinds", PAIRS, ids=" to ".join)
@pytest.mark.parametrize("version", [4, 6])
def test_300_megabytes_arrive_whole(make_pair: Callable[..., Pair], kinds: tuple[Kind, Kind], version: int) -> None:
    """Both the underlay and what is in the tunnel are of this version; every frame of the other is in test_uvxlan."""
    one, two = make_pair(*kinds, family=version)
    give_addresses((one, two), version)
    stream(one, two, version, PIECES)
    if kinds == ("user", "user"):
        assert two.count("joined_frames") > 10_000
    one.assert_nothing_refused()
    two.assert_nothing_refused()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_300_megabytes_to_open_vswitch_and_back(make_pair: Callable[..., Pair]) -> None:
    one, two = make_pair("user", "ovs")
    # Open vSwitch reads from the card what the sender left to it: nothing, as with a card of its own.
    for end in (one, two):
        end.sh("ethtool -K eth0 tx off")
    give_addresses((one, two), 4)
    one.sh("ping -c 1 -W 1 -w 20 10.0.0.2")  # it asks for our MAC on the underlay first
    stream(one, two, 4, PIECES)
    stream(two, one, 4, PIECES)
    one.assert_nothing_refused()


@pytest.mark.parametrize("kinds", PAIRS[:2], ids=" and ".join)
def test_segments_with_the_same_addresses(make_pair: Callable[..., Pair], kinds: tuple[Kind, Kind]) -> None:
    """At the same time, with the same ports: what is joined is of one segment."""
    one, two = make_pair(*kinds)
    pairs: list[tuple[Talker, Talker]] = [(one, two)]
    with ExitStack() as stack:
        for vni in (1, (1 << 24) - 1):
            pairs.append((one.segment(vni), two.segment(vni)))
            for talker in pairs[-1]:
                stack.callback(talker.close)
        for pair in pairs:
            give_addresses(pair, 4)
        threads = stack.enter_context(ThreadPoolExecutor(len(pairs)))
        for source in (0, 1):
            ends = [threads.submit(stream, pair[source], pair[1 - source], 4, 10, port=5000) for pair in pairs]
            for end in ends:
                end.result()
    one.assert_nothing_refused()
    two.assert_nothing_refused()


@pytest.mark.parametrize(("version", "mtu", "told"), [(4, 1400, 1350), (6, 1400, 1350), (6, 1300, 1280)])
def test_a_stream_over_a_path_that_is_too_narrow(
    make_pair: Callable[..., Pair], version: int, mtu: int, told: int
) -> None:
    """Told to the sender; as far as it need not obey, in fragments."""
    one, two = make_pair()
    give_addresses((one, two), version)
    for end in (one, two):
        end.sh(f"ip link set eth0 mtu {mtu}")
    stream(one, two, version, 10)
    stream(two, one, version, 10)
    assert one.count("too_big") > 0
    narrowed = one.run("ip", f"-{version}", "route", "get", two.address(version))
    assert f"mtu {told}" in narrowed, narrowed


@pytest.mark.parametrize("kinds", PAIRS, ids=" to ".join)
def test_a_stream_with_ipv6_extension_headers(make_pair: Callable[..., Pair], kinds: tuple[Kind, Kind]) -> None:
    """The kernel leaves such frames uncut as well."""
    one, two = make_pair(*kinds)
    give_addresses((one, two), 6)
    # Room for the next header's kind, length in eights, and PadN (RFC 8200 section 4.2).
    stream(one, two, 6, 3, extensions=bytes((0, 0, 1, 4)) + bytes(4))
    one.assert_nothing_refused()
    two.assert_nothing_refused()


@pytest.mark.parametrize("kinds", PAIRS[:2], ids=" and ".join)
def test_more_queues(make_pair: Callable[..., Pair], kinds: tuple[Kind, Kind]) -> None:
    one, two = make_pair(*kinds, queues=3)
    give_addresses((one, two), 4)
    (link,) = json.loads(one.run("ip", "-d", "-j", "link", "show", "tunnel"))
    assert link["linkinfo"]["info_data"]["multi_queue"] is True
    assert link["linkinfo"]["info_data"]["numqueues"] == 3
    assert len(list(Path(f"/proc/{one.forwarders_pid()}/task").iterdir())) == 1 + 2 * 3
    for source, sink in ((one, two), (two, one)):
        stream(source, sink, 4, 5, flows=12)
    one.assert_nothing_refused()
    two.assert_nothing_refused()


@pytest.mark.parametrize("version", [4, 6])
def test_between_virtual_machines_of_one_computer(make_pair: Callable[..., Pair], version: int) -> None:
    """Whose cards cut, and leave checksums to each other, as there is no wire on which a frame could be damaged."""
    one, two = make_pair("kernel", "user", virtual_underlay=False)
    give_addresses((one, two), version)
    one.sh("ethtool -K eth0 tso off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off")
    one.sh("ethtool -K eth0 tx-udp-segmentation off")
    stream(one, two, version, 20)
    stream(two, one, version, 20)
    if version == 4:
        datagrams(one, two)
        datagrams(two, one)
    assert two.count("joined_frames") > 10_000
    two.assert_nothing_refused()


@pytest.mark.parametrize("joins", [True, False])
def test_udp_that_the_kernels_tunnel_left_uncut(make_pair: Callable[..., Pair], joins: bool) -> None:
    """Also into a TAP that takes no joined UDP (before Linux 6.2)."""
    one, two = make_pair("kernel", "user")
    give_addresses((one, two), 4)
    two.forwarder.set_mtu(VNI, two.mtu, udp_joins=joins)
    datagrams(one, two)
    two.assert_nothing_refused()


# Offloads

SWITCHES = [(card, name) for card in ("tunnel", "eth0") for name in ("tx", "tso", "gso", "gro")]


@pytest.mark.slow
@pytest.mark.parametrize("kinds", PAIRS[:2], ids=" and ".join)
def test_offloads_on_and_off(make_pair: Callable[..., Pair], kinds: tuple[Kind, Kind], rng: random.Random) -> None:
    """All combinations of one end's, one switch at a time (a Gray code), beside arbitrary ones of the other's."""
    one, two = make_pair(*kinds)
    give_addresses((one, two), 4)
    state = {one: dict.fromkeys(SWITCHES, True), two: dict.fromkeys(SWITCHES, True)}
    for end in (one, two):
        for card, name in SWITCHES:
            end.sh(f"ethtool -K {card} {name} on")

    def turn(end: End, which: tuple[str, str]) -> None:
        state[end][which] = not state[end][which]
        # A card that is not to fill in checksums does not cut either: that is refused, and remembered for later.
        end.run("ethtool", "-K", *which, "on" if state[end][which] else "off", check=False)

    for step in range(1, 1 << len(SWITCHES)):
        turn(one, SWITCHES[(step & -step).bit_length() - 1])
        turn(two, rng.choice(SWITCHES))
        try:
            for source, sink in ((one, two), (two, one)):
                stream(source, sink, 4, 1)
                datagrams(source, sink)
        except AssertionError as error:
            raise AssertionError(f"with {state[one]} and {state[two]}") from error
    one.assert_nothing_refused()
    two.assert_nothing_refused()


UDP_SEGMENT = 103


def datagrams(source: End, sink: End) -> None:
    """Some alone and some that the sender's kernel is to cut: each arrives whole, and as one."""

    def open_socket(end: End) -> socket.socket:
        made = end.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((end.address(4), 0))
        made.settimeout(10)
        return made

    with open_socket(source) as out, open_socket(sink) as into:
        sent = [struct.pack(">I", at) + os.urandom(size - 4) for at, size in enumerate([1000] * 9 + [700, 5, 1400])]
        for one in sent:
            out.sendto(one, into.getsockname())
        cut = [os.urandom(900) for _ in range(20)] + [os.urandom(33)]
        size = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", 900))]
        out.sendmsg([b"".join(cut)], size, 0, into.getsockname())
        assert sorted(into.recv(65536) for _ in sent + cut) == sorted(sent + cut)
