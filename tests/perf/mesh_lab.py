"""The routing mesh on real hosts: whether every connection arrives, and who notices an update, a drain or a death.

::

    h4: the client, in no cluster ── h1, h2, h3: three tasks of one service, 80 → 8080/tcp and 53 → 5353/udp
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator

from tests.perf.measure import ms, python, sh, table
from vxnet.lab import Lab

EACH = 1000
"""Connections through each host, of each kind."""
RATE = 500
UPDATES = 2
TASK_KILLS = 3
HOST_KILLS = 3
HOSTS = ("h1", "h2", "h3")
PATIENCE_S = 1.0
"""A request that is not answered by then has failed."""

SERVER = r"""
import asyncio, signal, socket
async def main():
    loop = asyncio.get_running_loop()
    open_ones = set()
    async def serve(reader, writer):
        open_ones.add(asyncio.current_task())
        try:
            line = await reader.readline()
            peer = writer.get_extra_info("peername")[0].removeprefix("::ffff:")
            writer.write(line.strip() + b" " + peer.encode() + b"\n")
            await writer.drain()
        finally:
            writer.close()
            open_ones.discard(asyncio.current_task())
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport
        def datagram_received(self, data, address):
            self.transport.sendto(data.strip() + b" " + address[0].removeprefix("::ffff:").encode(), address)
    server = await asyncio.start_server(serve, "::", 8080, backlog=1000)
    both = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    both.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    both.bind(("::", 5353))
    await loop.create_datagram_endpoint(Echo, sock=both)
    end = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, end.set)
    await end.wait()
    server.close()
    if open_ones:
        await asyncio.wait(open_ones, timeout=5)
asyncio.run(main())
"""

# EACH requests of one kind to each address: [lost, answered with another address than ours].
THROUGH = r"""
import asyncio, json, socket, sys
kind, count, *places = sys.argv[1:]
async def tcp(address, own, number):
    reader, writer = await asyncio.wait_for(asyncio.open_connection(address, 80), 5)
    writer.write(b"%d\n" % number)
    line = await asyncio.wait_for(reader.read(200), 5)
    writer.close()
    return line.split() == [b"%d" % number, own.encode()]
async def udp(address, own, number):
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setblocking(False)
        one.connect((address, 53))
        await loop.sock_sendall(one, b"%d" % number)
        line = await asyncio.wait_for(loop.sock_recv(one, 200), 5)
        return line.split() == [b"%d" % number, own.encode()]
async def main():
    found = {}
    for place in places:
        address, own = place.split("@")
        limit, told = asyncio.Semaphore(50), []
        async def one(number):
            async with limit:
                try:
                    told.append(await (tcp if kind == "tcp" else udp)(address, own, number))
                except (OSError, asyncio.TimeoutError, IndexError):
                    told.append(None)
        await asyncio.gather(*(one(number) for number in range(int(count))))
        found[address] = [told.count(None), told.count(False)]
    print(json.dumps(found))
asyncio.run(main())
"""

# RATE requests a second, a new connection each, through all addresses in turn, until standard input ends.
ASK = r"""
import asyncio, json, sys, time
rate, patience, *addresses = sys.argv[1:]
failed, times = [], []
async def ask(address):
    begun = time.monotonic()
    try:
        async with asyncio.timeout(float(patience)):
            reader, writer = await asyncio.open_connection(address, 80)
            try:
                writer.write(b"x\n")
                if not (await reader.read(200)).startswith(b"x "):
                    raise OSError("no answer")
            finally:
                writer.close()
        times.append(time.monotonic() - begun)
    except (OSError, TimeoutError) as error:
        failed.append((begun, time.monotonic(), address, repr(error)))
async def main():
    loop = asyncio.get_running_loop()
    end = loop.run_in_executor(None, sys.stdin.read)
    print("asking", flush=True)
    due, tasks, number = time.monotonic(), set(), 0
    while not end.done():
        one = loop.create_task(ask(addresses[number % len(addresses)]))
        tasks.add(one)
        one.add_done_callback(tasks.discard)
        number += 1
        due += 1 / float(rate)
        await asyncio.sleep(max(due - time.monotonic(), 0))
    await asyncio.gather(*tasks)
    times.sort()
    p99 = times[int(len(times) * 0.99)] if times else None
    print(json.dumps({"asked": number, "failed": failed, "p99": p99}), flush=True)
