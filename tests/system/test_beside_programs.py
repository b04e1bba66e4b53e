"""Beside firewalld, ufw and Docker: Debian's programs themselves on a host of the lab, where a container talks over an
overlay and serves a published port. Whatever they do to the host's rules, traffic is back within two seconds.

What their rules look like, and what a kernel makes of them: tests/host/test_beside_others.py.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise

import pytest

from tests.others import Docker, Installed, NotToBeHadError, unpacked
from tests.system.operator import Session, eventually
from vxnet.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.slow]

BACK_S = 2.0
"""From the end of what the program did."""
STEADY_S = 1.0
GAP_S = 0.8
SERVER = "python3 -m http.server 8080 --bind ::"
ASK = """
import socket, time
while True:
    try:
        with socket.create_connection(("192.168.56.11", 8099), timeout=0.3) as asked:
            asked.sendall(b"HEAD / HTTP/1.0\\r\\n\\r\\n")
            if asked.recv(100):
                print("answered", flush=True)
    except OSError:
        pass
    time.sleep(0.05)
"""
PORTS = ("2377/tcp", "7946/tcp", "7946/udp", "4789/udp")
"""Of vxnet, which an operator opens in a firewall that closes the input."""


class Probe:
    """Asks many times a second, and remembers when there was an answer."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child
        self.answers: list[float] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as lines:
            for line in lines:
                if "ttl=" in line or line == "answered\n":
                    self.answers.append(time.monotonic())

    def steady(self) -> float:
        """Since when it has been answered without a gap; it lasts if it has lasted for :data:`STEADY_S`."""
        answers = [*self.answers, time.monotonic()]
        return max((after for before, after in pairwise(answers) if after - before > GAP_S), default=answers[0])

    def gap(self, begun: float) -> float:
        """The longest time without an answer since then."""
        answers = [begun, *(one for one in self.answers if one > begun), time.monotonic()]
        return max(after - before for before, after in pairwise(answers))

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        self._reader.join()


class Place:
    """Containers ``here`` on h1, whose port 8099 is published, and ``there`` on h2; x1 is outside the cluster."""

    def __init__(self, session: Session) -> None:
        self.session = session
        session.network("beside")
        self.here = session.container("h1", "here", "beside")
        self.there = session.container("h2", "there", "beside")
        session.service("served", "--constraint node.hostname==h1 -p 8099:8080", SERVER)
        self.counted = 0
        self.probes: dict[str, Probe] = {}

    def begin(self) -> None:
        ping = "exec ping -i 0.05 -W 1"
        for name, host, inside, command in (
            ("overlay", "h1", "here", f"{ping} {self.there}"),
            ("overlay, from the other host", "h2", "there", f"{ping} {self.here}"),
            ("way out", "h1", "here", f"{ping} 192.168.56.13"),
            ("published port", "x1", "", f"exec python3 -c '{ASK}'"),
        ):
            argv = [*(("vxnet", "exec", inside) if inside else ()), "sh", "-c", command]
            options = {"stdout": subprocess.PIPE, "text": True}
            self.probes[name] = Probe(self.session.lab.popen(host, argv, **options))
        eventually(self._all_are_steady, 30)
        self.counted = self.drift()

    def drift(self) -> int:
        return int(self.session.json("h1", "vxnet info --format json")["drift"])

    def _all_are_steady(self) -> bool:
        return all(time.monotonic() - one.steady() > STEADY_S for one in self.probes.values())

    def after(self, what: str, act: Callable[[], object], *, counted: bool = True) -> None:
        """Traffic is back in time, and stays; what was taken of vxnet's rules is counted."""
        begun = time.monotonic()
        act()
        ended = time.monotonic()
        eventually(self._all_are_steady, 30)
        found = {name: (max(0.0, one.steady() - ended), one.gap(begun)) for name, one in self.probes.items()}
        for name, (back_s, gap_s) in found.items():
            print(f"{what} ({ended - begun:.1f} s): {name}: back after {back_s:.2f} s, longest gap {gap_s:.2f} s")
        if counted:
            eventually(lambda: self.drift() > self.counted)
        self.counted = self.drift()
        assert max(back_s for back_s, _ in found.values()) < BACK_S

    def close(self) -> None:
        for probe in self.probes.values():
            probe.close()


@pytest.fixture(scope="module")
def place(shared_lab: Lab) -> Iterator[Place]:
    session = Session(shared_lab)
    with ExitStack() as stack:
        stack.callback(session.forget)
        made = Place(session)
        stack.callback(made.close)
        made.begin()
        yield made


