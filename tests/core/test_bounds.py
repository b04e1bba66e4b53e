"""What a member that lies can make the others keep, compute and send: bounded, whatever it says.

The liar has the gossip's key and a key of its own, so its packets open and its batches are well signed.
"""

from __future__ import annotations

import random

import pytest

from tests.gossip_cluster import Cluster, endpoint
from vxnet.core import frame, rows, serf, spread, table, trust, wire
from vxnet.core.author import Author
from vxnet.core.evidence import Judge
from vxnet.core.members import hash_member
from vxnet.core.muster import octets
from vxnet.core.oldpack import MalformedError
from vxnet.core.rows import (
    BUCKETS,
    Batch,
    BatchContent,
    Buckets,
    Digest,
    Have,
    Held,
    Roll,
    States,
    Want,
    pack_content,
    to_be_signed,
)
from vxnet.core.timing import LAN
from vxnet.model import codec
from vxnet.model.row import Certificate, Endpoint, Leases, Row

WALL = 1_800_000_000.0
LIAR = ("192.0.2.66", 7946)
GRACE_S = 20.0


class Bench:
    """``h1``, which has met ``liar``, and what it says to it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.cluster = Cluster(rng, WALL)
        self.now = 10.0
        settings = LAN._replace(paths_kept_s=GRACE_S)
        papers = self.cluster.papers("id1")
        self.node = self.cluster.node(papers, rng=rng, now=self.now, wall=WALL, settings=settings)
        self.key = trust.node_key(rng.randbytes(32))
        self.public = self.key.public_key().public_bytes_raw()
        self._lives = 10_000
        self.live("liar")

    def hear(self, message: wire.Message, sender: tuple[str, int] = LIAR, *, step_s: float = 0.01) -> int:
        """How many octets it sends within ``step_s``."""
        self.node.receive_datagram(wire.encode(message), sender, self.now)
        self.now += step_s
        sent = sum(len(data) for data, _ in self.node.datagrams_to_send(self.now))
        return sent + sum(len(stream.to_send) for stream in self.node.streams_to_open())

    def pass_time(self, seconds: float) -> None:
        """In steps: one long one would be a stall, which is no time. The liar answers no probe; it says it lives."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.1
            self.node.datagrams_to_send(self.now)
            self.node.streams_to_open()
        self._lives += 1
        self.live("liar", self._lives)

    def say(self, message: rows.SyncMessage, sender: tuple[str, int] = LIAR) -> int:
        return self.hear(wire.User(rows.encode(message)), sender)

    def live(self, name: str, incarnation: int = 1, **tags: str) -> None:
        tags = {"id": f"id-{name}", "vxnet": "1", **tags}
        alive = wire.Alive(incarnation, name, bytes((192, 0, 2, 66)), 7946, serf.encode_tags(tags), wire.VERSIONS)
        self.hear(alive, step_s=0.0)

    def sign(self, owner: str, *told: Row, incarnation: int = 1, floor: int = 0, live: tuple[int, ...] = ()) -> Batch:
        content = pack_content(BatchContent(owner, self.public, incarnation, told, floor, live))
        return Batch(content, self.key.sign(to_be_signed(content)))

    def kept(self) -> int:
        """Octets of everything in the table, unpacked."""
        ledgers = self.node.table.ledgers.values()
        return sum(len(entry.row.value or b"") for ledger in ledgers for entry in ledger.rows.values())


@pytest.fixture
def bench(rng: random.Random) -> Bench:
    return Bench(rng)


