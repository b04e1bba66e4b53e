"""Services: how soon they run, are known everywhere, and are whole again; and whether anybody notices an update.

On each host a container watches: what the name server answers for ``tasks.my-app``, and who answers connections to the
virtual IP (backends.c). A dead task is out of the VIP when the last connection that failed, or came to it, was begun;
its replacement is in when the first one comes to that.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from tests.perf.measure import compiled, ms, python, sh, table
from tests.system.fetches import SERVER
from vxnet.lab import Lab

RUNS = 7
HOST_KILLS = 5
UPDATES = 3
RATE = 200
"""Requests a second during an update, each a new connection."""
ANSWERS_S = 60.0
QUIET_S = 1.0
"""So long without a failure, and the last one was the last."""
PORT = "8080"

# In a container on each host: says, every 3 ms, when tasks.my-app has other addresses than before.
WATCH = r"""
import socket, struct, sys, time
labels = b"".join(bytes([len(part)]) + part.encode() for part in "tasks.my-app".split("."))
query = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"
dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
dns.connect(("127.0.0.11", 53))
dns.settimeout(0.2)
before = None
while True:
    try:
        dns.send(query)
        answer = dns.recv(4096)
    except OSError:
        continue
    found, at = [], len(query)
    for _ in range(struct.unpack(">H", answer[6:8])[0]):
        while 0 < answer[at] < 192:
            at += answer[at] + 1
        at += 2 if answer[at] else 1
        found.append(socket.inet_ntoa(answer[at + 10: at + 14]))
        at += 14
    found.sort()
    if found != before:
        print(time.monotonic(), *found, flush=True)
        before = found
    time.sleep(0.003)
"""

# Asks RATE times a second through the name, a new connection each, until standard input ends; says what failed.
ASK = r"""
import json, select, socket, sys, threading, time
rate = float(sys.argv[1])
failed, times, lock = [], [], threading.Lock()
request = b"GET / HTTP/1.0\r\n\r\n"
def ask():
    begun = time.monotonic()
    doing = "connect"
    try:
        with socket.create_connection(("my-app", 8080), timeout=5) as one:
            doing = "read"
            one.sendall(request)
            answer = b""
            while piece := one.recv(4096):
                answer += piece
        if not answer.startswith(b"HTTP/1.0 200"):
            raise OSError(f"answer {answer[:30]!r}")
    except OSError as error:
        with lock:
            failed.append((time.monotonic(), f"{doing}: {type(error).__name__}: {error}"))
    with lock:
        times.append(time.monotonic() - begun)
print("asking", flush=True)
due = time.monotonic()
threads = []
while not select.select([sys.stdin], [], [], 0)[0]:
    one = threading.Thread(target=ask)
    one.start()
    threads.append(one)
    due += 1 / rate
    time.sleep(max(due - time.monotonic(), 0))
for one in threads:
    one.join()
