"""The routing mesh: what it costs a connection, and what a change costs a node.

::

    client ── h1 ── t1        local: through h1 to t1, against a server in h1's own namespace
       └───── h2 ── t3        remote: through h1 to t3, against a server in h2's own namespace, asked directly
"""

from __future__ import annotations

import ipaddress
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial

from tests.host.mesh_rig import Node, Site, Task, port
from tests.host.throwaway import Place
from tests.perf.measure import compiled, interval, table
from vxnet.model.host import MeshPort

ROUNDS = 15
CONNECTIONS = 5000
ECHOES = 5000
SECONDS = 1
MANY = 500
FEW = 10
SERVED, BOUND = 8080, 9090
"""Ports of tasks: of connections and of echoes. Hosts' own servers have them, too."""
FIRST_CORE, SECOND_CORE = ("taskset", "-c", "0"), ("taskset", "-c", "1")
"""Client and servers. A client from outside shares no core with a server; here the two would do so directly, and not
through the mesh: the difference would be what it takes to wake a core."""
IPERF = 5201


def _ports(count: int, tasks: Sequence[Task]) -> tuple[MeshPort, ...]:
    """So many services of three tasks each, in both families; the first three lead to ``tasks``."""
    real = [(80, SERVED), (81, BOUND), (82, IPERF)]
    made = [port("tcp", *one, version, tasks) for one in real for version in (4, 6)]
    for number in range(count - len(real)):
        for version in (4, 6):
            first = ipaddress.ip_address("10.0.8.0" if version == 4 else "fd00:a::1:0") + number * 3
            made.append(
                MeshPort(
                    protocol="tcp",
                    published=20_000 + number,
                    version=4 if version == 4 else 6,
                    target=80,
                    backends=tuple(first + one for one in range(3)),
                )
            )
    return tuple(made)


class _Servers:
    """The two programs, and iperf3, in tasks and on the hosts themselves."""

    def __init__(self, site: Site, directory: str) -> None:
        self._running: list[subprocess.Popen[str]] = []
        self.connect, self.echo = (compiled(name, directory) for name in ("connect", "echo"))
        for place in (site.t1, site.t3, site.h1, site.h2):
            self._serve(place, self.connect, "serve", str(SERVED), ready="ready")
            self._serve(place, self.echo, "serve", str(BOUND), ready="ready")
            self._serve(place, "iperf3", "-s", "--forceflush", ready="Server listening")

    def _serve(self, place: Place, *argv: str, ready: str) -> None:
        process = place.do(partial(subprocess.Popen, (*SECOND_CORE, *argv), stdout=subprocess.PIPE, text=True))
        self._running.append(process)
        assert process.stdout is not None
        while ready not in process.stdout.readline():
            pass

    def close(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _pairs(one: Callable[[], float], other: Callable[[], float]) -> list[tuple[float, float]]:
    return [(one(), other()) for _ in range(ROUNDS)]


def _row(what: str, pairs: Sequence[tuple[float, float]], form: str = ",.0f", *, added: bool = False) -> list[str]:
    mine, other = (statistics.median(values) for values in zip(*pairs, strict=True))
    compared = [first - second if added else first / second for first, second in pairs]
    low, high = interval(compared)
    told = f"{statistics.median(compared):+.1f} µs" if added else f"{statistics.median(compared):.3f}"
    return [what, format(mine, form), format(other, form), f"{told} [{low:.3f}–{high:.3f}]"]


def connections() -> list[list[str]]:
    site = Site()
    with tempfile.TemporaryDirectory() as directory:
        servers = _Servers(site, directory)
        first, second = str(site.h1.outside[0]), str(site.h2.outside[0])

        def client(place: Place, *argv: str, check: bool = True) -> str:
            return place.run(*FIRST_CORE, *argv, check=check)

        def ask(address: str, number: int) -> float:
            return float(client(site.client, servers.connect, "ask", address, str(number), str(CONNECTIONS)).split()[0])

        def wait(address: str, number: int = 80) -> float:
            return float(client(site.client, servers.connect, "ask", address, str(number), str(CONNECTIONS)).split()[1])

        def echo(address: str, number: int) -> float:
            return float(client(site.client, servers.echo, "ask", address, str(number), str(ECHOES)))

        def stream(place: Place, address: str, number: int) -> float:
            while True:  # the server may not be done with the last one
                said = json.loads(
                    client(place, "iperf3", "-J", "-c", address, "-p", str(number), "-t", str(SECONDS), check=False)
                )
                if "error" not in said:
                    return float(said["end"]["sum_received"]["bits_per_second"]) / 1e9
                time.sleep(0.2)

        rows = []
        try:
            for words, task, direct in (("local", site.t1, first), ("remote", site.t3, second)):
                site.publish(*_ports(3, [task]))
                rates = _pairs(partial(ask, first, 80), partial(ask, direct, SERVED))
                rows.append(_row(f"{words}: connections/s", rates))
                echoes = _pairs(partial(echo, first, 81), partial(echo, direct, BOUND))
                rows.append(_row(f"{words}: RTT, µs", echoes, ".1f", added=True))
            overlay = str(site.t3.app_address)
            speeds = _pairs(lambda: stream(site.client, first, 82), lambda: stream(site.t1, overlay, IPERF))
            rows.append(_row("remote: TCP × 1, Gbit/s, against the overlay between two tasks", speeds, ".2f"))
            waits = []
            for _ in range(ROUNDS):
                pair = []
                for count in (MANY, FEW):
                    site.publish(*_ports(count, [site.t1]), nodes=[site.h1])
                    pair.append(wait(first))
                waits.append((pair[0], pair[1]))
            rows.append(_row(f"first packet, {MANY} services and {FEW}, µs", waits, ".1f"))
            return rows
        finally:
            servers.close()
            site.close()


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _put(site: Site, node: Node, ports: tuple[MeshPort, ...]) -> None:
    node.ports = ports
    node.reconcile(site.state(node), ())


def changes() -> list[list[str]]:
    """As the reconciler takes them, sandboxes and rows looked at, flows forgotten."""
    site = Site()
    try:
        node = site.h1
        tasks = (site.t1, site.t2, site.t3)
        full, less = _ports(MANY, tasks), _ports(MANY, tasks[:2])
        less = (*less[:2], *full[2:])
        loads = []
        for _ in range(5):
            _put(site, node, ())
            loads.append(_timed(partial(_put, site, node, full)))
        turns = [_timed(partial(_put, site, node, ports)) for ports in (less, full) * ROUNDS]
        return [
            [f"all {MANY} services, 3 tasks each, both families", *_times(loads)],
            ["one task less", *_times(turns[::2])],
            ["one task more", *_times(turns[1::2])],
        ]
    finally:
        site.close()


def _times(seconds: Sequence[float]) -> list[str]:
    values = [second * 1000 for second in seconds]
    return [f"{statistics.median(values):.1f}", f"{min(values):.1f}–{max(values):.1f} (n={len(values)})"]


def main() -> None:
    header = ["", "through the mesh", "directly", "ratio or difference"]
    table(f"Routing mesh: a client, two hosts, {ROUNDS} rounds in turns", header, connections())
    table("Routing mesh: a change on one node", ["a change", "ms", "least–most"], changes())


if __name__ == "__main__":
    main()
