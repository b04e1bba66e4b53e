"""Who empties the TAPs: one thread serves both directions while there is little to do, two where one fills a core."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.host.uvxlan_rig import MACS, PATIENCE_S, VNI, End, Pair

pytestmark = pytest.mark.host

FRAME = bytes(Ether(src=MACS[0], dst=MACS[1]) / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=5, dport=6) / Raw(b"x"))
BROADCAST = b"\xff" * 6 + FRAME[6:]
NOWHERE = [f"198.18.0.{number}" for number in range(250)]
"""So many get a broadcast: a frame a millisecond fills a core."""
BURST_S = 0.05


class Threads:
    """The two of a forwarder with one queue, in the order in which they were started: sender, receiver."""

    def __init__(self, end: End) -> None:
        self.pid = end.forwarders_pid()
        self.all = sorted(int(name) for name in os.listdir(f"/proc/{self.pid}/task"))
        control, self._sender, _receiver = self.all
        assert control == self.pid

    def senders_time(self) -> int:
        """Nanoseconds that the sender's thread has run."""
        return int(Path(f"/proc/{self.pid}/task/{self._sender}/schedstat").read_text().split()[0])


def wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def send_one(end: End, out: socket.socket) -> None:
    before = end.count("sent_frames")
    out.send(FRAME)
    end.wait_count("sent_frames", before + 1)


def test_a_second_thread_helps_while_one_fills_a_core(make_pair: Callable[..., Pair]) -> None:
    one, _two = make_pair()
    threads = Threads(one)
    with one.raw() as out:
        idle = threads.senders_time()
        for _ in range(10):
            send_one(one, out)
        assert threads.senders_time() == idle, "the receiver's thread has sent them"

        one.sh(f"ip route add 198.18.0.0/15 via {one.remote}")
        one.forwarder.set_flood(VNI, [socket.inet_aton(address) for address in NOWHERE])
        # Whatever else this machine does: the forwarder gets a core when it wants one.
        for thread in threads.all:
            os.sched_setscheduler(thread, os.SCHED_RR, os.sched_param(1))

        def helps() -> bool:
            end = time.monotonic() + BURST_S
            while time.monotonic() < end:
                out.send(BROADCAST)
            return threads.senders_time() > idle

        wait(helps, "the sender's thread sends")

        def rests() -> bool:
            before = threads.senders_time()
            for _ in range(3):
                send_one(one, out)
            return threads.senders_time() == before

        wait(rests, "the sender's thread sleeps again")