print(json.dumps({"asked": len(threads), "failed": failed, "p99": sorted(times)[int(len(times) * 0.99)]}), flush=True)
"""

TIMED = """
import subprocess, sys, time
begun = time.monotonic()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(begun, time.monotonic())
"""


class Change(NamedTuple):
    at: float
    addresses: frozenset[str]


class Connection(NamedTuple):
    at: float
    """When it was begun."""
    who: str
    """``failed``: nobody answered."""


T = TypeVar("T")


def watcher(host: str) -> Sequence[str]:
    return "vxnet", "exec", f"watch-{host}"


class _Told(ABC):
    """What a program in a container of one host tells, a line each."""

    def __init__(self, lab: Lab, host: str, argv: Sequence[str]) -> None:
        self._process = lab.popen(host, argv, stdout=subprocess.PIPE, text=True)
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            with self._news:
                self.take(line)
                self._news.notify_all()

    @abstractmethod
    def take(self, line: str) -> None: ...

    def wait(self, look: Callable[[], T | None], failing: str) -> T:
        with self._news:
            deadline = time.monotonic() + ANSWERS_S
            while (found := look()) is None:
                assert self._news.wait(deadline - time.monotonic()), failing
            return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        if self._process.stdout:
            self._process.stdout.close()


class Watch(_Told):
    """What the name server of one host answers for ``tasks.my-app``, and since when."""

    def __init__(self, lab: Lab, host: str, enter: Sequence[str] = ()) -> None:
        """``enter``: the way into the container that asks."""
        self._changes: list[Change] = []
        super().__init__(lab, host, (*(enter or watcher(host)), "python3", "-c", WATCH))

    def take(self, line: str) -> None:
        at, *addresses = line.split()
        self._changes.append(Change(float(at), frozenset(addresses)))

    def until(self, condition: Callable[[frozenset[str]], bool], after: float) -> float:
        """When, from ``after`` on, the answer first was so."""

        def look() -> float | None:
            before = [change for change in self._changes if change.at <= after][-1:]
            for change in (*before, *(change for change in self._changes if change.at > after)):
                if condition(change.addresses):
                    return max(change.at, after)
            return None

        return self.wait(look, "the name's answer stays as it was")

    @property
    def addresses(self) -> frozenset[str]:
        return self.wait(lambda: self._changes[-1].addresses if self._changes else None, "no answer")


class VipWatch(_Told):
    """Who answers at the virtual IP, for a client on one host."""

    def __init__(self, lab: Lab, host: str, program: Path, vip: str) -> None:
        self._connections: list[Connection] = []
        super().__init__(lab, host, (*watcher(host), str(program), "watch", vip, PORT))

    def take(self, line: str) -> None:
        at, who = line.split()
        self._connections.append(Connection(float(at), who))

    def free(self, gone: frozenset[str], after: float) -> float:
        """When nobody was led to ``gone`` any more, who died at ``after``."""

        def look() -> float | None:
            later = [one for one in self._connections if one.at >= after]
            bad = max((one.at for one in later if one.who == "failed" or one.who in gone), default=after)
            return bad if any(one.at > bad + QUIET_S for one in later) else None

        try:
            return self.wait(look, "")
        except AssertionError:
            last = self._connections[-1].at
            who = Counter(one.who for one in self._connections if one.at > last - QUIET_S)
            raise AssertionError(f"connections go on failing: in the last second {dict(who)}") from None

    def reached(self, wanted: frozenset[str], after: float) -> float:
        """When the last of ``wanted`` answered for the first time."""

        def look() -> float | None:
            first: dict[str, float] = {}
            for one in self._connections:
                if one.at >= after and one.who in wanted:
                    first.setdefault(one.who, one.at)
            return max(first.values(), default=after) if first.keys() == wanted else None

        return self.wait(look, f"not reached: {sorted(wanted)}")


@contextlib.contextmanager
def watching_vip(lab: Lab, hosts: Sequence[str], program: Path) -> Iterator[list[VipWatch]]:
    vip = sh(lab, hosts[0], f"vxnet exec watch-{hosts[0]} dig +short my-app").strip()
    watches = [VipWatch(lab, host, program, vip) for host in hosts]
    try:
        yield watches
    finally:
        for watch in watches:
            watch.close()


@contextlib.contextmanager
def watching(lab: Lab, hosts: Sequence[str]) -> Iterator[list[Watch]]:
    watches = [Watch(lab, host) for host in hosts]
    try:
        yield watches
    finally:
        for watch in watches:
            watch.close()


def timed(lab: Lab, *argv: str) -> tuple[float, float]:
    """When a command on h1 began and ended."""
    begun, ended = python(lab, "h1", TIMED, *argv).split()
    return float(begun), float(ended)


def create(*options: str, argv: Sequence[str]) -> list[str]:
    return ["vxnet", "service", "create", "-q", "--name", "my-app", "--network", "blue", *options, "--", *argv]


def serving(program: Path, *options: str) -> list[str]:
    return create(*options, argv=(str(program), "serve", PORT))


def all_at(watches: Sequence[Watch], condition: Callable[[frozenset[str]], bool], after: float) -> float:
    return max(watch.until(condition, after) for watch in watches)


def births(lab: Lab, watches: Sequence[Watch], program: Path) -> tuple[list[float], list[float], list[float]]:
    running, known, scaled = [], [], []
    for _ in range(RUNS):
        begun, ended = timed(lab, *serving(program, "--replicas", "6"))
        running.append(ended - begun)
        known.append(all_at(watches, lambda found: len(found) == 6, begun) - begun)
        begun, ended = timed(lab, "vxnet", "service", "scale", "my-app=12")
        scaled.append(ended - begun)
        all_at(watches, lambda found: len(found) == 12, begun)
        sh(lab, "h1", "vxnet service rm my-app")
        all_at(watches, lambda found: not found, time.monotonic())
    return running, known, scaled


class Healing(NamedTuple):
    """Seconds from a death, on the slowest host that is left."""

    dns_free: list[float]
    vip_free: list[float]
    dns_whole: list[float]
    vip_whole: list[float]

    def note(
        self,
        watches: Sequence[Watch],
        vips: Sequence[VipWatch],
        before: frozenset[str],
        gone: frozenset[str],
        at: float,
    ) -> None:
        """``gone``, of ``before``, died ``at`` this moment."""
        self.dns_free.append(all_at(watches, lambda found: not gone & found, at) - at)
        # Six are known at the moment of the death, too: the dead must be gone from them.
        whole = all_at(watches, lambda found: len(found) == 6 and not gone & found, at)
        self.dns_whole.append(whole - at)
        fresh = watches[0].addresses - before
        self.vip_whole.append(max(watch.reached(fresh, at) for watch in vips) - at)
        self.vip_free.append(max(watch.free(gone, at) for watch in vips) - at)


def deaths(lab: Lab, watches: Sequence[Watch], program: Path) -> Healing:
    """A task's process is killed, on one host after the other."""
    found = Healing([], [], [], [])
    timed(lab, *serving(program, "--replicas", "6", "--restart-delay", "0s"))
    all_at(watches, lambda found: len(found) == 6, time.monotonic())
    with watching_vip(lab, lab.hosts, program) as vips:
        for number in range(RUNS):
            host = lab.hosts[number % len(lab.hosts)]
            inspected = json.loads(sh(lab, host, "vxnet inspect $(vxnet ps -q --filter name=my-app | head -1)"))[0]
            address = inspected["attachments"][0]["addresses"][0].partition("/")[0]
            before = watches[0].addresses
            max(watch.reached(before, time.monotonic()) for watch in vips)
            kill = "import os,sys,time; print(time.monotonic()); os.kill(int(sys.argv[1]), 9)"
            killed = float(python(lab, host, kill, str(inspected["pid"])))
            found.note(watches, vips, before, frozenset([address]), killed)
            time.sleep(11)  # so that no kill counts as one more in a row
    sh(lab, "h1", "vxnet service rm my-app")
    all_at(watches, lambda found: not found, time.monotonic())
    return found


