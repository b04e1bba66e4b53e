"""Rows: merged in any order, signed by their owner alone, and judged when they are used."""

from __future__ import annotations

import random
import zlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gossip_cluster import VTEP, Cluster, Papers, endpoint
from vxnet.core import trust
from vxnet.core.author import Author
from vxnet.core.evidence import RECHECK_S, Judge
from vxnet.core.oldpack import MalformedError
from vxnet.core.rows import Batch, BatchContent, decode_content, pack_content, to_be_signed
from vxnet.core.table import KEYS_PER_OWNER, Table
from vxnet.model import codec
from vxnet.model.errors import CallerError
from vxnet.model.row import Applied, Certificate, Leases, Row, Version

NOW = 1_800_000_000.0
OTHER_CA = Cluster(random.Random(99), NOW)


@pytest.fixture
def cluster(rng: random.Random) -> Cluster:
    return Cluster(rng, NOW)


class Node:
    """An author with its papers, and the table of somebody who hears it."""

    def __init__(self, cluster: Cluster, number: int, *, incarnation: int = 1, papers: Papers | None = None) -> None:
        self.cluster = cluster
        self.papers = papers or cluster.papers(f"id{number}")
        self.author = Author(self.papers.id, self.papers.key, incarnation)
        self.author.put("certificate", "", Certificate(self.papers.certificate))
        signed = cluster.leases(self.papers.id, f"10.0.{number}.0/24")
        self.put_leases(signed.content, signed.signature, signed.certificate)

    def put_leases(self, content: bytes, signature: bytes, certificate: bytes) -> None:
        self.author.put("leases", "", Leases(content, signature, certificate))

    def tell(self, *tables: Table) -> list[Batch]:
        batches = self.author.flush()
        for table in tables:
            for batch in batches:
                table.receive(batch)
        return batches


def shown(judge: Judge, table: Table, wall: float = NOW) -> tuple[set[str], dict[str, int]]:
    rows, refused = judge.effective(table, wall)
    return {value.name for _, _, value in rows if hasattr(value, "name")}, dict(refused)


# Writing


def test_rows_are_numbered_and_only_changes_are_told(cluster: Cluster) -> None:
    author = Author("id1", cluster.papers("id1").key, 7)
    assert author.put("endpoint", "e", endpoint("10.0.1.5"))
    (batch,) = author.flush()
    content = decode_content(batch.content)
    assert (content.owner, content.incarnation) == ("id1", 7)
    assert [(row.kind, row.id, row.seq) for row in content.rows] == [("endpoint", "e", 1)]
    assert not author.put("endpoint", "e", endpoint("10.0.1.5")) and not author.flush()
    # There and back within one batch is nothing.
    author.put("endpoint", "e", endpoint("10.0.1.6"))
    author.put("endpoint", "e", endpoint("10.0.1.5"))
    author.put("endpoint", "f", endpoint("10.0.1.7"))
    author.delete("endpoint", "f")
    assert author.flush() == []
    assert author.delete("endpoint", "e") and not author.delete("endpoint", "e")
    assert decode_content(author.flush()[0].content).rows == (Row("endpoint", "e", 2, None),)


def test_batches_fit_into_datagrams(cluster: Cluster) -> None:
    author = Author("id1", cluster.papers("id1").key, 1)
    for host in range(250):
        id_ = f"{cluster.rng.randbytes(6).hex()}.net1"
        author.put("endpoint", id_, endpoint(f"10.0.1.{host}", f"web.{id_[:8]}"))
    batches = author.flush()
    assert len(batches) >= 10 and max(len(batch.content) for batch in batches) < 1200
    # Compressed, a row takes less than half.
    assert sum(len(batch.content) for batch in batches) < 250 * 64


