"""What an operator does on a lab, and the eyes to watch it with.

A :class:`Session` types commands on hosts and takes away at its end what they made: containers by name, networks.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from vxnet.lab import Lab

T = TypeVar("T")

DEADLINE_S = 10.0
POLL_S = 0.02


def eventually(look: Callable[[], T], deadline_s: float = DEADLINE_S) -> T:
    """What ``look`` returns as soon as that is true and it does not raise AssertionError; else fails with the last."""
    until = time.monotonic() + deadline_s
    while True:
        try:
            if (found := look()) or time.monotonic() > until:
                assert found, f"not within {deadline_s} s"
                return found
        except AssertionError:
            if time.monotonic() > until:
                raise
        time.sleep(POLL_S)


class Ping:
    """One that runs, and has had an answer."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child
        assert child.stdout
        self._out = child.stdout.readline()
        self._out += child.stdout.readline()
        assert "icmp_seq" in self._out

    @property
    def over(self) -> bool:
        return self._child.poll() is not None

    def unanswered(self, count: int) -> list[int]:
        """Numbers of the packets that had no answer, of the ``count`` that it sends."""
        self._out += self._child.communicate(timeout=60)[0]
        return sorted({*range(1, count + 1)} - {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", self._out)})


class Session:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._networks: list[str] = []
        self._containers: list[tuple[str, str]] = []
        self._services: list[str] = []

    def adopt(self, host: str, name: str) -> None:
        """A container that a test made otherwise is taken away with the rest."""
        self._containers.append((host, name))

    def run(self, host: str, command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.lab.run(host, ["sh", "-c", command], **options)

    def say(self, host: str, command: str, **options: Any) -> str:
        """Standard output of a command that must succeed."""
        return self.run(host, command, check=True, **options).stdout

    def refusal(self, host: str, command: str) -> str:
        """The one line of a command that must fail."""
        done = self.run(host, command)
        assert done.returncode != 0, f"{host}# {command}\n{done.stdout}"
        (line,) = done.stderr.splitlines()
        assert line.startswith("vxnet: "), line
        return line

    def json(self, host: str, command: str) -> Any:
        return json.loads(self.say(host, command))

    def table(self, host: str, command: str) -> list[dict[str, Any]]:
        """The rows of a command that lists."""
        return [json.loads(line) for line in self.say(host, f"{command} --format json").splitlines()]

    def network(self, name: str, flags: str = "--attachable", *, host: str = "h1") -> str:
        self._networks.append(name)
        return self.say(host, f"vxnet network create {flags} {name}").strip()

    def container(self, host: str, name: str, network: str, command: str = "sleep infinity") -> str:
        """Its address on the first network."""
        self._containers.append((host, name))
        flags = " ".join(f"--network {one}" for one in network.split())
        self.say(host, f"vxnet run -d --name {name} {flags} -- {command}")
        return str(self.json(host, f"vxnet inspect {name}")[0]["attachments"][0]["addresses"][0]).split("/")[0]

    def service(self, name: str, flags: str, command: str = "sleep infinity") -> str:
        """Its id; all its tasks run."""
        self._services.append(name)
        return self.say("h1", f"vxnet service create --name {name} {flags} -- {command}").strip()

    def tasks(self, name: str, *, running: bool = True) -> list[dict[str, Any]]:
        """Of a service: those that run and are to, or all."""
        found = self.table("h1", f"vxnet service ps {name}")
        return [task for task in found if not running or (task["desired"] == "running" and task["state"] == "running")]

    def inside(self, host: str, name: str, command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.lab.run(host, ["vxnet", "exec", name, "sh", "-c", command], **options)

    def popen_inside(self, host: str, name: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        return self.lab.popen(host, ["vxnet", "exec", name, *argv], text=True, **options)

    def ping(self, host: str, name: str, target: str, *flags: str) -> Ping:
        """Running by the time this returns."""
        return Ping(self.popen_inside(host, name, ["ping", *flags, target], stdout=subprocess.PIPE))

    def pid(self, host: str, name: str) -> int:
        return int(self.json(host, f"vxnet inspect {name}")[0]["pid"])

    def datapath(self, host: str, command: str) -> str:
        """In namespace ``vxnet``."""
        return self.say(host, f"ip netns exec vxnet {command}")

    def tables(self, host: str) -> str:
        """What leads elsewhere, in a form that can be compared."""
        fdb = self.datapath(host, "bridge fdb show").splitlines()
        rows = sorted(line for line in fdb if " dst " in line)
        return "\n".join([*rows, *sorted(self.datapath(host, "ip neigh show nud permanent").splitlines())])

    def forget(self) -> None:
        for name in self._services:
            self.run("h1", f"vxnet service rm {name}")
        self._services.clear()
        for host, name in self._containers:
            self.run(host, f"vxnet rm -f {name}")
        for name in self._networks:
            done = self.run("h1", f"vxnet network rm {name}")
            for _ in range(100):
                if "still in use" not in done.stderr:
                    break
                time.sleep(POLL_S)
                done = self.run("h1", f"vxnet network rm {name}")
        self._containers.clear()
        self._networks.clear()


class Monitors:
    """``ip``, ``bridge`` and ``nft monitor`` in the namespaces of a host and its containers."""

    COMMANDS = ("ip -o monitor link address route neigh", "bridge monitor", "nft monitor")

    def __init__(self, session: Session, host: str, containers: Sequence[str]) -> None:
        pids = [session.pid(host, name) for name in containers]
        places = ["", "ip netns exec vxnet ", *(f"nsenter -t {pid} -n " for pid in pids)]
        self._children: list[tuple[str, subprocess.Popen[str]]] = []
        for place in places:
            for command in self.COMMANDS:
                child = session.lab.popen(
                    host, ["sh", "-c", f"exec {place}{command}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    text=True,
                )  # fmt: skip
                self._children.append((f"{place}{command}", child))

    def stop(self) -> dict[str, list[str]]:
        """What each has seen, but what the kernel does by itself: entries that age."""
        seen = {}
        for name, child in self._children:
            child.terminate()
            out, _ = child.communicate(timeout=10)
            lines = [line for line in out.splitlines() if not _by_itself(line)]
            if lines:
                seen[name] = lines
        return seen


def _by_itself(line: str) -> bool:
    """Neighbours that age, and link-local addresses that have been found to be nobody else's."""
    aged = any(word in line for word in (" STALE", " REACHABLE", " DELAY", " PROBE", " NOARP", " INCOMPLETE"))
    return (aged and "dst" not in line) or "fe80::" in line


@contextlib.contextmanager
def watching(session: Session, host: str, containers: Sequence[str]) -> Iterator[dict[str, list[str]]]:
    """Filled when it is left."""
    monitors = Monitors(session, host, containers)
    found: dict[str, list[str]] = {}
    try:
        yield found
    finally:
        found |= monitors.stop()