def losses(lab: Lab, program: Path) -> Healing:
    """h3 is killed, and comes back."""
    found = Healing([], [], [], [])
    timed(lab, *serving(program, "--replicas", "6", "--restart-delay", "0s"))
    left = ["h1", "h2"]
    with watching(lab, left) as watches, watching_vip(lab, left, program) as vips:
        for _ in range(HOST_KILLS):
            all_at(watches, lambda found: len(found) == 6, time.monotonic())
            timed(lab, "vxnet", "service", "update", "-q", "--rebalance", "my-app")
            all_at(watches, lambda found: len(found) == 6, time.monotonic())
            lines = sh(lab, "h3", "vxnet ps --format json --filter name=my-app").splitlines()
            lost = frozenset(address for line in lines for address in json.loads(line)["addresses"])
            assert lost, "nothing of it ran on h3"
            before = watches[0].addresses
            max(watch.reached(before, time.monotonic()) for watch in vips)
            killed = time.monotonic()
            lab.kill("h3")
            found.note(watches, vips, before, lost, killed)
            lab.start("h3")
            ready = time.monotonic() + ANSWERS_S
            while not all(view.status == "ready" for view in lab.client("h1").nodes()):
                assert time.monotonic() < ready
                time.sleep(0.1)
    sh(lab, "h1", "vxnet service rm my-app")
    return found


