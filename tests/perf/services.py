"""Services: how soon they run, are known everywhere, and are whole again; and whether anybody notices an update."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tests.perf.measure import ms, python, sh, table
from vxnet.lab import Lab

RUNS = 7
HOST_KILLS = 5
UPDATES = 3
RATE = 200
"""Requests a second during an update, each a new connection."""
ANSWERS_S = 60.0

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
    number = struct.unpack(">H", answer[6:8])[0]
    body = answer[len(query):]
    found = sorted(socket.inet_ntoa(body[16 * one + 12: 16 * one + 16]) for one in range(number))
    if found != before:
        print(time.monotonic(), *found, flush=True)
        before = found
    time.sleep(0.003)
"""

# Answers with its host name, ends on SIGTERM once what it was asked is answered.
SERVER = r"""
import http.server, signal, socket, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = socket.gethostname().encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = False
server = Server(("", 8080), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
server.server_close()
"""

# Asks RATE times a second through the name, a new connection each, until standard input ends; says what failed.
ASK = r"""
import json, select, socket, sys, threading, time
rate = float(sys.argv[1])
failed, times, lock = [], [], threading.Lock()
request = b"GET / HTTP/1.0\r\n\r\n"
def ask():
    begun = time.monotonic()
    try:
        with socket.create_connection(("my-app", 8080), timeout=5) as one:
            one.sendall(request)
            answer = b""
            while piece := one.recv(4096):
                answer += piece
        if not answer.startswith(b"HTTP/1.0 200"):
            raise OSError(f"answer {answer[:30]!r}")
    except OSError as error:
        with lock:
            failed.append((time.monotonic(), f"{type(error).__name__}: {error}"))
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


class Watch:
    """What the name server of one host answers for ``tasks.my-app``, and since when."""

    def __init__(self, lab: Lab, host: str) -> None:
        argv = ["vxnet", "exec", f"watch-{host}", "python3", "-c", WATCH]
        self._process = lab.popen(host, argv, stdout=subprocess.PIPE, text=True)
        self._changes: list[Change] = []
        self._told = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            at, *addresses = line.split()
            with self._told:
                self._changes.append(Change(float(at), frozenset(addresses)))
                self._told.notify_all()

    def until(self, condition: Callable[[frozenset[str]], bool], after: float) -> float:
        """When, from ``after`` on, the answer first was so."""
        with self._told:
            deadline = time.monotonic() + ANSWERS_S
            while True:
                before = [change for change in self._changes if change.at <= after][-1:]
                for change in (*before, *(change for change in self._changes if change.at > after)):
                    if condition(change.addresses):
                        return max(change.at, after)
                assert self._told.wait(deadline - time.monotonic()), f"still {self._changes[-1:]}"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        if self._process.stdout:
            self._process.stdout.close()


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


def create(*options: str, argv: Sequence[str] = ("sleep", "infinity")) -> list[str]:
    return ["vxnet", "service", "create", "-q", "--name", "my-app", "--network", "blue", *options, "--", *argv]


def all_at(watches: Sequence[Watch], condition: Callable[[frozenset[str]], bool], after: float) -> float:
    return max(watch.until(condition, after) for watch in watches)


def births(lab: Lab, watches: Sequence[Watch]) -> tuple[list[float], list[float], list[float]]:
    running, known, scaled = [], [], []
    for _ in range(RUNS):
        begun, ended = timed(lab, *create("--replicas", "6"))
        running.append(ended - begun)
        known.append(all_at(watches, lambda found: len(found) == 6, begun) - begun)
        begun, ended = timed(lab, "vxnet", "service", "scale", "my-app=12")
        scaled.append(ended - begun)
        all_at(watches, lambda found: len(found) == 12, begun)
        sh(lab, "h1", "vxnet service rm my-app")
        all_at(watches, lambda found: not found, time.monotonic())
    return running, known, scaled


def deaths(lab: Lab, watches: Sequence[Watch]) -> tuple[list[float], list[float]]:
    """A task's process is killed, on one host after the other."""
    dropped, replaced = [], []
    timed(lab, *create("--replicas", "6", "--restart-delay", "0s"))
    all_at(watches, lambda found: len(found) == 6, time.monotonic())
    for number in range(RUNS):
        host = lab.hosts[number % len(lab.hosts)]
        inspected = json.loads(sh(lab, host, "vxnet inspect $(vxnet ps -q --filter name=my-app | head -1)"))[0]
        address = inspected["attachments"][0]["addresses"][0].partition("/")[0]
        kill = "import os,sys,time; print(time.monotonic()); os.kill(int(sys.argv[1]), 9)"
        killed = float(python(lab, host, kill, str(inspected["pid"])))
        dropped.append(all_at(watches, lambda found, gone=address: gone not in found, killed) - killed)  # type: ignore[misc]
        # Six are known at the moment of the kill, too: the killed one must be gone from them.
        whole = all_at(watches, lambda found, gone=address: len(found) == 6 and gone not in found, killed)  # type: ignore[misc]
        replaced.append(whole - killed)
        time.sleep(11)  # so that no kill counts as one more in a row
    sh(lab, "h1", "vxnet service rm my-app")
    all_at(watches, lambda found: not found, time.monotonic())
    return dropped, replaced