asyncio.run(main())
"""


class Asking:
    def __init__(self, lab: Lab, addresses: list[str]) -> None:
        argv = [sys.executable, "-c", ASK, str(RATE), str(PATIENCE_S), *addresses]
        self._process = lab.popen("h4", argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "asking\n"
        self.asked = 0
        self.failed: list[tuple[float, float, str, str]] = []
        self.p99 = 0.0

    def end(self) -> None:
        said, _ = self._process.communicate()
        found = json.loads(said)
        self.asked, self.p99 = found["asked"], found["p99"] or 0.0
        self.failed = [tuple(one) for one in found["failed"]]


@contextlib.contextmanager
def asking(lab: Lab, hosts: tuple[str, ...] = HOSTS) -> Iterator[Asking]:
    one = Asking(lab, [f"192.168.56.1{host[1]}" for host in hosts])
    time.sleep(1)
    yield one
    time.sleep(1)
    one.end()


def _until(lab: Lab, script: str, wanted: str) -> None:
    deadline = time.monotonic() + 120
    while wanted not in sh(lab, "h1", script):
        if time.monotonic() > deadline:
            raise TimeoutError(script)
        time.sleep(0.2)


def _through(lab: Lab) -> list[list[str]]:
    rows = []
    for version, own, form in (("IPv4", "192.168.56.14", "192.168.56.1{}"), ("IPv6", "fd00:56::14", "fd00:56::1{}")):
        for kind in ("tcp", "udp"):
            places = [f"{form.format(host[1])}@{own}" for host in HOSTS]
            found = json.loads(python(lab, "h4", THROUGH, kind, str(EACH), *places))
            lost = sum(one[0] for one in found.values())
            wrong = sum(one[1] for one in found.values())
            rows.append([f"{kind}, {version}", str(EACH * len(HOSTS)), str(lost), str(wrong)])
    return rows


def _changes(lab: Lab) -> list[list[str]]:
    rows = []
    for number in range(UPDATES):
        with asking(lab) as one:
            sh(lab, "h1", f"vxnet service update --env-add N={number} my-web", timeout_s=240)
        rows.append([f"rolling update, all {len(HOSTS)} tasks", *_told(one)])
    with asking(lab) as one:
        sh(lab, "h1", "vxnet node update --availability drain h2")
        deadline = time.monotonic() + 60
        while " on h2)" in sh(lab, "h1", "vxnet mesh 80/tcp") and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(3)
    rows.append(["drain of a node", *_told(one)])
    sh(lab, "h1", "vxnet node update --availability active h2")
    sh(lab, "h1", "vxnet service update --force my-web", timeout_s=240)
    return rows


def _told(one: Asking) -> list[str]:
    return [f"{one.asked:,}", str(len(one.failed)), f"{one.p99 * 1000:.0f}"]


def _task_kills(lab: Lab) -> list[list[str]]:
    rows = []
    for _ in range(TASK_KILLS):
        _ready_again(lab)
        with asking(lab) as one:
            name = sh(lab, "h2", "vxnet ps -q | head -1").strip()
            sh(lab, "h2", f"vxnet kill {name}")
            time.sleep(4)
        spread = max((each[0] for each in one.failed), default=0.0) - min((each[0] for each in one.failed), default=0.0)
        rows.append(["a task killed", *_told(one), f"{spread * 1000:.0f}"])
    return rows


def _ready_again(lab: Lab) -> None:
    deadline = time.monotonic() + 60
    while sh(lab, "h1", "vxnet service ps my-web | grep -c Running").strip() != "3" and time.monotonic() < deadline:
        time.sleep(0.3)
    time.sleep(1)


def _host_kills(lab: Lab) -> list[float]:
    took = []
    for _ in range(HOST_KILLS):
        _ready_again(lab)
        with asking(lab, ("h1", "h2")) as one:
            killed = time.monotonic()
            lab.kill("h3")
            time.sleep(9)
        took.append(max((begun for begun, *_ in one.failed), default=killed) - killed)
        lab.start("h3")
        _until(lab, "vxnet node ls", "h3")
        time.sleep(6)
        sh(lab, "h3", "ip addr add fd00:56::13/64 dev eth1 nodad || true")
        sh(lab, "h1", "vxnet service update --force my-web", timeout_s=240)
    return took


def main() -> None:
    with Lab(hosts=4, join=False) as lab:
        sh(lab, "h1", "vxnet init --advertise-addr eth1")
        token = sh(lab, "h1", "vxnet join-token -q worker").strip()
        for host in ("h2", "h3"):
            sh(lab, host, f"vxnet join --token {token} --advertise-addr eth1 192.168.56.11")
        for host in (*HOSTS, "h4"):
            sh(lab, host, f"ip addr add fd00:56::1{host[1]}/64 dev eth1 nodad")
        sh(lab, "h1", "vxnet network create app")
        argv = "vxnet service create --name my-web --network app --replicas 3 -p 80:8080 -p 53:5353/udp --"
        lab.run("h1", [*argv.split(), "python3", "-u", "-c", SERVER], check=True, timeout_s=120)
        _ready_again(lab)
        table(
            f"Routing mesh: {EACH} connections through each of {len(HOSTS)} hosts",
            ["", "connections", "lost", "another client's address"],
            _through(lab),
        )
        header = [f"at {RATE} requests/s through all hosts", "requests", "failed", "p99, ms"]
        table("Routing mesh: who notices a change", header, _changes(lab))
        table("Routing mesh: a task is killed", [*header, "from first to last failure, ms"], _task_kills(lab))
        took = _host_kills(lab)
        words = "from the kill to the last failed request through the other hosts, ms"
        table("Routing mesh: a host is killed", ["", "median [least–most]"], [[words, ms(took)]])


if __name__ == "__main__":
    main()
