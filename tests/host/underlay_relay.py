"""An underlay that loses packets, doubles them, and lets later ones overtake.

::

    end one: eth0 ── veth ── one │ relay │ two ── veth ── eth0 :end two

(Not every kernel has netem.) Only VXLAN packets meet a fate; ARP and the like pass. The ends' cards cut and fill in
nothing, so that each packet is one that a wire could carry.
"""

from __future__ import annotations

import random
import select
import socket
import threading
from collections import Counter, deque
from typing import Final, NamedTuple

from tests.host.throwaway import Place
from tests.host.uvxlan_rig import PORT, cable

_IGNORE_OUTGOING, _SOL_PACKET, _RCVBUFFORCE = 23, 263, 33
_ALL: Final = 3
OVERTAKING: Final = 20
"""By how many packets at most a held one is overtaken."""
HELD_S: Final = 0.005
"""How long the last of a burst waits for one that overtakes it."""


class Fate(NamedTuple):
    """Of each packet: how probable it is that it is"""

    lost: float = 0.0
    doubled: float = 0.0
    held: float = 0.0


CLEAN: Final = Fate()


class Relay(Place):
    """``came``, ``passed``: VXLAN packets from an end, and to an end; by its name, and by the IP protocol inside."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.fate = CLEAN
        self.came: dict[str, Counter[int]] = {"one": Counter(), "two": Counter()}
        self.passed: dict[str, Counter[int]] = {"one": Counter(), "two": Counter()}
        self._rng = rng
        self._held: dict[str, deque[tuple[int, bytes]]] = {"one": deque(), "two": deque()}
        self._stop = threading.Event()
        self._loop: threading.Thread | None = None
        self._cards: dict[str, socket.socket] = {}

    def join(self, one: Place, two: Place) -> None:
        for name, end in (("one", one), ("two", two)):
            cable(end, "eth0", self, name)
            end.sh("ethtool -K eth0 tx off gro on")
            self.sh(f"ethtool -K {name} tx off; sysctl -qw net.ipv6.conf.{name}.disable_ipv6=1; ip link set {name} up")
            self._cards[name] = self.do(_card, name)
        self._loop = threading.Thread(target=self._run)
        self._loop.start()

    @property
    def holds(self) -> bool:
        """Whether there are packets that wait to be overtaken."""
        return any(self._held.values())

    def _run(self) -> None:
        other = {"one": "two", "two": "one"}
        names = {card.fileno(): name for name, card in self._cards.items()}
        poll = select.poll()
        for descriptor in names:
            poll.register(descriptor, select.POLLIN)
        while not self._stop.is_set():
            ready = poll.poll(HELD_S * 1000)
            for descriptor, _ in ready:
                name = names[descriptor]
                for _turn in range(64):
                    try:
                        frame = self._cards[name].recv(65536)
                    except BlockingIOError:
                        break
                    self._take(name, other[name], frame)
            if not ready:
                for name in names.values():
                    self._release(name, everything=True)

    def _take(self, name: str, to: str, frame: bytes) -> None:
        if not _is_vxlan(frame):
            self._cards[to].send(frame)
            return
        self.came[name][_protocol(frame)] += 1
        now, fate, chance = self.came[name].total(), self.fate, self._rng.random
        if chance() >= fate.lost:
            if chance() < fate.held:
                self._held[to].append((now + self._rng.randint(1, OVERTAKING), frame))
            else:
                self._send(to, frame)
            if chance() < fate.doubled:
                self._send(to, frame)
        self._release(to, everything=False, now=now)

    def _release(self, to: str, *, everything: bool, now: int = 0) -> None:
        held = self._held[to]
        while held and (everything or held[0][0] <= now):
            self._send(to, held[0][1])
            held.popleft()

    def _send(self, to: str, frame: bytes) -> None:
        self._cards[to].send(frame)
        self.passed[to][_protocol(frame)] += 1

    def close(self) -> None:
        self._stop.set()
        if self._loop is not None:
            self._loop.join()
        for card in self._cards.values():
            card.close()
        super().close()


def _card(name: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(_ALL))
    made.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 64 << 20)
    made.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    made.bind((name, _ALL))
    return made


def _is_vxlan(frame: bytes) -> bool:
    """Over IPv4, to its port; the underlay is of that family here."""
    return frame[12:14] == b"\x08\0" and frame[23] == socket.IPPROTO_UDP and frame[36:38] == PORT.to_bytes(2)


def _protocol(frame: bytes) -> int:
    """Of what is inside, if that is IPv4."""
    return frame[73] if frame[62:64] == b"\x08\0" else 0
