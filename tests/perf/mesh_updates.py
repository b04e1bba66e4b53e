"""Published ports while things change: whether a client outside the cluster notices.

::

    h4 (no part in the cluster) ── RATE connections a second, in turn ──> port 8080 of h1, h2, h3 ──> 6 tasks

An update replaces all tasks, a drain empties a host, a task is killed, a host is killed.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tests.perf.measure import mesh_cluster, python, sh, table
from tests.perf.services import ANSWERS_S
from tests.system.fetches import SERVER
from vxnet.lab import Lab

RATE = 500
UPDATES = 2
TASK_KILLS = 5
HOST_KILLS = 5
HOSTS = ("h1", "h2", "h3")
SETTLE_S = 1.0

# Asks the hosts in turn, a new connection each, until standard input ends; says what failed, and when it was begun.
ASK = r"""
import asyncio, json, sys, time
rate, timeout, hosts = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
failed, times, running = [], [], set()
async def ask(host):
    begun = time.monotonic()
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host, 8080)
            try:
                writer.write(b"GET / HTTP/1.0\r\n\r\n")
                answer = await reader.read()
            finally:
                writer.close()
        if not answer.startswith(b"HTTP/1.0 200"):
            raise OSError(f"answer {answer[:30]!r}")
        times.append(time.monotonic() - begun)
    except (OSError, TimeoutError) as error:
        failed.append((begun, host, f"{type(error).__name__}: {error}"))
async def main():
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, ended.set)
    print("asking", flush=True)
    due, count = time.monotonic(), 0
    while not ended.is_set():
        one = asyncio.create_task(ask(hosts[count % len(hosts)]))
        running.add(one)
        one.add_done_callback(running.discard)
        count += 1
        due += 1 / rate
        await asyncio.sleep(max(due - time.monotonic(), 0))
    await asyncio.gather(*running)
    p99 = sorted(times)[int(len(times) * 0.99)] if times else 0
    print(json.dumps({"asked": count, "failed": failed, "p99": p99}), flush=True)