def losses(lab: Lab) -> tuple[list[float], list[float]]:
    """h3 is killed, and comes back."""
    freed, healed = [], []
    timed(lab, *create("--replicas", "6", "--restart-delay", "0s"))
    with watching(lab, ["h1", "h2"]) as watches:
        for _ in range(HOST_KILLS):
            all_at(watches, lambda found: len(found) == 6, time.monotonic())
            timed(lab, "vxnet", "service", "update", "-q", "--rebalance", "my-app")
            all_at(watches, lambda found: len(found) == 6, time.monotonic())
            lines = sh(lab, "h3", "vxnet ps --format json --filter name=my-app").splitlines()
            lost = {address for line in lines for address in json.loads(line)["addresses"]}
            assert lost, "nothing of it ran on h3"
            killed = time.monotonic()
            lab.kill("h3")
            freed.append(all_at(watches, lambda found, gone=lost: not gone & found, killed) - killed)  # type: ignore[misc]
            healed.append(
                all_at(watches, lambda found, gone=lost: len(found) == 6 and not gone & found, killed) - killed  # type: ignore[misc]
            )
            lab.start("h3")
            ready = time.monotonic() + ANSWERS_S
            while not all(view.status == "ready" for view in lab.client("h1").nodes()):
                assert time.monotonic() < ready
                time.sleep(0.1)
    sh(lab, "h1", "vxnet service rm my-app")
    return freed, healed


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
    with Lab(hosts=3) as lab:
        sh(lab, "h1", "vxnet network create -d overlay --attachable blue")
        for host in lab.hosts:
            sh(lab, host, f"vxnet run -d --name watch-{host} --network blue -- sleep infinity")
        with watching(lab, lab.hosts) as watches:
            running, known, scaled = births(lab, watches)
            dropped, replaced = deaths(lab, watches)
        table(
            "Services of `sleep` on three hosts; names are asked for on each",
            ["", "bound, ms", "Docker 20.10, ms", "median [range], ms"],
            [
                ["`service create --replicas 6` → all run", "800", "1560", ms(running)],
                ["… → all in DNS on every host", "1000", "1590", ms(known)],
                ["`service scale` 6 → 12 → all run", "800", "1420", ms(scaled)],
                ["task SIGKILLed → out of DNS on every host", "150", "156", ms(dropped)],
                ["… → its replacement is in DNS on every host (`--restart-delay 0s`)", "500", "755", ms(replaced)],
            ],
        )
        found = [updates(lab, order) for order in ("start-first", "stop-first")]
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
                for one in found
            ],
        )
        freed, healed = losses(lab)
        table(
            "A host is killed",
            ["", "bound (p50), ms", "Docker 20.10, ms", "median [range], ms"],
            [
                ["out of DNS on the others", "3500", "5840", ms(freed)],
                ["all 6 tasks run again, and are in DNS", "5000", "15600", ms(healed)],
            ],
        )
