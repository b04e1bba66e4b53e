"""Rows that come faster than their signatures can be checked."""

from __future__ import annotations

import random

import pytest

from tests.gossip_cluster import Cluster, Papers, endpoint
from vxnet.core import frame, intake, rows, wire
from vxnet.core.agenda import Agenda
from vxnet.core.author import Author
from vxnet.core.gossip import GossipNode
from vxnet.core.intake import Arrival, Intake
from vxnet.core.roster import Span
from vxnet.core.rows import Batch

WALL = 1_800_000_000.0
PEER = ("192.0.2.2", 7946)
BY_ITSELF = Arrival(PEER, None, is_found=False, is_rare=True)


class Bench:
    def __init__(self) -> None:
        self.agenda = Agenda()
        self.checked: list[tuple[Batch, Arrival]] = []
        self.intake = Intake(self.agenda, lambda batch, arrival: self.checked.append((batch, arrival)))

    def pass_time(self, seconds: float) -> None:
        self.agenda.observe(self.agenda.now + seconds, 1e9)
        self.agenda.run()


def batches(count: int, size: int = 10) -> list[Batch]:
    content = bytes(size)
    return [Batch(content, number.to_bytes(64, "big")) for number in range(count)]


def test_a_few_at_a_time_in_order() -> None:
    bench, came = Bench(), batches(2 * intake.FLOODED + 2 * intake.AT_ONCE - 1)
    rest = came.copy()
    for lot, many in enumerate((intake.FLOODED, len(came) - intake.FLOODED), start=1):
        for batch in rest[:many]:
            assert bench.intake.add(batch, BY_ITSELF)
        del rest[:many]
        bench.pass_time(intake.PAUSE_S)
        assert [batch for batch, _ in bench.checked] == came[: lot * intake.FLOODED], "more come meanwhile"
    bench.pass_time(intake.PAUSE_S)
    assert [batch for batch, _ in bench.checked] == came[: 2 * intake.FLOODED + intake.AT_ONCE]
    bench.pass_time(intake.PAUSE_S)
    assert [batch for batch, _ in bench.checked] == came and not len(bench.intake)
    bench.pass_time(1.0)
    assert not len(bench.agenda)


def test_what_waits_waits_once_and_is_passed_on() -> None:
    bench, (batch,) = Bench(), batches(1)
    downstream = BY_ITSELF._replace(span=Span(1, 2))
    for arrival in (BY_ITSELF, downstream, BY_ITSELF):
        assert bench.intake.add(batch, arrival)
    bench.pass_time(0.0)
    assert bench.checked == [(batch, downstream)]


@pytest.mark.parametrize("first, second", [("is_rare", "is_found"), ("is_found", "is_rare")])
def test_neither_way_of_coming_is_forgotten(first: str, second: str) -> None:
    bench, (batch,) = Bench(), batches(1)
    for name in (first, second):
        assert bench.intake.add(batch, BY_ITSELF._replace(**{"is_rare": False, name: True}))
    bench.pass_time(0.0)
    assert bench.checked == [(batch, BY_ITSELF._replace(is_rare=True, is_found=True))]


@pytest.mark.parametrize("size", [10, 100_000])
def test_it_is_bounded_and_has_room_again(size: int) -> None:
    bench, came = Bench(), batches(intake.BATCHES_LIMIT + 1, size)
    taken = sum(bench.intake.add(batch, BY_ITSELF) for batch in came)
    assert taken == min(intake.BATCHES_LIMIT, intake.OCTETS_LIMIT // size) == len(bench.intake)
    bench.pass_time(0.0)
    assert bench.intake.add(came[-1], BY_ITSELF)


# In a node


def node(cluster: Cluster) -> GossipNode:
    return cluster.node(cluster.papers("id1"), rng=cluster.rng, now=10.0, wall=WALL)


def packets(papers: Papers, count: int) -> list[bytes]:
    author, found = Author("id2", papers.key, 1), []
    for number in range(count):
        author.put("endpoint", f"e{number}", endpoint("10.0.2.5", f"web.{number}"))
        found += [wire.encode(wire.User(rows.encode(batch))) for batch in author.flush()]
    return found


def test_a_probe_is_answered_before_the_flood_it_came_in(rng: random.Random) -> None:
    cluster = Cluster(rng, WALL)
    made, flood = node(cluster), packets(cluster.papers("id2"), 200)
    for packet in [*flood, wire.encode(wire.Ping(7, "h1"))]:
        made.receive_datagram(packet, PEER, 10.0)
    answers = [one for data, _ in made.datagrams_to_send(10.0) for one in frame.open_packet(data, None, "")]
    assert wire.Ack(7) in answers
    assert len(made.table.ledgers) == 2 and made.statistics()["rows_unchecked"] == 200 - intake.FLOODED
    for step in range(1, 20):
        made.datagrams_to_send(10.0 + step * intake.PAUSE_S)
    assert made.statistics()["rows_unchecked"] == 0 and not made.dropped()
    (ledger,) = made.table.of_owner("id2")
    assert len(ledger.rows) == 200


def test_what_finds_no_room_is_counted(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BATCHES_LIMIT", 5)
    cluster = Cluster(rng, WALL)
    made = node(cluster)
    for packet in packets(cluster.papers("id2"), 8):
        made.receive_datagram(packet, PEER, 10.0)
    assert made.dropped() == {"too many rows to check": 3}


def test_a_forged_one_in_the_same_words_does_not_take_the_place_of_the_true_one(rng: random.Random) -> None:
    cluster = Cluster(rng, WALL)
    made, papers = node(cluster), cluster.papers("id2")
    author = Author("id2", papers.key, 1)
    author.put("endpoint", "e", endpoint("10.0.2.5", "web"))
    (true,) = author.flush()
    for batch in (Batch(true.content, bytes(64)), true):
        made.receive_datagram(wire.encode(wire.User(rows.encode(batch))), PEER, 10.0)
    made.datagrams_to_send(10.0)
    assert made.dropped() == {"a batch with a wrong signature": 1}
    assert [entry.batch for ledger in made.table.of_owner("id2") for entry in ledger.rows.values()] == [true]