asyncio.run(main())
"""


class Asking:
    """What a client saw, once it has ended."""

    asked = 0
    failed: Sequence[tuple[float, str, str]] = ()
    """When it was begun, whom it asked, why it failed."""
    p99 = 0.0


@contextlib.contextmanager
def asking(lab: Lab, hosts: Sequence[str], rate: int = RATE, timeout_s: float = 5.0) -> Iterator[Asking]:
    addresses = [f"192.168.56.1{host[1:]}" for host in hosts]
    argv = [sys.executable, "-c", ASK, str(rate), str(timeout_s), *addresses]
    seen = Asking()
    with lab.popen("h4", argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin and client.stdout
        assert client.stdout.readline() == "asking\n"
        yield seen
        client.stdin.close()
        told = json.loads(client.stdout.readline())
    seen.asked, seen.failed, seen.p99 = told["asked"], told["failed"], told["p99"]


def create(lab: Lab, *options: str) -> None:
    # A task is ready when it answers, not when its program has begun.
    health = ["--health-cmd", "curl -sf -o /dev/null http://127.0.0.1:8080/", "--health-interval", "5s"]
    words = ["vxnet", "service", "create", "-q", "--name", "site", "--network", "blue", "-p", "8080:8080", *health]
    lab.run("h1", [*words, *options, "--replicas", "6", "--", "python3", "-c", SERVER], check=True, timeout_s=ANSWERS_S)
    time.sleep(SETTLE_S)


def running(lab: Lab) -> list[Any]:
    lines = sh(lab, "h1", "vxnet service ps --format json site").splitlines()
    return [task for line in lines if (task := json.loads(line))["state"] == task["desired"] == "running"]


def whole(lab: Lab) -> None:
    until = time.monotonic() + ANSWERS_S
    while len(running(lab)) != 6:
        assert time.monotonic() < until, "the service is not whole"
        time.sleep(0.1)


def updates(lab: Lab, order: str) -> tuple[int, int, float]:
    """(asked, failed, p99 in s) while all tasks are replaced."""
    create(lab, "--update-order", order, "--update-parallelism", "2", "--update-monitor", "0s")
    asked = failed = 0
    p99 = []
    for number in range(UPDATES):
        with asking(lab, HOSTS) as seen:
            time.sleep(SETTLE_S)
            sh(lab, "h1", f"vxnet service update -q --env-add RUN={number} site")
            time.sleep(SETTLE_S)
        asked += seen.asked
        failed += len(seen.failed)
        p99.append(seen.p99)
        for _, host, why in seen.failed[:3]:
            print(f"failed at {host}: {why}", file=sys.stderr)
    return asked, failed, statistics.median(p99)


def drain(lab: Lab) -> tuple[int, int, float]:
    with asking(lab, HOSTS) as seen:
        time.sleep(SETTLE_S)
        sh(lab, "h1", "vxnet node update --availability drain h2")
        until = time.monotonic() + ANSWERS_S
        while sh(lab, "h2", "vxnet ps -q --filter name=site"):
            assert time.monotonic() < until
            time.sleep(0.1)
        time.sleep(SETTLE_S)
    sh(lab, "h1", "vxnet node update --availability active h2; vxnet service update -q --rebalance site")
    for _, host, why in seen.failed[:3]:
        print(f"failed at {host}: {why}", file=sys.stderr)
    return seen.asked, len(seen.failed), seen.p99


def task_kills(lab: Lab) -> tuple[int, int, list[float]]:
    """(asked, failed, from the kill to the beginning of the last connection that failed, in s)."""
    asked = failed = 0
    spans = []
    kill = "import os,sys,time; print(time.monotonic()); os.kill(int(sys.argv[1]), 9)"
    for number in range(TASK_KILLS):
        whole(lab)
        host = HOSTS[number % len(HOSTS)]
        pid = json.loads(sh(lab, host, "vxnet inspect $(vxnet ps -q --filter name=site | head -1)"))[0]["pid"]
        with asking(lab, HOSTS) as seen:
            time.sleep(SETTLE_S)
            killed = float(python(lab, host, kill, str(pid)))
            time.sleep(SETTLE_S)
        asked += seen.asked
        failed += len(seen.failed)
        spans.append(max((begun - killed for begun, *_ in seen.failed), default=0.0))
    return asked, failed, spans


def host_kills(lab: Lab) -> list[float]:
    """From the death of h3 to the beginning of the last connection to another host that failed, in s."""
    spans = []
    for _ in range(HOST_KILLS):
        whole(lab)
        sh(lab, "h1", "vxnet service update -q --rebalance site")
        until = time.monotonic() + ANSWERS_S
        while not sh(lab, "h3", "vxnet ps -q --filter name=site"):
            assert time.monotonic() < until, "nothing of it runs on h3"
            time.sleep(0.1)
        time.sleep(SETTLE_S)
        with asking(lab, ("h1", "h2"), rate=200, timeout_s=1.0) as seen:
            time.sleep(SETTLE_S)
            killed = time.monotonic()
            lab.kill("h3")
            time.sleep(8)
        spans.append(max((begun - killed for begun, *_ in seen.failed), default=0.0))
        lab.start("h3")
        until = time.monotonic() + ANSWERS_S
        while not all(view.status == "ready" for view in lab.client("h1").nodes()):
            assert time.monotonic() < until
            time.sleep(0.1)
    return spans


def main() -> None:
    with Lab(hosts=4, join=False) as lab:
        mesh_cluster(lab)
        sh(lab, "h1", "vxnet network create -d overlay blue")
        rows = []
        for order in ("start-first", "stop-first"):
            if order == "stop-first":
                sh(lab, "h1", "vxnet service rm site")
            asked, failed, p99 = updates(lab, order)
            rows.append(
                [f"{UPDATES} updates, {order}", "0 failed", f"{failed} of {asked} failed; p99 {p99 * 1000:.0f} ms"]
            )
        asked, failed, p99 = drain(lab)
        rows.append(["a host is drained", "0 failed", f"{failed} of {asked} failed; p99 {p99 * 1000:.0f} ms"])
        asked, failed, spans = task_kills(lab)
        last = statistics.median(spans) * 1000
        rows.append(
            [
                f"{TASK_KILLS} tasks SIGKILLed",
                "its own open ones",
                f"{failed} of {asked} failed; the last began {last:.0f} ms after",
            ]
        )
        sh(lab, "h1", "vxnet service rm site")
        create(lab)
        sh(lab, "h1", "vxnet service update -q --publish-add published=8080,target=8080,policy=cluster site")
        spans = host_kills(lab)
        rows.append(
            [
                f"h3 is killed, `policy=cluster` (n={HOST_KILLS}): the last failed connection to h1 or h2 began",
                "≤ 3500 ms after (p50)",
                f"{statistics.median(spans) * 1000:.0f} [{min(spans) * 1000:.0f}–{max(spans) * 1000:.0f}] ms after",
            ]
        )
        table(f"Published ports, {RATE} connections/s from outside through three hosts", ["", "bound", "seen"], rows)


if __name__ == "__main__":
    main()
