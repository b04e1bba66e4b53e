"""Names per second: the resolver and dnsmasq with the same names, asked by the same dnsperf, in turns.

::

     a namespace of the bench's own      client: core 0     servers: core 1
     dnsperf ─▶ 127.0.0.11:53 ─ DNAT ─▶ Resolver in a process of its own
             ─▶ 127.0.0.1:53  ────────▶ dnsmasq
"""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.perf.measure import table
from vxnet.host import netns

NAMES = 1000
ROUNDS = 5
SECONDS = 3
OUTSTANDING = (20, 100)
SEQUENTIAL = 5000

SERVER = r"""
import asyncio, ipaddress, socket, sys, threading
from vxnet.cluster.dns import Resolver
from vxnet.core.names import View
from vxnet.host.dnsfast import FastNames
from vxnet.model.cluster import Network
from vxnet.model.row import Endpoint, RowKey, Version

NET = Network(id="n", name="net")

def row(number):
    address = ipaddress.ip_address("10.0.16.2") + number
    endpoint = Endpoint(network="n", vni=65536, addresses=(address,), mac="", vtep=address, name=f"name{number}")
    return RowKey("node", "endpoint", f"{number:012x}.n"), Version(1, 1), endpoint

def work(busy):
    # Python that never lets go of its lock, but when it must.
    while busy.wait():
        sum(range(10000))

async def main():
    udp, tcp = socket.socket(type=socket.SOCK_DGRAM), socket.socket()
    udp.bind(("127.0.0.11", 0))
    tcp.bind(("127.0.0.11", 0))
    tcp.listen()
    with FastNames() as fast:
        async with Resolver(fast) as resolver:
            resolver.know(map(row, range(int(sys.argv[1]))), {"n": NET})
            resolver.add("bench", udp, tcp, View(("n",), forward=False))
            print(udp.getsockname()[1], flush=True)
            loop = asyncio.get_running_loop()
            busy = threading.Event()
            loop.add_reader(sys.stdin, lambda: sys.stdin.readline() and (busy.clear() if busy.is_set() else busy.set()))
            loop.run_in_executor(None, work, busy)
            await asyncio.Event().wait()

asyncio.run(main())
"""

SEQUENTIAL_CLIENT = r"""
import socket, struct, sys, time
client = socket.socket(type=socket.SOCK_DGRAM)
client.connect((sys.argv[1], 53))
client.settimeout(2)
names = [f"name{number}".encode() for number in range(int(sys.argv[2]))]
heads = [struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + bytes((len(name),)) + name + b"\0\0\1\0\1" for name in names]
times = []
for number in range(int(sys.argv[3])):
    begun = time.perf_counter()
    client.send(heads[number % len(heads)])
    assert client.recv(512)[7] == 1
    times.append(time.perf_counter() - begun)
times.sort()
print(times[len(times) // 2] * 1e6, times[len(times) * 99 // 100] * 1e6)
"""


@contextlib.contextmanager
def _namespace() -> Iterator[list[str]]:
    """The words before a command that is to run in it."""
    fd = netns.create()
    try:
        inside = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{fd}"]
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
        yield inside
    finally:
        os.close(fd)


