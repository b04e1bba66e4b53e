"""Virtual IPs: what a connection costs, and what a change costs.

::

     client ── br65536 ── 3 servers         one machine, one network; the client's namespace holds the services
"""

from __future__ import annotations

import ipaddress
import json
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from msgspec.structs import replace

from tests.host.rig import Container, Machine, addresses, errors, state
from tests.perf.measure import compiled, interval, table
from vxnet.model.host import HostState, VirtualService

ROUNDS = 15
CONNECTIONS = 10_000
SECONDS = 2
MANY = 1000
CLIENTS = 100
VIP = ipaddress.ip_address("10.0.16.100")


def _services(count: int, backends: Sequence[Container]) -> tuple[VirtualService, ...]:
    """The first is the VIP that is asked; the others are there."""
    others = (
        VirtualService(
            address=ipaddress.ip_address("10.8.0.0") + number,
            backends=tuple(ipaddress.ip_address("10.9.0.0") + number * 4 + one for one in range(3)),
        )
        for number in range(1, count)
    )
    real = tuple(ipaddress.ip_address(one.ip4) for one in backends)
    return tuple(sorted((VirtualService(address=VIP, backends=real), *others), key=lambda one: one.address.packed))


def _with(before: HostState, services: tuple[VirtualService, ...]) -> HostState:
    return replace(before, segments=(replace(before.segments[0], services=services),))


class _Took(NamedTuple):
    """Seconds."""

    wall: float
    processor: float
    """With that of `nft`, where it is started."""


def _processor_s() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


def _timed(work: Callable[[], object]) -> _Took:
    begun, spent = time.perf_counter(), _processor_s()
    work()
    return _Took(time.perf_counter() - begun, _processor_s() - spent)


class _Site:
    def __init__(self, clients: int) -> None:
        self.machine = Machine()
        self.containers = [Container(number) for number in range(2, 2 + clients + 3)]
        self.servers, self.clients = self.containers[:3], self.containers[3:]
        self.state = state(addresses("192.168.9.1")[0], [one.sandbox() for one in self.containers], [])
        self.put(())

    def put(self, services: tuple[VirtualService, ...], *, everything: bool = True) -> None:
        self.state = _with(self.state, services)
        assert errors(self.machine.reconcile(self.state, None if everything else ())) == []

    def close(self) -> None:
        self.machine.close()
        for one in self.containers:
            one.close()


def _ratio(pairs: Sequence[tuple[float, float]]) -> str:
    ratios = [mine / other for mine, other in pairs]
    low, high = interval(ratios)
    return f"{statistics.median(ratios):.3f} [{low:.3f}–{high:.3f}]"


def connections() -> list[list[str]]:
    site = _Site(1)
    (client,) = site.clients
    processes = []
    with tempfile.TemporaryDirectory() as directory:
        program = compiled("connect", directory)

        def serve(place: Container, *argv: str, ready: str) -> None:
            process = place.do(subprocess.Popen, argv, stdout=subprocess.PIPE, text=True)
            processes.append(process)
            while ready not in process.stdout.readline():
                pass

        def ask(address: str) -> tuple[float, float]:
            rate, wait = client.run(program, "ask", address, "80", str(CONNECTIONS)).split()
            return float(rate), float(wait)

        def stream(address: str) -> float:
            while True:  # the server may not be done with the last one
                said = json.loads(client.run("iperf3", "-J", "-c", address, "-t", str(SECONDS), check=False))
                if "error" not in said:
                    return float(said["end"]["sum_received"]["bits_per_second"]) / 1e9
                time.sleep(0.5)

        try:
            for one in site.servers:
                serve(one, program, "serve", "80", ready="ready")
                serve(one, "iperf3", "-s", "--forceflush", ready="Server listening")
            direct = site.servers[0].ip4
            rows = []
            site.put(_services(1, site.servers[:1]))
            rates = [(ask(str(VIP))[0], ask(direct)[0]) for _ in range(ROUNDS)]
            mine, other = (statistics.median(values) for values in zip(*rates, strict=True))
            rows.append(["connections/s", f"{mine:,.0f}", f"{other:,.0f}", _ratio(rates)])
            speeds = [(stream(str(VIP)), stream(direct)) for _ in range(ROUNDS)]
            mine, other = (statistics.median(values) for values in zip(*speeds, strict=True))
            rows.append(["TCP × 1, Gbit/s", f"{mine:.2f}", f"{other:.2f}", _ratio(speeds)])
            waits = []
            for _ in range(ROUNDS):
                pair = []
                for count in (MANY, 10):
                    site.put(_services(count, site.servers))
                    pair.append(ask(str(VIP))[1])
                waits.append((pair[0], pair[1]))
            mine, other = (statistics.median(values) for values in zip(*waits, strict=True))
            rows.append([f"first packet, {MANY} services and 10, µs", f"{mine:.1f}", f"{other:.1f}", _ratio(waits)])
            return rows
        finally:
            for process in processes:
                process.kill()
                process.wait()
                process.stdout.close()
            site.close()


def changes(clients: int) -> list[_Took]:
    """Of one backend among MANY services, in so many clients' namespaces: seconds, as the reconciler takes them."""
    site = _Site(max(clients - 3, 0))
    try:
        site.state = replace(site.state, sandboxes=site.state.sandboxes[-clients:])
        full = _services(MANY, site.servers)
        short = _services(MANY, site.servers[:2])
        less = tuple(one if one.address != VIP else two for one, two in zip(full, short, strict=True))
        site.put(full)
        turns = (less, full) * (ROUNDS // 2 + 1)
        return [_timed(partial(site.put, services, everything=False)) for services in turns]
    finally:
        site.close()


def loads() -> list[_Took]:
    """MANY services into the namespaces of one container."""
    took = []
    for _ in range(5):
        site = _Site(0)
        try:
            alone = replace(site.state, sandboxes=site.state.sandboxes[:1])
            assert errors(site.machine.reconcile(alone)) == []
            loaded = _with(alone, _services(MANY, site.servers))
            took.append(_timed(partial(site.machine.reconcile, loaded, ())))
        finally:
            site.close()
    return took


def main() -> None:
    table(
        f"Virtual IPs: a client and its servers on one host, {ROUNDS} rounds in turns",
        ["", "through the VIP", "directly", "ratio"],
        connections(),
    )
    rows = [
        ["all of them into one namespace", *_times(loads())],
        ["one backend less or more, one namespace", *_times(changes(1))],
        ["one backend less or more, 3 namespaces", *_times(changes(3))],
        [f"one backend less or more, {CLIENTS} namespaces", *_times(changes(CLIENTS))],
    ]
    header = ["a change", "median [range], ms", "of a processor, ms"]
    table(f"Virtual IPs: {MANY} services with 3 tasks each", header, rows)


def _times(took: Sequence[_Took]) -> list[str]:
    return [
        f"{statistics.median(values):.1f} [{min(values):.1f}–{max(values):.1f}] (n={len(values)})"
        for values in ([one.wall * 1000 for one in took], [one.processor * 1000 for one in took])
    ]


if __name__ == "__main__":
    main()
