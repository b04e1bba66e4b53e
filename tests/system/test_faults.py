"""The fault test: kernel state damaged and daemons killed at random, and traffic after each. It always heals, and
nothing is left over.

``VXNET_FAULTS`` says how many (``make fault-test``: 500). The choice follows from the seed.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.system.operator import Session, eventually
from tests.system.test_drift import DAMAGES
from vxnet.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.slow]

FAULTS = int(os.environ.get("VXNET_FAULTS", "30"))
SCRIPT = Path(__file__).parent / "damage.py"
PICTURE = "/run/picture.json"
HOSTS = ("h1", "h2")

FOREIGN = """
ip link add foreign type bridge; ip link set foreign up; ip addr add 10.99.0.1/24 dev foreign
ip route add 10.98.0.0/16 via 10.99.0.2 metric 77; ip rule add fwmark 7 lookup 77
nft add table inet other; nft add chain inet other input '{ type filter hook input priority 0; }'
nft add rule inet other input udp dport 4789 counter accept
"""
"""What others have on a host, as near to vxnet's as can be, …"""
INSIDE = """
nsenter --net=/run/netns/vxnet ip link add br99 address 02:00:00:00:00:99 type bridge
nsenter --net=/run/netns/vxnet bridge fdb add 02:00:00:00:00:01 dev br99 self
"""
"""… and in vxnet's own namespace. The bridge can be made anew, so that nothing of it is left to chance."""
SEEN = """
ip -o link show foreign | cut -d' ' -f2,4,5; ip -o addr show dev foreign scope global | cut -d' ' -f2-
ip route show 10.98.0.0/16; ip rule
nft -s list table inet other
nsenter --net=/run/netns/vxnet ip -o link show br99 | cut -d' ' -f2-
nsenter --net=/run/netns/vxnet bridge fdb show dev br99 | grep 02:00:00:00:00:01
"""

COMMANDS = [command for what, command in DAMAGES.items() if what != "all of nft"]
"""That one would take away what is foreign, too."""


class Place(NamedTuple):
    """A host, a container on it, and the other host's that it must reach."""

    host: str
    pid: str
    other: str
    words: dict[str, str]