def test_what_goes_is_told_before_what_is_new(cluster: Cluster) -> None:
    author, table = Author("id1", cluster.papers("id1").key, 1), Table()
    author.put("endpoint", "old", endpoint("10.0.1.5"))
    author.put("endpoint", "moved", endpoint("10.0.1.6"))
    for batch in author.flush():
        table.receive(batch)
    author.put("endpoint", "new", endpoint("10.0.1.7"))
    author.delete("endpoint", "old")
    author.put("endpoint", "moved", endpoint("10.0.1.8"))
    urgent, rest = author.flush()
    contents = [decode_content(batch.content) for batch in (urgent, rest)]
    assert [[row.id for row in content.rows] for content in contents] == [["old", "moved"], ["new"]]
    assert [table.urgency(author.key, content) for content in contents] == [0, 1]


def test_compressed_rows_are_no_bomb() -> None:
    bomb = zlib.compress(bytes(64 << 20))
    for content in (bomb, bomb[:1000], b"\x78garbage"):
        with pytest.raises(MalformedError):
            decode_content(content)


def test_a_row_that_is_too_long_is_refused_with_whose_it_is_and_what_to_do(cluster: Cluster) -> None:
    author = Author("id1", cluster.papers("id1").key, 1)
    many = tuple(f"alias-{number:05}" for number in range(6000))
    cases = (
        (endpoint("10.0.1.2", "web", aliases=many), 'container "web" with its 6000 aliases', "fewer aliases"),
        (Leases(bytes(70_000), b"", b""), "all the blocks of addresses that this host holds", "fewer networks"),
        (Applied(versions=tuple((f"{number:025}", 1, 1) for number in range(2500))), "2500 others", "wait"),
        (Certificate(bytes(70_000)), "certificate", "a bug"),
    )
    for value, whose, cure in cases:
        with pytest.raises(CallerError, match="65536") as caught:
            author.put("kind", "", value)
        assert whose in caught.value.message and cure in caught.value.hint
    assert not author.flush()


# Merging


@given(st.randoms(), st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12))
@settings(max_examples=40)
def test_any_order_of_batches_makes_the_same_table(rng: random.Random, acts: list[tuple[int, bool]]) -> None:
    cluster = Cluster(random.Random(1), NOW)
    node = Node(cluster, 1)
    node.author.republished()
    batches = node.tell()
    for number, keep in acts:
        if keep:
            node.author.put("endpoint", f"e{number}", endpoint(f"10.0.1.{rng.randrange(250) + 1}"))
        else:
            node.author.delete("endpoint", f"e{number}")
        if rng.random() < 0.2:
            node.author.trim()
        batches += node.tell()
    ordered, shuffled = Table(), Table()
    for batch in batches:
        ordered.receive(batch)
    again = batches + rng.choices(batches, k=4) if batches else []
    rng.shuffle(again)
    for batch in again:
        shuffled.receive(batch)
    # What a floor denied in one order may never have come in the other; the rows are the same.
    judge = Judge(cluster.roots)
    assert shown(judge, ordered) == shown(Judge(cluster.roots), shuffled)
    assert ordered.root == shuffled.root


def test_a_floor_that_comes_first_leaves_no_gap(cluster: Cluster) -> None:
    """A row has changed, another is gone; the word that takes the tombstone's place overtakes the change."""
    table, judge = Table(), Judge(cluster.roots)
    node = Node(cluster, 1)
    node.author.put("endpoint", "a", endpoint("10.0.1.1", "before"))
    node.author.put("endpoint", "b", endpoint("10.0.1.2", "b"))
    node.author.republished()
    node.tell(table)
    node.author.delete("endpoint", "b")
    node.tell(table)
    node.author.put("endpoint", "a", endpoint("10.0.1.1", "after"))
    node.author.trim()
    *changes, floor = node.tell()
    assert table.receive(floor)
    assert shown(judge, table)[0] == {"before"}
    for batch in changes:
        table.receive(batch)
    assert shown(judge, table)[0] == {"after"}
    # Once it is gone, no version of it is left alone.
    node.author.delete("endpoint", "a")
    node.tell()
    node.author.trim()
    assert table.receive(node.tell()[-1])
    assert shown(judge, table)[0] == set()


