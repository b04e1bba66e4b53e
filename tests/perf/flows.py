"""One task of a published service less, on a node whose table of flows is empty, and on one through which 20,000
connections go: what the change takes, and how long it is until what went to that task is forgotten.

*All are read*: as before the kernel was asked to choose (:mod:`vxnet.host.conntrack`), in turns with it.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal
from unittest.mock import patch

from tests.host.mesh_rig import Site, port
from tests.host.test_conntrack import Reader, entry
from tests.perf.measure import table
from vxnet.host import conntrack
from vxnet.model.host import MeshPort

ROUNDS = 15
CONNECTIONS = 20_000
SERVICES = 500


def _ports(site: Site) -> tuple[tuple[MeshPort, ...], tuple[MeshPort, ...]]:
    """Of all services, with three tasks each, and with one less of the first. The others are the same objects."""
    tasks = (site.t1, site.t2, site.t3)
    versions: tuple[Literal[4, 6], ...] = (4, 6)
    full = [port("tcp", 20_000 + number, 80, version, tasks) for number in range(SERVICES) for version in versions]
    less = [port("tcp", 20_000, 80, version, tasks[:2]) for version in versions]
    return tuple(full), (*less, *full[2:])


def _fill(site: Site) -> None:
    requests = [
        entry(socket.IPPROTO_TCP, 1024 + number, answered=True, backend=f"10.0.0.{11 + number % 3}")
        for number in range(CONNECTIONS)
    ]
    with Reader(site.h1) as netlink:
        assert netlink.batch(requests) == {}


@contextmanager
def _all_are_read() -> Iterator[None]:
    with patch.object(conntrack, "UNANSWERED", (socket.AF_UNSPEC, b"")):
        yield


def _turn(site: Site, full: tuple[MeshPort, ...], less: tuple[MeshPort, ...]) -> tuple[float, float, float]:
    """Milliseconds: one less, one more at once after it, and from the first to the end of forgetting."""
    node, times = site.h1, []
    begun = time.perf_counter()
    for ports in (less, full):
        before = time.perf_counter()
        node.ports = ports
        node.reconcile(site.state(node), ())
        times.append((time.perf_counter() - before) * 1000)
    node.kernel._forgetter.wait()
    return times[0], times[1], (time.perf_counter() - begun) * 1000


def _row(words: str, turns: Sequence[tuple[float, float, float]]) -> list[str]:
    columns = [sorted(values) for values in zip(*turns, strict=True)]
    told = [f"{statistics.median(one):.1f} [{one[0]:.1f}–{one[-1]:.1f}] (n={len(one)})" for one in columns]
    return [words, *told]


def main() -> None:
    site = Site()
    try:
        full, less = _ports(site)
        site.publish(*full, nodes=[site.h1])
        empty = [_turn(site, full, less) for _ in range(ROUNDS)]
        _fill(site)
        chosen, read = [], []
        for _ in range(ROUNDS):
            chosen.append(_turn(site, full, less))
            with _all_are_read():
                read.append(_turn(site, full, less))
        table(
            f"{SERVICES} published services with 3 tasks each, both families, in one node's table",
            ["", "one task less, ms", "one more at once after it, ms", "both, and stale flows forgotten, ms"],
            [
                _row("no connections", empty),
                _row(f"{CONNECTIONS:,} connections, the kernel chooses", chosen),
                _row(f"{CONNECTIONS:,} connections, all are read", read),
            ],
        )
    finally:
        site.close()


if __name__ == "__main__":
    main()