@contextmanager
def installed(lab: Lab, *packages: str) -> Iterator[Installed]:
    try:
        root = unpacked(*packages)
    except NotToBeHadError as error:
        pytest.skip(f"{packages[0]} is not to be had: {error}")
    made = Installed(lab, "h1", root)
    try:
        yield made
    finally:
        made.close()
        lab.run("h1", ["nft", "flush", "ruleset"], check=True)


BUS = """\
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/>
  </policy>
</busconfig>
"""
"""Debian's would run as a user that its package makes."""


def test_firewalld(place: Place) -> None:
    with installed(place.session.lab, "firewalld") as host:
        host.say(f"mkdir -p /run/dbus; cat >/etc/bus.conf <<'.'\n{BUS}.\n")
        host.say(f"firewall-offline-cmd {' '.join(f'--add-port={port}' for port in PORTS)}")
        bus = host.popen("exec dbus-daemon --config-file=/etc/bus.conf --nofork --nopidfile")
        running: list[subprocess.Popen[str]] = []

        def start() -> None:
            running.append(host.popen("exec firewalld --nofork --nopid >/etc/firewalld.log 2>&1"))
            eventually(lambda: host.say("firewall-cmd --state || true") == "running\n", 30)

        def stop() -> None:
            running[-1].terminate()
            running.pop().wait(timeout=30)

        def restart() -> None:
            stop()
            start()

        try:
            place.after("firewalld starts", start)
            assert "reject" in host.say("nft list chain inet firewalld filter_FORWARD")
            place.after("firewall-cmd --reload", lambda: host.say("firewall-cmd --reload"))
            place.after(
                "firewall-cmd --complete-reload", lambda: host.say("firewall-cmd --complete-reload"), counted=True
            )
            place.after("firewalld restarts", restart)
            place.after("firewalld stops", stop, counted=False)
        finally:
            for child in (*running, bus):
                child.kill()
                child.communicate()


def test_ufw(place: Place) -> None:
    with installed(place.session.lab, "ufw") as host:
        # What its package does when it is configured.
        host.say("cp /usr/share/ufw/iptables/*.rules /usr/share/ufw/*.init /usr/share/ufw/ufw.conf /etc/ufw")
        host.say("; ".join(f"ufw allow {port}" for port in PORTS))
        place.after("ufw enable", lambda: host.say("ufw --force enable"))
        assert "-P FORWARD DROP" in host.say("iptables -S FORWARD")
        # From here on it leaves vxnet's rules where they are.
        for words in ("ufw reload", "ufw disable; ufw --force enable", "ufw disable"):
            place.after(words, lambda words=words: host.say(words), counted=False)  # type: ignore[misc]


def test_docker(place: Place) -> None:
    """Its own container, whose port is published as well, answers on."""
    session = place.session
    try:
        docker = Docker(session.lab, "h1")
    except NotToBeHadError as error:
        pytest.skip(f"Docker is not to be had: {error}")

    def boot() -> None:
        """Docker first, which closes FORWARD where it finds that nobody has turned on routing."""
        session.lab.kill("h1", daemon=True)
        session.say("h1", "echo 0 >/proc/sys/net/ipv4/ip_forward")
        docker.start()
        session.lab.start("h1")

    def restart() -> None:
        docker.stop()
        docker.start()

    def flush() -> None:
        session.say("h1", "nft flush ruleset")
        restart()

    def theirs() -> bool:
        return bool(session.run("x1", "curl -s --max-time 1 telnet://192.168.56.11:9099 | grep -c .").stdout)

    try:
        place.after("dockerd, then vxnetd", boot, counted=False)
        assert "-P FORWARD DROP" in session.say("h1", "iptables -S FORWARD")
        docker.image()
        server = (
            "-p",
            "9099:8081",
            "--restart",
            "always",
            "--stop-signal",
            "KILL",
            "server:1",
            "/backends",
            "serve",
            "8081",
        )
        place.after("docker run -p", lambda: docker.docker("run", "-d", *server), counted=False)
        eventually(theirs)
        place.after("dockerd restarts", restart, counted=False)
        eventually(theirs)
        place.after("nft flush ruleset, dockerd restarts", flush)
        eventually(theirs)
        place.after("dockerd stops", docker.stop, counted=False)
    finally:
        docker.close()
        session.say("h1", "nft flush ruleset")
