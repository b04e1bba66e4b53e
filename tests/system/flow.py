"""What goes between two containers meanwhile: 1,000 numbered datagrams a second, and which of them did not come; or one
connection of iperf3.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Final

from tests.system.operator import Session, eventually
from vxnet.lab import Lab

RATE_HZ = 1000
PORT = 7007

_SEND = """
import signal, socket, struct, sys, time
address, rate, over = (sys.argv[1], int(sys.argv[2])), int(sys.argv[3]), []
signal.signal(signal.SIGTERM, lambda *_: over.append(1))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
    number, begun = 0, time.monotonic()
    print("sends", flush=True)
    while not over:
        # What a busy machine made it miss is made up for, 20 at a time.
        for _ in range(min(20, int((time.monotonic() - begun) * rate) - number)):
            out.sendto(struct.pack("!Q", number), address)
            number += 1
        time.sleep(0.0005)
    for _ in range(20):
        out.sendto(struct.pack("!QQ", number, number), address)
        time.sleep(0.01)
    print(number / (time.monotonic() - begun), flush=True)
"""
_RECEIVE = """
import json, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inside:
    inside.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
    inside.bind(("", int(sys.argv[1])))
    inside.settimeout(300)
    print("listens", flush=True)
    seen, count = set(), None
    while count is None:
        data = inside.recv(64)
        if len(data) == 16:
            count = struct.unpack("!QQ", data)[1]
        else:
            seen.add(struct.unpack("!Q", data)[0])
    print(json.dumps({"sent": count, "lost": sorted(set(range(count)) - seen)}), flush=True)
"""


class Flow:
    """From one container to another, from when this is made until :meth:`stop`."""

    def __init__(self, session: Session, source: tuple[str, str], target: tuple[str, str], address: str) -> None:
        self._session, self._source = session, source
        receive = [sys.executable, "-c", _RECEIVE, str(PORT)]
        self._receiver = session.popen_inside(*target, receive, stdout=subprocess.PIPE)
        assert self._receiver.stdout and self._receiver.stdout.readline() == "listens\n"
        send = ["sh", "-c", 'echo $$ >/run/sender; exec "$@"', "sh", sys.executable, "-c", _SEND, address, str(PORT)]
        self._sender = session.popen_inside(*source, [*send, str(RATE_HZ)], stdout=subprocess.PIPE)
        assert self._sender.stdout and self._sender.stdout.readline() == "sends\n"

    def stop(self) -> dict[str, Any]:
        """``sent``, ``lost`` (numbers), ``rate`` in datagrams a second."""
        self._session.inside(*self._source, "kill -TERM $(cat /run/sender)", check=True)
        rate = float(self._sender.communicate(timeout=60)[0])
        found: dict[str, Any] = json.loads(self._receiver.communicate(timeout=60)[0])
        return {**found, "rate": rate}

    def kill(self) -> None:
        """After a test that failed. Harmless if it has ended."""
        for child in (self._sender, self._receiver):
            child.kill()
            child.communicate()


class Flows:
    """Both ways between container a on one host and b on the other."""

    def __init__(self, session: Session, hosts: tuple[str, str] = ("h2", "h3")) -> None:
        session.network("flow")
        one, other = zip(hosts, ("a", "b"), strict=True)
        a, b = (self._container(session, *place) for place in (one, other))
        eventually(lambda: session.inside(*one, "ping -c1 -W1 b").returncode == 0)
        self._flows = (Flow(session, one, other, b), Flow(session, other, one, a))

    @staticmethod
    def _container(session: Session, host: str, name: str) -> str:
        """With the right to as large a buffer as a busy machine needs."""
        session.say(host, f"vxnet run -d --name {name} --network flow --cap-add NET_ADMIN -- sleep infinity")
        session.adopt(host, name)
        return str(session.json(host, f"vxnet inspect {name}")[0]["attachments"][0]["addresses"][0]).split("/")[0]

    def stop(self) -> list[dict[str, Any]]:
        return [flow.stop() for flow in self._flows]

    def kill(self) -> None:
        for flow in self._flows:
            flow.kill()

    def lose_nothing(self) -> None:
        """Ends them; all that was sent came."""
        for found in self.stop():
            assert found["lost"] == [], f"{len(found['lost'])} of {found['sent']} lost, first {found['lost'][:5]}"
            assert found["sent"] >= RATE_HZ, found


class Stream:
    """One TCP connection of iperf3 to a server that listens, 4 Mbit/s, from when this is made until :meth:`end`.

    ``enter`` is what leads from the host into a container.
    """

    _REPORT_S: Final = 30.0

    def __init__(self, lab: Lab, host: str, enter: Sequence[str], address: str) -> None:
        self._run = lambda script: lab.run(host, [*enter, "sh", "-c", script]).returncode == 0
        script = f"echo $$ >/run/stream; exec iperf3 -J -c {address} -t 0 -b 4M"
        self._child = lab.popen(host, [*enter, "sh", "-c", script], stdout=subprocess.PIPE, text=True)
        eventually(lambda: self._run('ss -Htn state established "( dport = :5201 )" | grep -q .'))

    def end(self) -> list[int]:
        """Octets that were sent in each whole second. It was one connection, and has not broken."""
        assert self._run("kill -TERM $(cat /run/stream)")
        report = json.loads(self._child.communicate(timeout=self._REPORT_S)[0])
        assert report["error"] == "interrupt - the client has terminated"
        assert len(report["start"]["connected"]) == 1
        *octets, _last = (interval["sum"]["bytes"] for interval in report["intervals"])
        assert len(octets) > 5
        return octets

    def kill(self) -> None:
        """After a test that failed. Harmless if it has ended."""
        self._child.kill()
        self._child.communicate()