class Update(NamedTuple):
    order: str
    seconds: list[float]
    asked: int
    failed: list[str]
    p99: float
    drain_timeouts: int


def updates(lab: Lab, order: str) -> Update:
    health = ["--health-cmd", "curl -sf -o /dev/null http://127.0.0.1:8080/", "--health-interval", "5s"]
    options = ["--replicas", "6", "--update-order", order, "--update-parallelism", "2", "--update-monitor", "0s"]
    timed(lab, *create(*options, *health, argv=("python3", "-c", SERVER)))
    seconds, asked, failed, p99 = [], 0, [], []
    for number in range(UPDATES):
        argv = ["vxnet", "exec", "-i", "watch-h2", "python3", "-c", ASK, str(RATE)]
        with lab.popen("h2", argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdin and client.stdout
            assert client.stdout.readline() == "asking\n"
            begun, ended = timed(lab, "vxnet", "service", "update", "-q", "--env-add", f"RUN={number}", "my-app")
            time.sleep(1)
            client.stdin.close()
            told = json.loads(client.stdout.readline())
        seconds.append(ended - begun)
        asked += told["asked"]
        failed += [why for at, why in told["failed"]]
        p99.append(told["p99"])
    timeouts = sum(
        log.count("drained without everybody's word") for log in (lab[host].log.read_text() for host in lab.hosts)
    )
    sh(lab, "h1", "vxnet service rm my-app")
    return Update(order, seconds, asked, failed, statistics.median(p99), timeouts)


def main() -> None:
    # Not below /tmp: each host of a lab has its own.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory, Lab(hosts=3) as lab:
        Path(directory).chmod(0o755)
        program = Path(compiled("backends", directory))
        sh(lab, "h1", "vxnet network create -d overlay --attachable blue")
        for host in lab.hosts:
            sh(lab, host, f"vxnet run -d --name watch-{host} --network blue -- sleep infinity")
        with watching(lab, lab.hosts) as watches:
            running, known, scaled = births(lab, watches, program)
            died = deaths(lab, watches, program)
        table(
            "Services on three hosts; a client on each asks for names and connects to the VIP, every 3 ms",
            ["", "bound, ms", "Docker 20.10, ms", "median [range], ms"],
            [
                ["`service create --replicas 6` → all run", "800", "1560", ms(running)],
                ["… → all in DNS on every host", "1000", "1590", ms(known)],
                ["`service scale` 6 → 12 → all run", "800", "1420", ms(scaled)],
                ["task SIGKILLed → out of DNS on every host", "150", "156", ms(died.dns_free)],
                ["… → out of the VIP on every host", "150", "156", ms(died.vip_free)],
                ["… → replacement in DNS on every host (`--restart-delay 0s`)", "500", "755", ms(died.dns_whole)],
                ["… → replacement answers at the VIP on every host", "500", "755", ms(died.vip_whole)],
            ],
        )
        updated = [updates(lab, order) for order in ("start-first", "stop-first")]
        table(
            f"Rolling update of 6 replicas, 2 at once, under {RATE} requests/s by name, a new connection each",
            ["order", "updates", "one takes", "requests", "failed", "acknowledgements missed", "p99"],
            [
                [
                    one.order,
                    str(UPDATES),
                    ms(one.seconds),
                    str(one.asked),
                    f"{len(one.failed)} {' '.join(sorted(set(one.failed)))}".strip(),
                    str(one.drain_timeouts),
                    f"{one.p99 * 1000:.0f} ms",
                ]
                for one in updated
            ],
        )
        lost = losses(lab, program)
        table(
            "A host is killed",
            ["", "bound (p50), ms", "Docker 20.10, ms", "median [range], ms"],
            [
                ["out of DNS on the others", "3500", "5840", ms(lost.dns_free)],
                ["out of the VIP on the others", "3500", "5840", ms(lost.vip_free)],
                ["all 6 tasks run again, and are in DNS", "5000", "15600", ms(lost.dns_whole)],
                ["… and the replacements answer at the VIP", "5000", "15600", ms(lost.vip_whole)],
            ],
        )