def dull(rng: random.Random, octets: int) -> bytes:
    """Packs to about a thirtieth."""
    return b"".join(rng.randbytes(4) + bytes(200) for _ in range(octets // 204))


# What is kept


def test_a_batch_that_unpacks_to_much_more_than_it_is_is_not_unpacked(bench: Bench) -> None:
    """400 octets that become 250 kB: two milliseconds of everybody's processor, and the memory for it."""
    content = rows.codec.to_wire(BatchContent("x", bench.public, 1, (Row("certificate", "", 1, bytes(250_000)),)))
    packed = rows.zlib.compress(content)
    assert len(packed) < 1000
    bench.say(Batch(packed, bench.key.sign(to_be_signed(packed))))
    assert bench.node.dropped() == {"a batch that is too long": 1} and bench.kept() < 2000


@pytest.mark.parametrize("octets", [1000, 60_000])
def test_a_row_of_ones_own_that_packs_too_well_is_told_all_the_same(bench: Bench, octets: int) -> None:
    author = Author("id2", bench.key, 1)
    said = endpoint("10.0.2.5", "web", aliases=("a" * octets,))
    author.put("endpoint", "e", said)
    (batch,) = author.flush()
    bench.say(batch)
    (ledger,) = bench.node.table.of_owner("id2")
    value = ledger.get("endpoint", "e")
    assert value is not None and codec.from_wire(value, Endpoint) == said


def test_the_table_counts_what_rows_take_and_not_what_they_travelled_as(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "TABLE_OCTETS_LIMIT", 400_000)
    for number in range(100):
        bench.say(bench.sign(f"x{number}", Row("certificate", "", 1, dull(bench.rng, 20_000))))
        assert bench.kept() <= bench.node.table.octets <= 400_000
    assert bench.kept() > 200_000
    monkeypatch.setattr(table, "LEDGER_OCTETS_LIMIT", 100_000)
    for number in range(20):
        bench.say(bench.sign("y", Row("certificate", f"{number}", number + 1, dull(bench.rng, 20_000))))
    (ledger,) = bench.node.table.of_owner("y")
    assert ledger.octets <= 100_000 and bench.node.dropped()["more rows than one owner may have"] > 10
    # So do the numbers that a floor leaves alone.
    bench.say(bench.sign("z", floor=9000, live=tuple(range(1, 9000, 2))))
    assert not list(bench.node.table.of_owner("z"))
    for key in list(bench.node.table.ledgers):
        bench.node.table.remove(key)
    assert bench.node.table.octets == 0


def test_owners_that_there_are_not_leave_no_trace(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "LEDGERS_LIMIT", 20)
    monkeypatch.setattr(spread, "GONE_LIMIT", 30)
    for number in range(400):
        bench.say(bench.sign(f"x{number}", Row("endpoint", "e", 1, b"x")))
    traces = bench.node.spread.statistics()
    assert traces["ledgers"] <= 20 and traces["owners_noted"] <= 4 * 30 + 2
    # A member that calls itself something else each time.
    for number in range(400):
        bench.live("liar", number + 2, id=f"id-{number}")
    assert bench.node.spread.statistics()["owners_noted"] <= 4 * 30 + 2


def test_whose_rows_were_evicted_is_forgotten_and_whose_were_not_is_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grace of those that are kept runs on, however much is said of others."""
    monkeypatch.setattr(table, "LEDGERS_LIMIT", 20)
    monkeypatch.setattr(spread, "GONE_LIMIT", 10)
    papers = bench.cluster.papers("id7")
    author = Author("id7", papers.key, 1)
    author.put("certificate", "", Certificate(papers.certificate))
    (proven,) = author.flush()
    bench.say(proven)
    for number in range(200):
        bench.say(bench.sign(f"x{number}", Row("endpoint", "e", 1, b"x")))
    assert "id7" in bench.node.table.owners()
    bench.pass_time(GRACE_S + spread.HOUSEKEEPING_S)
    assert "id7" not in bench.node.table.owners()


def test_certificates_that_were_looked_at_are_not_all_remembered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vxnet.core.evidence.CACHE_OCTETS", 100_000)
    judge = Judge(bench.cluster.roots)
    heard = table.Table()
    for seq in range(1, 60):
        value = codec.to_wire(Certificate(bench.rng.randbytes(4000)))
        heard.receive(bench.sign("x", Row("certificate", "", seq, value)))
        judge.effective(heard, WALL)
    assert 0 < judge.remembered_octets <= 100_000


def test_signatures_have_their_length(bench: Bench) -> None:
    """What waits to be checked is counted by its content."""
    batch = bench.sign("x", Row("endpoint", "e", 1, b"x"))
    message = wire.User(rows.encode(Batch(batch.content, batch.signature + bytes(40_000))))
    bench.node.receive_datagram(wire.encode(message), LIAR, bench.now)
    assert bench.node.dropped() == {"a batch with a wrong signature": 1}
    assert bench.node.statistics()["rows_unchecked"] == 0


def test_deaths_and_other_names_leave_as_many_deadlines_as_there_are_members(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vxnet.core.gossip.MEMBERS_LIMIT", 10)
    agenda = bench.node.swim.agenda
    before = len(agenda)
    for number in range(1, 200):
        bench.live("liar", 2 * number, restarting=str(number))
        bench.hear(wire.Dead(2 * number, "liar", "h9"), step_s=0.001)
    assert len(agenda) < before + 20
    # Called another one, and itself again.
    for number in range(1, 200):
        bench.live("liar", 1000 + 2 * number, id=f"id-{number}")
        bench.live("liar", 1001 + 2 * number)
    assert len(agenda) < before + 30


def test_who_was_called_another_long_ago_makes_room(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a liar could use up what keeps the paths of those that are lied about."""
    monkeypatch.setattr("vxnet.core.gossip.MEMBERS_LIMIT", 10)
    for number in range(20):
        bench.live("liar", 2 + number, id=f"id-{number}")
    bench.pass_time(GRACE_S + 1)
    papers, leases = bench.cluster.papers("id2"), bench.cluster.leases("id2", "10.0.2.0/24")
    author = Author("id2", papers.key, 1)
    author.put("certificate", "", Certificate(papers.certificate))
    author.put("leases", "", Leases(leases.content, leases.signature, leases.certificate))
    author.put("endpoint", "e", endpoint("10.0.2.5", "web"))
    bench.live("h2", 1, id="id2")
    for batch in author.flush():
        bench.say(batch)
    bench.live("h2", 2, id="another")
    assert [key.id for key, _, _ in bench.node.paths(WALL) if key.owner == "id2"] == ["e"]


# What is sent


@pytest.fixture
def stingy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "ANSWERS_RATE", 10_000.0)
    monkeypatch.setattr(spread, "ANSWERS_AT_ONCE", 50_000.0)
    monkeypatch.setattr(spread, "STRANGERS_RATE", 1_000.0)
    monkeypatch.setattr(spread, "STRANGERS_AT_ONCE", 5_000.0)


def test_who_asks_again_and_again_is_not_answered_without_end(stingy: None, rng: random.Random) -> None:
    """30 octets a time for a whole ledger; nor do all those connections wait to be opened."""
    bench = Bench(rng)
    for number in range(40):
        bench.say(bench.sign("x", Row("endpoint", f"{number}", number + 1, bench.rng.randbytes(800))))
    want = Want("x", bench.public, (0, 0), (), "liar")
    sent = [bench.say(want) for _ in range(100)]
    assert sent[0] > 30_000 and sum(sent) < 50_000 + 40_000 + 10_000 * 1.1
    assert bench.node.dropped()["asked for more than is answered"] >= 90
    bench.pass_time(5)
    assert bench.say(want) > 30_000, "it is patient again"


def test_comparisons_are_not_answered_without_end(stingy: None, rng: random.Random) -> None:
    bench = Bench(rng)
    for number in range(40):
        bench.say(bench.sign(f"x{number}", Row("endpoint", "e", 1, b"x")))
    for message in (Buckets(bytes(8 * BUCKETS)), Have(tuple(range(128)), (), True, "liar")):
        bench.pass_time(10)
        sent = [bench.say(message) for _ in range(100)]
        assert sent[0] > 2000 and sum(sent) < 70_000, message
    bench.pass_time(10)
    many = tuple(Held(f"y{number}", bytes(32), bytes(8)) for number in range(4000))
    assert bench.say(Have((), many, False, "liar")) < 1_000_000


def test_memberships_are_not_told_without_end(stingy: None, rng: random.Random) -> None:
    bench = Bench(rng)
    for number in range(200):
        bench.live(f"x{number}")
    for message in (
        Roll(bytes(8 * BUCKETS), "liar"),
        States(b"", b"".join(octets(hash_member(one)) for one in bench.node.swim.members.values()), "liar"),
    ):
        bench.pass_time(10)
        sent = [bench.say(message) for _ in range(100)]
        assert max(sent) > 1000 and sum(sent) < 150_000, message
    assert bench.node.dropped()["asked for more than is answered"] > 50


def test_who_is_no_member_hears_little(stingy: None, rng: random.Random) -> None:
    """A packet that somebody recorded, sent again in another's name: its answer, ten times as long, goes there."""
    bench = Bench(rng)
    for message in (Digest(bytes(8), bytes(8)), Buckets(bytes(8 * BUCKETS))):
        bench.pass_time(10)
        sent = [bench.say(message, ("198.51.100.7", 7946)) for _ in range(100)]
        assert sum(sent) < 10_000
    assert bench.node.dropped()["asked for more than is answered"] > 80
    # Members are answered meanwhile.
    assert bench.say(Digest(bytes(8), bytes(8))) > 1000


def test_connections_that_wait_to_be_opened_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vxnet.core.swim.STREAM_OCTETS_LIMIT", 100_000)
    for _ in range(50):
        bench.node.swim.send_user_stream(LIAR, bytes(30_000))
    assert len(bench.node.streams_to_open()) == 3
    assert bench.node.dropped()["too many streams wanted"] == 47
    bench.node.swim.send_user_stream(LIAR, bytes(30_000))
    assert len(bench.node.streams_to_open()) == 1


def test_a_batch_of_the_wrong_owner_is_still_refused(bench: Bench) -> None:
    """The bench's liar is a good one: without its signature nothing of this is taken in."""
    batch = bench.sign("x", Row("endpoint", "e", 1, b"x"))
    with pytest.raises(MalformedError, match="wrong signature"):
        table.Table().receive(Batch(batch.content, bytes(64)))
    assert frame.open_packet(wire.encode(wire.User(rows.encode(batch))), None, "")