def test_a_floor_takes_tombstones_and_earlier_lives_away(cluster: Cluster) -> None:
    table, judge = Table(), Judge(cluster.roots)
    node = Node(cluster, 1)
    old = [node.author.put("endpoint", name, endpoint(f"10.0.1.{n + 1}", name)) for n, name in enumerate("abc")]
    assert all(old)
    first_life = node.tell(table)
    again = Node(cluster, 1, incarnation=2, papers=node.papers)
    again.author.put("endpoint", "a", endpoint("10.0.1.1", "a"))
    again.author.put("endpoint", "d", endpoint("10.0.1.9", "d"))
    again.tell(table)
    assert shown(judge, table)[0] == set("abcd"), "until it has republished, nothing is taken from it"
    again.author.republished()
    again.tell(table)
    assert shown(judge, table)[0] == set("ad")
    again.author.delete("endpoint", "d")
    again.tell(table)
    ledger = next(iter(table.of_owner("id1")))
    assert ("endpoint", "d") in ledger.rows
    again.author.trim()
    again.tell(table)
    assert ("endpoint", "d") not in ledger.rows and ledger.floor.incarnation == 2
    # No resurrection: somebody who was away tells of the first life.
    for batch in first_life:
        assert not table.receive(batch)
    assert shown(judge, table)[0] == {"a"}


def test_only_the_key_in_it_signs_a_batch(cluster: Cluster) -> None:
    table, node = Table(), Node(cluster, 1)
    (batch, *_) = node.tell()
    liar = cluster.papers("liar")
    for forged in (
        msgspec.structs.replace(
            batch, content=pack_content(msgspec.structs.replace(decode_content(batch.content), owner="id2"))
        ),
        msgspec.structs.replace(batch, signature=liar.key.sign(to_be_signed(batch.content))),
        msgspec.structs.replace(batch, signature=b"short"),
        msgspec.structs.replace(batch, signature=trust.sign_bytes("another purpose", batch.content, node.papers.key)),
    ):
        with pytest.raises(MalformedError, match="wrong signature"):
            table.receive(forged)
    assert table.receive(batch) and not table.receive(batch)


def test_two_values_of_one_version_end_the_same_everywhere(cluster: Cluster) -> None:
    papers = cluster.papers("id1")
    batches = []
    for address in ("10.0.1.5", "10.0.1.6"):
        author = Author("id1", papers.key, 1)
        author.put("endpoint", "e", endpoint(address))
        batches += author.flush()
    one, other = Table(), Table()
    for table, order in ((one, batches), (other, batches[::-1])):
        for batch in order:
            table.receive(batch)
    assert one.root == other.root


