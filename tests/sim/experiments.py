"""What is measured in virtual time. Each prints one table; docs/performance.md has them with the bounds."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from tests.sim.network import Simulation, Weather


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


ALL: dict[str, Callable[[argparse.Namespace], None]] = {"false-deaths": false_deaths}
