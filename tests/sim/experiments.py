"""What is measured in virtual time. Each prints one table; docs/performance.md has them with the bounds."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable

from tests.sim.network import Simulation, Weather
from vxnet.core.rows import Batch, decode_content


def false_deaths(options: argparse.Namespace) -> None:
    """100 nodes, 5 % of all packets lost: nobody may die. Progress on each simulated half hour."""
    sim = Simulation(options.seed, 100, weather=Weather(loss=0.05), acquainted=True)
    begun, end = time.process_time(), sim.now + options.hours * 3600
    while sim.now < end:
        sim.run(min(1800.0, end - sim.now))
        suspected = sum(change.status == "suspect" for change in sim.history)
        print(
            f"false-deaths: seed {options.seed}, {(sim.now - 1000) / 3600:.1f} h of 100 nodes at 5 % loss:"
            f" {suspected} suspicions seen, {len(sim.deaths())} deaths seen,"
            f" {sim.octets * 8 / 1000 / 100 / (sim.now - 1000):.1f} kb/s a node, {time.process_time() - begun:.0f} s",
            flush=True,
        )


class Arrivals:
    """When each row got where."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._put: dict[str, float] = {}
        self.delays: list[float] = []
        for number, node in sim.nodes.items():
            node.table.received = lambda batch, number=number: self._received(number, batch)  # type: ignore[misc]

    def put(self, number: int, id_: str, host: int) -> None:
        self._put[id_] = self._sim.now
        self._sim.put(number, id_, host)

    def _received(self, number: int, batch: Batch) -> None:
        content = decode_content(batch.content)
        if content.owner != f"id{number}":
            self.delays += [self._sim.now - self._put[row.id] for row in content.rows if row.id in self._put]

    def quantile(self, part: float) -> float:
        return sorted(self.delays)[min(len(self.delays) - 1, int(part * len(self.delays)))]


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def head(*cells: str) -> None:
    row(*cells)
    row(*("---" for _ in cells))


def spread(options: argparse.Namespace) -> None:
    """One row to all."""
    head("nodes", "loss", "rows", "p50", "p99", "last", "octets a node and row")
    for count, loss, repeats in ((30, 0.0, 20), (100, 0.0, 20), (100, 0.2, 20), (1000, 0.0, 8), (1000, 0.2, 8)):
        _spread(options.seed, count, loss, repeats)


def spread_10000(options: argparse.Namespace) -> None:
    """One row to 10,000 nodes."""
    head("nodes", "loss", "rows", "p50", "p99", "last", "octets a node and row")
    _spread(options.seed, 10_000, 0.2, 3)


def _spread(seed: int, count: int, loss: float, repeats: int) -> None:
    sim = Simulation(seed, count, weather=Weather(loss=loss), acquainted=True)
    # None of it is garbage: at 10,000 nodes, looking for some takes longer than the rest.
    gc.freeze()
    sim.run(3)
    arrivals = Arrivals(sim)
    octets = 0
    for repeat in range(repeats):
        arrivals.delays, kept = [], arrivals.delays
        before = sim.octets
        arrivals.put(sim.rng.randrange(count) + 1, f"r{repeat}", repeat)
        sim.run(10, until=lambda: len(arrivals.delays) == count - 1)
        octets += sim.octets - before
        arrivals.delays += kept
        arrivals.delays += [float("inf")] * ((repeat + 1) * (count - 1) - len(arrivals.delays))
        if count < 10_000:
            sim.run(3)
    half, most, last = (arrivals.quantile(part) for part in (0.5, 0.99, 1.0))
    row(count, f"{loss:.0%}", repeats, f"{half:.2f} s", f"{most:.2f} s", f"{last:.2f} s", octets // count // repeats)


ALL: dict[str, Callable[[argparse.Namespace], None]] = {
    "spread": spread,
    "spread-10000": spread_10000,
    "false-deaths": false_deaths,
}
