"""What is measured in virtual time. Each prints one table; docs/performance.md has them with the bounds."""

from __future__ import annotations

import argparse
import gc
import hashlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable

from tests.sim.network import Change, Simulation, Weather
from vxnet.core import rows
from vxnet.core.push import OVERHEAD
from vxnet.core.rows import Batch, decode_content
from vxnet.core.timing import LAN


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

    def __init__(self, sim: Simulation, numbers: Iterable[int] = ()) -> None:
        """``numbers``: the nodes that are looked at; none: all."""
        self._sim = sim
        self.rows: dict[str, float] = {}
        """When each was put."""
        self.delays: list[float] = []
        for number in tuple(numbers) or tuple(sim.nodes):
            node = sim.nodes[number]
            node.table.received = lambda batch, number=number: self._received(number, batch)  # type: ignore[misc]

    def put(self, number: int, id_: str, host: int) -> None:
        self.rows[id_] = self._sim.now
        self._sim.put(number, id_, host)

    def _received(self, number: int, batch: Batch) -> None:
        content = decode_content(batch.content)
        if content.owner != f"id{number}":
            self.delays += [self._sim.now - self.rows[row.id] for row in content.rows if row.id in self.rows]

    def wait(self, count: int, seconds: float) -> float:
        """Until so many have arrived. How long that took."""
        return self._sim.run(seconds, until=lambda: len(self.delays) >= count)

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
    gc.disable()
    sim.run(3)
    arrivals = Arrivals(sim)
    octets = 0
    for repeat in range(repeats):
        arrivals.delays, kept = [], arrivals.delays
        before = sim.octets
        arrivals.put(sim.rng.randrange(count) + 1, f"r{repeat}", repeat)
        arrivals.wait(count - 1, 10)
        octets += sim.octets - before
        arrivals.delays += kept
        arrivals.delays += [float("inf")] * ((repeat + 1) * (count - 1) - len(arrivals.delays))
        if count < 10_000:
            sim.run(3)
    half, most, last = (arrivals.quantile(part) for part in (0.5, 0.99, 1.0))
    row(count, f"{loss:.0%}", repeats, f"{half:.2f} s", f"{most:.2f} s", f"{last:.2f} s", octets // count // repeats)


def rates(options: argparse.Namespace) -> None:
    """New rows a second at 100 nodes, at random nodes, for 10 s; at most 1 Mb/s a node."""
    head("way", "loss", "rows/s", "p50", "p99", "last", "missing 10 s later", "kb/s a node: mean", "greatest")
    plain = LAN._replace(tree_from=1 << 20, payload_sends=3)
    for way, settings, rate, loss in (
        ("plain push", plain, 150, 0.0),
        ("plain push", plain, 150, 0.05),
        ("tree", LAN, 150, 0.0),
        ("tree", LAN, 1000, 0.0),
        ("tree", LAN, 1000, 0.05),
    ):
        weather = Weather(loss=loss)
        sim = Simulation(options.seed, 100, weather=weather, settings=settings, acquainted=True, encrypted=True)
        sim.run(3)
        arrivals, seconds = Arrivals(sim), 10
        sent = dict(sim.sent)
        for number in range(rate * seconds):
            arrivals.put(sim.rng.randrange(100) + 1, f"{sim.rng.randbytes(6).hex()}.net1", number)
            sim.run(1 / rate)
        kbps = sorted((sim.sent[node] - sent.get(node, 0)) * 8 / 1000 / seconds for node in sim.nodes)
        sim.run(10)
        missing = rate * seconds * 99 - len(arrivals.delays)
        half, most, last = (f"{arrivals.quantile(part):.2f} s" for part in (0.5, 0.99, 1.0))
        row(way, f"{loss:.0%}", rate, half, most, last, missing, f"{sum(kbps) / 100:.0f}", f"{kbps[-1]:.0f}")


def burst(options: argparse.Namespace) -> None:
    """1,000 rows at once, of one node and of all."""
    head("nodes", "rows of", "loss", "p50", "last row everywhere")
    for count, sources, loss in ((10, 1, 0.0), (100, 1, 0.0), (100, 1, 0.05), (100, 100, 0.0), (100, 100, 0.05)):
        sim = Simulation(options.seed, count, weather=Weather(loss=loss), acquainted=True)
        sim.run(3)
        arrivals = Arrivals(sim)
        for number in range(1000):
            arrivals.put(number % sources + 1, f"{sim.rng.randbytes(6).hex()}.net1", number)
        took = arrivals.wait(1000 * (count - 1), 20)
        row(count, sources, f"{loss:.0%}", f"{arrivals.quantile(0.5):.2f} s", f"{took:.2f} s")


def churn(options: argparse.Namespace) -> None:
    """NetworkDB's own test: 25 nodes, 8 junk writes every 20 ms, one member that comes and goes; a row a second is
    watched."""
    head("nodes", "watched rows", "p50", "p90", "p99", "last")
    sim = Simulation(options.seed, 25, acquainted=True)
    sim.run(3)
    arrivals = Arrivals(sim)
    watched = 0
    for tick in range(60 * 50):
        for _ in range(8):
            # 40 rows a node, written over and deleted.
            number, id_ = sim.rng.randrange(24) + 1, f"junk{sim.rng.randrange(40)}"
            if sim.rng.random() < 0.5:
                sim.put(number, id_, sim.rng.randrange(10_000))
            else:
                sim.delete(number, id_)
        if tick % 50 == 0:
            watched += 1
            arrivals.put(sim.rng.randrange(24) + 1, f"watched{watched}", watched)
        if tick % 500 == 100:
            sim.kill(25)
        if tick % 500 == 300:
            sim.start(25)
            sim.join(25, 1)
        sim.run(0.02)
    sim.run(10)
    row(25, watched, *(f"{arrivals.quantile(part):.2f} s" for part in (0.5, 0.9, 0.99, 1.0)))


def detection(options: argparse.Namespace) -> None:
    """A killed node, until the last of the others holds it for dead."""
    head("nodes", "kills", "p50", "p99", "last", "first to know, p50")
    for count, kills in ((3, 200), (5, 200), (10, 200), (30, 60), (100, 60), (1000, 5)):
        times = [_detect(options.seed + kill, count) for kill in range(kills)]
        everywhere, first = sorted(last for _, last in times), statistics.median(first for first, _ in times)
        most = everywhere[min(kills - 1, int(0.99 * kills))]
        half = statistics.median(everywhere)
        row(count, kills, f"{half:.2f} s", f"{most:.2f} s", f"{everywhere[-1]:.2f} s", f"{first:.2f} s")


def _detect(seed: int, count: int) -> tuple[float, float]:
    """(until the first knows, until all do)."""
    sim = Simulation(seed, count, acquainted=True)
    sim.run(2 + sim.rng.random() * 2)
    begun = sim.now
    sim.kill(sim.rng.randrange(count) + 1)
    took = sim.run(60, until=lambda: len(sim.deaths(begun)) >= count - 1)
    return sim.deaths(begun)[0][0] - begun, took


def stalls(options: argparse.Namespace) -> None:
    """4 of 100 nodes stand still for 10 s at a time, again and again; who is held for dead?"""
    head("protocol", "simulated", "healthy declared dead", "stalling declared dead", "healthy suspected")
    plain = LAN._replace(awareness_max=1, suspicion_max_multiplier=1.0, stall_fraction=1e9)
    for protocol, settings in (("SWIM, Lifeguard and the stall clock", LAN), ("plain SWIM", plain)):
        sim = Simulation(options.seed, 100, settings=settings, acquainted=True)
        sim.run(5)
        stalling = {7, 31, 58, 90}
        for _ in range(60):
            for number in stalling:
                sim.freeze(number)
                sim.run(sim.rng.random())
            sim.run(8)
            for number in sorted(stalling):
                sim.thaw(number)
                sim.run(sim.rng.random())
            sim.run(5)
        names = {f"h{number}" for number in stalling}
        dead = _episodes(change for change in sim.history if change.status == "dead")
        suspects = _episodes(change for change in sim.history if change.status == "suspect")
        row(
            protocol,
            f"{(sim.now - 1000) / 60:.0f} min",
            sum(count for name, count in dead.items() if name not in names),
            sum(count for name, count in dead.items() if name in names),
            sum(count for name, count in suspects.items() if name not in names),
        )


def _episodes(changes: Iterable[Change]) -> Counter[str]:
    """How often each name was called so: once, however many heard of it."""
    found: Counter[str] = Counter()
    last: dict[str, float] = {}
    for change in changes:
        found[change.name] += change.when - last.get(change.name, -100.0) > 7
        last[change.name] = change.when
    return found


def idle(options: argparse.Namespace) -> None:
    """What a quiet cluster says, with its probes."""
    head("nodes", "kb/s a node", "of it anti-entropy", "one exchange when equal, both ways")
    for count, seconds in ((10, 120), (100, 120), (1000, 30), (10_000, 10)):
        found = []
        for settings in (LAN, LAN._replace(digest_interval_s=1e9)):
            # As in production: sealed.
            sim = Simulation(options.seed, count, settings=settings, acquainted=True, encrypted=True)
            gc.freeze()
            sim.run(2)
            before = sim.octets
            sim.run(seconds)
            found.append((sim.octets - before) * 8 / 1000 / count / seconds)
            digest = len(rows.encode(rows.Digest(bytes(8), bytes(8)))) + 1 + OVERHEAD
        row(count, f"{found[0]:.1f}", f"{found[0] - found[1]:.2f}", f"{2 * digest} octets")


def interest(options: argparse.Namespace) -> None:
    """A network that lives on 10 nodes of n: its rows pushed to all, or to those 10 while the others find them by
    comparison. A row each second of every ten of the nodes."""
    head(
        "nodes",
        "rows are pushed to",
        "kb/s a node, above idle",
        "octets a node and row",
        "its users: p99",
        "others: p50",
    )
    for count in (30, 100, 300, 1000):
        _interest(options.seed, count, None)
        _interest(options.seed, count, frozenset(f"h{number}" for number in range(1, 11)))


def _interest(seed: int, count: int, users: frozenset[str] | None) -> None:
    sim = Simulation(seed, count, acquainted=True, encrypted=True)
    for node in sim.nodes.values():
        node.spread.push.audience = None if users is None else lambda member: member.name in users
    sim.run(5)
    before = sim.octets
    sim.run(15)
    idle_rate, before = (sim.octets - before) / 15, sim.octets
    near, far = Arrivals(sim, range(1, 11)), Arrivals(sim, range(11, count + 1))
    far.rows = near.rows
    seconds, every = 20, 10 / count
    begun, number = sim.now, 0
    while sim.now < begun + seconds:
        number += 1
        near.put(sim.rng.randrange(10) + 1, f"{sim.rng.randbytes(6).hex()}.net1", number)
        sim.run(every)
    sim.run(6)
    octets = sim.octets - before - idle_rate * (seconds + 6)
    row(
        count,
        "all" if users is None else "10",
        f"{octets * 8 / 1000 / count / seconds:.1f}",
        round(octets / count / number),
        f"{near.quantile(0.99):.2f} s",
        f"{far.quantile(0.5):.2f} s",
    )


def fingerprint(options: argparse.Namespace) -> None:
    """The same wherever it runs, compiled or not."""
    weather = Weather(loss=0.1, duplicate=0.1, greatest_delay_s=0.05)
    sim = Simulation(options.seed, 20, weather=weather, encrypted=True, acquainted=True)
    for number in sim.nodes:
        sim.put(number, "e", number)
    sim.run(20)
    sim.kill(7)
    sim.run(20)
    seen = repr((sim.packets, sim.octets, sim.history, sorted(sim.roots())))
    print(hashlib.blake2b(seen.encode(), digest_size=16).hexdigest())


ALL: dict[str, Callable[[argparse.Namespace], None]] = {
    "spread": spread,
    "spread-10000": spread_10000,
    "rates": rates,
    "burst": burst,
    "churn": churn,
    "detection": detection,
    "stalls": stalls,
    "idle": idle,
    "interest": interest,
    "false-deaths": false_deaths,
    "fingerprint": fingerprint,
}