def test_a_peer_cannot_fill_the_table(cluster: Cluster, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vxnet.core.table.LEDGERS_LIMIT", 10)
    table, judge = Table(), Judge(cluster.roots)
    table.proven = lambda ledger: judge.is_proven(ledger, NOW)
    Node(cluster, 1).tell(table)
    # Keys in its name, owners that there are not: what is proven stays.
    for number in range(30):
        forged = Author("id1" if number % 2 else f"x{number}", trust.node_key(rng.randbytes(32)), 9)
        forged.put("endpoint", "e", endpoint("10.0.1.5"))
        for batch in forged.flush():
            table.receive(batch)
    assert len(table.ledgers) <= 10 and len(list(table.of_owner("id1"))) <= KEYS_PER_OWNER
    assert any(judge.is_proven(ledger, NOW) for ledger in table.of_owner("id1"))
    table.remove_owner("id1")
    for ledger in list(table.ledgers.values()):
        table.remove(ledger.key)
    assert table.root == 0 and table.octets == 0


@pytest.mark.parametrize(
    "content",
    [
        BatchContent("", bytes(32), 1),
        BatchContent("x" * 65, bytes(32), 1),
        BatchContent("id1", bytes(31), 1),
        BatchContent("id1", bytes(32), -1),
        BatchContent("id1", bytes(32), 1, (Row("endpoint", "e", 0, None),)),
    ],
)
def test_impossible_batches_are_refused(content: BatchContent) -> None:
    with pytest.raises(MalformedError):
        decode_content(codec.to_wire(content))


# Judging


def test_rows_count_once_their_evidence_is_there(cluster: Cluster) -> None:
    """In any order: nothing is lost because a certificate came later."""
    table, judge, node = Table(), Judge(cluster.roots), Node(cluster, 1)
    evidence = node.tell()
    node.author.put("endpoint", "e", endpoint("10.0.1.5", "web"))
    node.tell(table)
    assert shown(judge, table) == (set(), {"no certificate": 1})
    for batch in evidence:
        table.receive(batch)
    assert shown(judge, table) == ({"web"}, {})


@pytest.mark.parametrize(
    "row, reason",
    [
        (endpoint("10.0.2.5"), "address is not leased to the owner"),
        (endpoint("10.0.1.5", vni=65537), "address is not leased to the owner"),
        (endpoint("10.0.1.5", network="net2"), "address is not leased to the owner"),
        (endpoint("10.0.1.5", mac="02:00:0a:00:02:05"), "MAC does not follow from the address"),
    ],
)
def test_a_row_beside_its_lease_has_no_effect(cluster: Cluster, row: object, reason: str) -> None:
    table, judge, node = Table(), Judge(cluster.roots), Node(cluster, 1)
    node.author.put("endpoint", "bad", row)  # type: ignore[arg-type]
    node.author.put("endpoint", "good", endpoint("10.0.1.7", "good"))
    node.tell(table)
    assert shown(judge, table) == ({"good"}, {reason: 1})


def test_leases_must_be_a_managers_for_this_owner(cluster: Cluster) -> None:
    worker = cluster.papers("worker9")
    stranger = OTHER_CA.manager
    for signed in (
        cluster.leases("id1", "10.0.1.0/24", signer=worker),
        cluster.leases("id1", "10.0.1.0/24", signer=stranger),
        cluster.leases("id2", "10.0.1.0/24"),
        msgspec.structs.replace(
            cluster.leases("id1", "10.0.1.0/25"), content=cluster.leases("id1", "10.0.1.0/24").content
        ),
    ):
        table, judge, node = Table(), Judge(cluster.roots), Node(cluster, 1)
        node.put_leases(signed.content, signed.signature, signed.certificate)
        node.author.put("endpoint", "e", endpoint("10.0.1.5"))
        node.tell(table)
        assert shown(judge, table) == (set(), {"address is not leased to the owner": 1})


def test_nobody_speaks_for_another(cluster: Cluster, rng: random.Random) -> None:
    table, judge = Table(), Judge(cluster.roots)
    table.proven = lambda ledger: judge.is_proven(ledger, NOW)
    victim = Node(cluster, 1)
    victim.author.put("endpoint", "e", endpoint("10.0.1.5", "web"))
    victim.tell(table)
    liar = cluster.papers("liar")
    for certificate in (liar.certificate, victim.papers.certificate, OTHER_CA.papers("id1").certificate, b"junk"):
        forged = Author("id1", trust.node_key(rng.randbytes(32)), 99)
        forged.put("certificate", "", Certificate(certificate))
        forged.put("endpoint", "e", endpoint("10.0.1.5", "evil"))
        for batch in forged.flush():
            table.receive(batch)
    names, refused = shown(judge, table)
    assert names == {"web"}
    assert set(refused) == {"certificate is another's", "certificate is not this cluster's"}


def test_the_higher_epoch_has_the_address(cluster: Cluster) -> None:
    table, judge = Table(), Judge(cluster.roots)
    for number, epoch in ((1, 3), (2, 8)):
        node = Node(cluster, number)
        signed = cluster.leases(node.papers.id, "10.0.7.0/24", epoch=epoch)
        node.put_leases(signed.content, signed.signature, signed.certificate)
        node.author.put("endpoint", "e", endpoint("10.0.7.5", f"web{number}"))
        node.tell(table)
    assert shown(judge, table) == ({"web2"}, {"address was given anew": 1})


def test_a_removed_node_loses_its_rows_at_once(cluster: Cluster) -> None:
    table, judge, node = Table(), Judge(cluster.roots), Node(cluster, 1)
    node.author.put("endpoint", "e", endpoint("10.0.1.5", "web"))
    node.tell(table)
    assert shown(judge, table)[0] == {"web"}
    judge.update(revoked=("id1",))
    assert shown(judge, table) == (set(), {"node was removed": 3})
    judge.update(revoked=())
    assert shown(judge, table)[0] == {"web"}


def test_new_roots_make_kept_rows_count(cluster: Cluster) -> None:
    table, judge, node = Table(), Judge(OTHER_CA.roots), Node(cluster, 1)
    node.author.put("endpoint", "e", endpoint("10.0.1.5", "web"))
    node.tell(table)
    assert shown(judge, table) == (set(), {"certificate is not this cluster's": 3})
    judge.update(roots=(*OTHER_CA.roots, *cluster.roots))
    assert shown(judge, table)[0] == {"web"}


def test_an_ended_certificate_ends_its_rows(cluster: Cluster) -> None:
    table, judge, node = Table(), Judge(cluster.roots), Node(cluster, 1)
    node.author.put("endpoint", "e", endpoint("10.0.1.5", "web"))
    node.tell(table)
    assert shown(judge, table)[0] == {"web"}
    last = trust.validity(node.papers.certificate)[1]
    assert shown(judge, table, last - 10)[0] == {"web"}
    assert shown(judge, table, last + RECHECK_S)[0] == set()


def test_a_renewed_certificate_of_the_same_key_keeps_everything(cluster: Cluster) -> None:
    table, judge, node = Table(), Judge(cluster.roots), Node(cluster, 1)
    node.author.put("endpoint", "e", endpoint("10.0.1.5", "web"))
    node.tell(table)
    csr = trust.make_csr(node.papers.key, "id1")
    identity = trust.Identity(node="id1", role="worker")
    renewed = trust.issue(cluster.ca, csr, identity, "id1", (VTEP,), bytes(7) + b"\x09", NOW + 45 * 86400)
    node.author.put("certificate", "", Certificate(renewed))
    node.tell(table)
    later = NOW + 100 * 86400
    # Leases carry their manager's certificate: it renews, too, and signs them anew.
    manager = cluster.manager
    fresh = trust.issue(
        cluster.ca,
        trust.make_csr(manager.key, manager.id),
        trust.Identity(node=manager.id, role="manager"),
        manager.id,
        (),
        bytes(7) + b"\x0b",
        NOW + 45 * 86400,
    )
    signed = cluster.leases("id1", "10.0.1.0/24", signer=Papers(manager.id, manager.key, fresh))
    node.put_leases(signed.content, signed.signature, signed.certificate)
    node.tell(table)
    assert shown(judge, table, later) == ({"web"}, {})


def test_unknown_kinds_are_kept_and_passed_on(cluster: Cluster) -> None:
    table, judge, node = Table(), Judge(cluster.roots), Node(cluster, 1)
    node.tell(table)
    content = codec.to_wire(
        BatchContent("id1", node.author.key.key, 1, (Row("of the future", "x", 9, b"\xc1 whatever"),))
    )
    batch = Batch(content, node.papers.key.sign(to_be_signed(content)))
    assert table.receive(batch)
    assert shown(judge, table) == (set(), {})
    ledger = next(iter(table.of_owner("id1")))
    assert batch in ledger.lacking(ledger.floor, {Version(1, 1), Version(1, 2)})


def test_a_thousand_rows_are_judged_quickly(cluster: Cluster) -> None:
    """And not again before something changes."""
    table, judge, node = Table(), Judge(cluster.roots), Node(cluster, 1)
    signed = cluster.leases("id1", "10.0.0.0/16")
    node.put_leases(signed.content, signed.signature, signed.certificate)
    for host in range(1000):
        node.author.put("endpoint", f"e{host}", endpoint(f"10.0.{host // 250}.{host % 250 + 1}", f"w{host}"))
    node.tell(table)
    first = judge.effective(table, NOW)
    assert len(first[0]) == 1000
    assert judge.effective(table, NOW + 1) is first
