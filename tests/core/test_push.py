"""Rows on their way: what is sent to whom, what waits, what is asked for, and that none of it grows without bound."""

from __future__ import annotations

import ipaddress
import random
from collections import Counter

import pytest

from vxnet.core import frame, push, rows
from vxnet.core.members import Member
from vxnet.core.oldpack import MalformedError
from vxnet.core.push import Push
from vxnet.core.roster import Span, position
from vxnet.core.rows import Ask, Batch, Ids, Relay
from vxnet.core.swim import Swim
from vxnet.core.timing import LAN, Settings
from vxnet.core.wire import User


class Bench:
    """One node that knows ``count`` others, and what it sends them."""

    def __init__(self, rng: random.Random, count: int, settings: Settings = LAN) -> None:
        self.rng = rng
        self.now = 10.0
        address = ipaddress.ip_address("192.0.2.1")
        quiet = settings._replace(coalesce_s=1e6, digest_interval_s=1e6, probe_floor_s=1e5, probe_ceiling_s=1e6)
        tags = {"id": "id1", "vxnet": "1"}
        self.swim = Swim(
            name="h1", address=address, port=7946, tags=tags, ring=None, rng=rng, now=self.now, settings=quiet
        )
        for number in range(2, count + 2):
            tags = {"id": f"id{number}", "vxnet": "1"}
            addr = ipaddress.ip_address(f"192.0.{2 + number // 250}.{number % 250}")
            self.swim.members.put(Member(f"h{number}", f"id{number}", addr, tags, "alive", 1, 7946))
        self.dropped: Counter[str] = Counter()
        self.push = Push(self.swim, self.dropped)

    def batch(self, size: int = 100) -> Batch:
        return Batch(self.rng.randbytes(size), self.rng.randbytes(64))

    def sent(self, seconds: float = 0.0) -> list[tuple[str, rows.SyncMessage]]:
        """(to whom, what), rows only."""
        found = []
        end = self.now + seconds
        while True:
            self.now = min(self.now + 0.01, end) if seconds else self.now
            self.swim.handle_timer(self.now)
            for data, addr in self.swim.datagrams_to_send(self.now):
                member = self.swim.at(addr)
                assert member is not None
                messages = frame.open_packet(data, None, "")
                found += [(member.name, rows.decode(one.payload)) for one in messages if isinstance(one, User)]
            if self.now >= end:
                return found

    def addr(self, number: int) -> tuple[str, int]:
        return self.swim.members[f"h{number}"].endpoint


def test_few_are_told_directly_and_many_along_the_tree(rng: random.Random) -> None:
    few = Bench(rng, 10)
    batch = few.batch()
    few.push.tell_all(batch, 1)
    assert sorted(few.sent()) == sorted((f"h{n}", batch) for n in range(2, 12))

    many = Bench(rng, 100)
    many.push.tell_all(batch, 1)
    told = many.sent()
    assert len(told) == LAN.tree_fanout
    # The parts touch each other, and all together are the ring.
    spans = sorted((message.begin, message.end) for _, message in told if isinstance(message, Relay))
    ends = {end for _, end in spans} - {position("h1")}
    assert len(spans) == 3 and ends == {begin for begin, _ in spans} - {position("h1") + 1}


def test_what_came_with_a_part_of_the_ring_is_passed_on_once(rng: random.Random) -> None:
    bench = Bench(rng, 100)
    batch, span = bench.batch(), Span(0, 1 << 31)
    bench.push.tell(batch, 1, None)
    bench.sent()
    bench.push.pass_on(batch, span)
    assert 1 <= len(bench.sent()) <= LAN.tree_fanout + 1
    bench.push.pass_on(batch, span)
    assert bench.sent() == []
    bench.push.pass_on(bench.batch(), span)
    assert bench.sent() == [], "not one that is unknown here, or old"


def test_what_takes_away_goes_before_what_adds(rng: random.Random) -> None:
    bench = Bench(rng, 100, LAN._replace(byte_rate=20_000.0))
    add, remove = [bench.batch(1000) for _ in range(30)], [bench.batch(1000) for _ in range(3)]
    for batch in add:
        bench.push.tell_all(batch, 1)
    assert not bench.push.is_full or bench.push.join_s > LAN.coalesce_s
    for batch in remove:
        bench.push.tell_all(batch, 0)
    order = [message.batch for _, message in bench.sent(1.0) if isinstance(message, Relay)]
    assert set(order[:9]) == set(remove)


def test_a_node_sends_no_more_than_it_may(rng: random.Random) -> None:
    bench = Bench(rng, 100, LAN._replace(byte_rate=20_000.0))
    for _ in range(400):
        bench.push.tell_all(bench.batch(1000), 1)
    before = bench.swim.sent_octets
    bench.sent(10.0)
    assert 150_000 < bench.swim.sent_octets - before < 20_000 * (10 + push.BURST_S) + 10_000


def test_who_knows_a_name_only_asks_for_the_batch(rng: random.Random) -> None:
    one, two = Bench(rng, 20), Bench(rng, 20)
    batch = one.batch()
    one.push.tell(batch, 1, None)
    named = [message for _, message in one.sent(0.5) if isinstance(message, Ids)]
    assert named and named[0].ids == batch.signature[:8]
    two.push.hear_ids(named[0], two.addr(5))
    two.push.hear_ids(named[0], two.addr(6))
    asked = [(name, message) for name, message in two.sent(0.6) if isinstance(message, Ask)]
    assert [name for name, _ in asked][:3] == ["h5", "h6", "h5"], "again, of the next one, until it comes"
    one.push.hear_ask(Ask(asked[0][1].ids, "h2"))
    assert ("h2", batch) in one.sent()
    two.push.tell(batch, 1, None)
    assert not [message for _, message in two.sent(0.5) if isinstance(message, Ask)]


def test_nobody_can_fill_the_memory(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "WANTED_LIMIT", 50)
    monkeypatch.setattr(push, "KEPT", 40)
    monkeypatch.setattr(push, "WAITING_OCTETS", 10_000)
    bench = Bench(rng, 20, LAN._replace(byte_rate=100.0))
    bench.push.hear_ids(Ids(rng.randbytes(8 * 90)), bench.addr(3))
    assert bench.dropped == {"too much to ask for": 1}
    for _ in range(100):
        bench.push.tell_all(bench.batch(1000), 1)
    statistics = bench.push.statistics()
    assert bench.dropped["too many rows to pass on"] == 90
    assert statistics["row_queue_octets"] < 10_000 + 100 * 1200
    # What cannot be sent within the allowance is not sent to whoever asks for it either.
    bench.sent(0.1)
    kept = bench.batch()
    bench.push.tell(kept, 1, None)
    bench.push.hear_ask(Ask(kept.signature[:8], "h2"))
    assert bench.dropped["asked for more than may be sent"] == 1


def test_strangers_get_nothing(rng: random.Random) -> None:
    bench = Bench(rng, 20)
    with pytest.raises(MalformedError):
        bench.push.hear_ids(Ids(bytes(8)), ("198.51.100.1", 7946))
    for ask in (Ask(bytes(8), "h99"), Ask(bytes(7), "h2")):
        with pytest.raises(MalformedError):
            bench.push.hear_ask(ask)