class Faults:
    def __init__(self, lab: Lab, rng: random.Random) -> None:
        self.lab = lab
        self.session = Session(lab)
        self.rng = rng
        self.empty = {host: self.leftovers(host) for host in HOSTS}
        self.session.network("faults")
        addresses = {host: self.session.container(host, f"c-{host}", "faults") for host in HOSTS}
        self.places = [
            self._place(host, addresses[other], other) for host, other in zip(HOSTS, HOSTS[::-1], strict=True)
        ]
        for place in self.places:
            self.session.say(place.host, FOREIGN + INSIDE)
            self.script(place, "--save", PICTURE)
        self.foreign = {host: self.session.say(host, SEEN) for host in HOSTS}
        self.descriptors = {host: self.open_descriptors(host) for host in HOSTS}
        self.times: list[float] = []

    def _place(self, host: str, address: str, other: str) -> Place:
        session = self.session
        eventually(lambda: session.inside(host, f"c-{host}", f"ping -c1 -W1 {address}").returncode == 0)
        vni = session.json(host, "vxnet network inspect faults")[0]["network"]["vni"]
        rows = session.datapath(host, f"bridge fdb show dev vx{vni}").splitlines()
        (mac,) = [row.split()[0] for row in rows if " dst " in row and not row.startswith("00:")]
        port = session.datapath(host, f"ip -br link show type veth master br{vni}").split("@")[0]
        pid = str(session.pid(host, f"c-{host}"))
        words = {
            # Longer words first: ADDRESS stands in none of them.
            "192.168.56.12": str(self.lab[other].address),
            "MAC": mac,
            "TUNNEL": f"vx{vni}",
            "BRIDGE": f"br{vni}",
            "PORT": port,
            "ADDRESS": address,
            "PID": pid,
        }
        return Place(host, pid, address, words)

    def script(self, place: Place, *arguments: str) -> str:
        # -P: the folder of the script has an operator.py, too.
        argv = [sys.executable, "-P", str(SCRIPT), place.pid, place.other, *arguments]
        return self.lab.run(place.host, argv, check=True).stdout

    def damage(self, place: Place) -> str:
        command = self.rng.choice(COMMANDS)
        for word, value in place.words.items():
            command = command.replace(word, value)
        return command

    def fault(self) -> str:
        """Do one; what was done in words."""
        place = self.rng.choice(self.places)
        kind = self.rng.choices(("one", "several", "killed", "while dead", "both killed"), (60, 15, 10, 12, 3))[0]
        if kind == "both killed":
            for host in HOSTS:
                self.lab.kill(host, daemon=True)
            for host in HOSTS:
                self.lab.start(host)
            return kind
        # Of several, the later ones may find that an earlier one took everything away.
        lines = [self.damage(place) for _ in range(self.rng.randint(2, 4) if kind == "several" else 1)]
        if kind in ("killed", "while dead"):
            self.lab.kill(place.host, daemon=True)
        if kind != "killed":
            self.session.run(place.host, "\n".join(lines))
        if kind in ("killed", "while dead"):
            self.lab.start(place.host)
        if kind == "while dead" and "ip netns del vxnet" in lines:
            # Nobody held the namespace: it died with all that was in it. The bridge's owner makes it anew.
            self.session.say(place.host, INSIDE)
        return f"{place.host}: {kind}: {lines if kind != 'killed' else ''}"

    def healed(self) -> None:
        for place in self.places:
            self.times.append(float(self.script(place, "--until", PICTURE)))

    def open_descriptors(self, host: str) -> int:
        return int(self.session.say(host, "ls /proc/$(cat /run/vxnet/vxnetd.pid)/fd | wc -l"))

    def leftovers(self, host: str) -> str:
        """All that may be left of containers and networks."""
        looked = self.session.run(
            host,
            "ip -br link | cut -d' ' -f1; ip netns; ip netns exec vxnet ip -br link 2>/dev/null | cut -d' ' -f1;"
            "nft list tables; ls /run/netns /var/lib/vxnet/containers 2>/dev/null;"
            "ip -o addr show scope global | sed 's,^[0-9]*: ,,';"
            "pgrep -c vxnet-shim",
        )
        return looked.stdout

    def close(self) -> None:
        self.session.forget()


@pytest.fixture
def faults(make_lab: Callable[..., Lab], rng: random.Random) -> Iterator[Faults]:
    faults = Faults(make_lab(hosts=2), rng)
    yield faults
    faults.close()


@pytest.mark.timeout(60 + 20 * FAULTS)
def test_it_always_heals_and_nothing_is_left(faults: Faults) -> None:
    session = faults.session
    for number in range(FAULTS):
        what = faults.fault()
        try:
            faults.healed()
        except Exception as error:
            error.add_note(f"fault {number}: {what}")
            raise
    for host in HOSTS:
        assert session.say(host, SEEN).splitlines() == faults.foreign[host].splitlines(), "what is foreign is as it was"
    for host, before in faults.descriptors.items():
        eventually(lambda host=host, before=before: _no_more(faults.open_descriptors(host), before))  # type: ignore[misc]
    session.forget()
    for host in HOSTS:
        session.say(host, "ip link del foreign; ip rule del fwmark 7; nft delete table inet other")
        session.run(host, "nsenter --net=/run/netns/vxnet ip link del br99")
        eventually(lambda host=host: _same(faults.leftovers(host), faults.empty[host]))  # type: ignore[misc]


def _no_more(now: int, before: int) -> bool:
    assert now <= before, "descriptors of the daemon"
    return True


def _same(now: str, before: str) -> bool:
    assert now.splitlines() == before.splitlines()
    return True