@contextlib.contextmanager
def _servers(inside: list[str], directory: Path) -> Iterator[tuple[Callable[[], None], int, int]]:
    """Gives what makes vxnet's process busy with Python, and idle again; its pid, and dnsmasq's."""
    hosts = directory / "hosts"
    hosts.write_text("".join(f"10.0.{16 + (n + 2) // 256}.{(n + 2) % 256} name{n}\n" for n in range(NAMES)))
    pinned = [*inside, "taskset", "-c", "1"]
    options = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", f"--addn-hosts={hosts}"]
    options += ["--bind-interfaces", "--listen-address=127.0.0.1", "--pid-file=", "--user=root", "--local-ttl=5"]
    processes: list[subprocess.Popen[str]] = [subprocess.Popen([*pinned, "dnsmasq", *options], text=True)]
    try:
        argv = [*pinned, sys.executable, "-c", SERVER, str(NAMES)]
        ours = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(ours)
        assert ours.stdin and ours.stdout
        port = int(ours.stdout.readline())
        dnat = f"ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:{port}"
        rules = f"table ip dns {{ chain output {{ type nat hook output priority -100; {dnat}; }}; }}"
        subprocess.run([*inside, "nft", rules], check=True)
        deadline = time.monotonic() + 10
        while subprocess.run([*inside, "dig", "@127.0.0.1", "+tries=1", "name0"], stdout=subprocess.DEVNULL).returncode:
            if time.monotonic() > deadline:
                raise TimeoutError("dnsmasq does not start")
            time.sleep(0.05)
        stdin = ours.stdin

        def toggle() -> None:
            stdin.write("\n")
            stdin.flush()

        yield toggle, ours.pid, processes[0].pid
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def _per_second(inside: list[str], server: str, outstanding: int, queries: Path) -> float:
    command = [*inside, "taskset", "-c", "0", "dnsperf", "-s", server, "-d", str(queries), "-l", str(SECONDS)]
    command += ["-q", str(outstanding), "-c", "1", "-t", "2"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lost = re.search(r"Queries lost:\s+(\d+)", output)
    if lost is None or int(lost[1]) or "NOERROR" not in output or "NXDOMAIN" in output:
        raise RuntimeError(f"{server} did not answer everything:\n{output}")
    found = re.search(r"Queries per second:\s+([\d.]+)", output)
    assert found
    return float(found[1])


def _processor_s(pid: int) -> float:
    """Time that a process has had of a processor, the kernel's work for it included."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _sequential(inside: list[str], server: str) -> tuple[float, float]:
    """p50 and p99 in µs, as a Python client sees them that waits for no processor, only for the server."""
    command = [
        *inside,
        "taskset",
        "-c",
        "0",
        "chrt",
        "-f",
        "10",
        sys.executable,
        "-c",
        SEQUENTIAL_CLIENT,
        server,
        str(NAMES),
    ]
    output = subprocess.run([*command, str(SEQUENTIAL)], check=True, capture_output=True, text=True).stdout
    p50, p99 = map(float, output.split())
    return p50, p99


def main() -> None:
    ours, theirs = "127.0.0.11", "127.0.0.1"
    rates: dict[tuple[str, int], list[float]] = {}
    waits: dict[str, list[tuple[float, float]]] = {}
    costs: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as name, _namespace() as inside:
        directory = Path(name)
        queries = directory / "queries"
        queries.write_text("".join(f"name{number} A\n" for number in range(NAMES)))
        with _servers(inside, directory) as (toggle_work, our_pid, their_pid):
            pids = {ours: our_pid, theirs: their_pid}
            for _ in range(ROUNDS):
                for server in (ours, theirs):
                    for outstanding in OUTSTANDING:
                        before = _processor_s(pids[server])
                        rate = _per_second(inside, server, outstanding, queries)
                        rates.setdefault((server, outstanding), []).append(rate)
                        spent = (_processor_s(pids[server]) - before) / (rate * SECONDS) * 1e6
                        costs.setdefault((server, outstanding), []).append(spent)
                    waits.setdefault(server, []).append(_sequential(inside, server))
                toggle_work()
                waits.setdefault("busy", []).append(_sequential(inside, ours))
                rates.setdefault(("busy", 100), []).append(_per_second(inside, ours, 100, queries))
                toggle_work()

    def rate_of(server: str, outstanding: int) -> str:
        values = rates[server, outstanding]
        return f"{statistics.median(values):,.0f} [{min(values):,.0f}–{max(values):,.0f}]"

    def wait_of(server: str) -> str:
        return " / ".join(f"{statistics.median(values):.0f}" for values in zip(*waits[server], strict=True))

    rows = []
    for outstanding in OUTSTANDING:
        pairs = zip(rates[ours, outstanding], rates[theirs, outstanding], strict=True)
        ratio = statistics.median(mine / other for mine, other in pairs)
        row = [f"{outstanding} outstanding, queries/s", rate_of(ours, outstanding), rate_of(theirs, outstanding)]
        rows.append([*row, f"{ratio:.2f}"])
    for outstanding in OUTSTANDING:
        mine, other = (costs[server, outstanding] for server in (ours, theirs))
        ratio = statistics.median(one / two for one, two in zip(mine, other, strict=True))
        name = f"… processor time of the server, µs a query ({outstanding} outstanding)"
        rows.append([name, f"{statistics.median(mine):.2f}", f"{statistics.median(other):.2f}", f"{ratio:.2f}"])
    p50 = statistics.median(mine[0] / other[0] for mine, other in zip(waits[ours], waits[theirs], strict=True))
    rows.append(["sequential, p50 / p99, µs", wait_of(ours), wait_of(theirs), f"{p50:.2f} (p50)"])
    rows.append(["… while a Python thread of the daemon works", wait_of("busy"), "", ""])
    rows.append(["100 outstanding meanwhile, queries/s", rate_of("busy", 100), "", ""])
    title = f"Names: {NAMES} of them, {ROUNDS} rounds in turns, one core for the client and one for the servers"
    table(title, ["", "vxnet (by DNAT)", "dnsmasq", "ratio"], rows)


if __name__ == "__main__":
    main()
