"""A container, or a host that is switched off, that would have the forwarder for itself: the others go on."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import time
from collections.abc import Callable

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.host.uvxlan_rig import MACS, VNI, End, Pair, octets

pytestmark = [pytest.mark.host, pytest.mark.slow]

_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
_PIDFD_GETFD = 438
_NEEDS_CSUM, _TCPV4, _UDP_L4 = 1, 1, 5
ALL = "ff:ff:ff:ff:ff:ff"
GROUP = 200
"""VTEPs of a network."""


def send_uncut(end: End, protocol: type[TCP] | type[UDP], to: str, part: int, payload: int, times: int = 1) -> None:
    """Frames that are to be cut, as a container may send them."""
    segment = TCP(flags="A") if protocol is TCP else UDP(sport=7, dport=9)
    frame = bytes(Ether(src=MACS[0], dst=to) / IP(src="10.0.0.1", dst="10.0.0.2") / segment / Raw(bytes(payload)))
    kind, at = (_TCPV4, 16) if protocol is TCP else (_UDP_L4, 6)
    header = struct.pack("=BBHHHH", _NEEDS_CSUM, kind, len(frame) - payload, part, 34, at)
    with end.raw() as sender:
        sender.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        for _ in range(times):
            end.do(sender.sendall, header + frame)


def test_a_frame_of_too_many_pieces_or_of_tcp_to_a_group_is_refused(make_pair: Callable[..., Pair]) -> None:
    one, two = make_pair("user", "user")
    for refused, (to, part) in enumerate(((MACS[1], 1), (ALL, 1400)), 1):
        send_uncut(one, TCP, to, part, 60_000)
        one.wait_count("bad_frame", refused)
    send_uncut(one, TCP, MACS[1], 48, 60_000)
    two.wait_count("received_frames", 1250)
    assert one.count("sent_frames") == 1250


def test_questions_are_answered_amid_many_datagrams(make_pair: Callable[..., Pair]) -> None:
    """What a TAP holds is not sent in one turn, if each frame is many datagrams and goes to many hosts."""
    one, _ = make_pair("user", "user")
    group = [f"192.0.2.{number}" for number in range(3, 3 + GROUP)]
    for address in group:
        one.sh(f"ip neigh replace {address} lladdr 02:00:00:00:00:77 dev eth0")
    one.forwarder.set_flood(VNI, [socket.inet_aton(address) for address in group])
    pid = one.forwarders_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        send_uncut(one, UDP, ALL, 20, 64 * 20, times=32)
    finally:
        os.kill(pid, signal.SIGCONT)
    seen = {one.count("sent_frames")}
    deadline = time.monotonic() + 60
    while max(seen) < 32 * 64 * GROUP:
        seen.add(one.count("sent_frames"))
        assert time.monotonic() < deadline, one.forwarder.counters()
    assert len(seen) > 2, "nothing was answered between the first datagram and the last"


def test_who_does_not_answer_holds_nobody_up(make_pair: Callable[..., Pair]) -> None:
    """Datagrams to a host that is switched off wait for its answer to ARP, here for minutes, and fill a buffer."""
    one, two = make_pair("user", "user")
    one.sh("sysctl -qw net.ipv4.neigh.eth0.retrans_time_ms=600000")
    for lane in lanes(one):
        with lane:
            lane.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    nobody = "02:00:00:00:00:99"
    one.forwarder.put(VNI, {octets(nobody): socket.inet_aton("192.0.2.99")})
    frame = bytes(Ether(src=MACS[1], dst=MACS[0], type=0x88B5) / Raw(b"comes in"))
    with one.raw() as out, one.raw() as came_in, two.raw() as theirs:
        for _ in range(20):
            one.do(out.sendall, bytes(Ether(src=MACS[0], dst=nobody, type=0x88B5) / Raw(bytes(1400))))
        two.do(theirs.sendall, frame)
        while one.do(came_in.recv, 2000) != frame:
            pass
    one.wait_count("not_sent", 1)


def lanes(end: End) -> list[socket.socket]:
    """The sockets that its forwarder sends with."""
    library = ctypes.CDLL(None, use_errno=True)
    pid = end.forwarders_pid()
    handle = os.pidfd_open(pid)
    found = []
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            if not os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:"):
                continue
            taken = socket.socket(fileno=library.syscall(_PIDFD_GETFD, handle, int(number), 0))
            if taken.type == socket.SOCK_DGRAM and taken.getsockname()[1] != 4789:
                found.append(taken)
            else:
                taken.close()
    finally:
        os.close(handle)
    assert len(found) == 5
    return found
