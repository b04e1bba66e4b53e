"""What is remembered from one look to the next changes no result: each look is compared with that of a newcomer."""

from __future__ import annotations

import random
from ipaddress import ip_address, ip_interface

from hypothesis import given
from hypothesis import strategies as st

from tests.core.test_plan import CLUSTER, GATEWAY, NETWORKS, SELF, container
from tests.gossip_cluster import NETWORK, VNI, VTEP, Cluster, endpoint
from vxnet.core.applied import Acknowledgements
from vxnet.core.author import Author
from vxnet.core.evidence import Judge
from vxnet.core.facts import ByOwner, Distinct, Fact, Facts
from vxnet.core.plan import plan
from vxnet.core.remotes import Groups
from vxnet.core.table import Table
from vxnet.model import codec
from vxnet.model.cluster import Network
from vxnet.model.container import Attachment
from vxnet.model.host import HostState
from vxnet.model.row import Applied, Certificate, Endpoint, Leases, RowKey, Version

NOW = 1_800_000_000.0
STEPS = 150


def planned(facts: Facts, groups: Groups) -> HostState:
    here = Attachment(network=NETWORK, ifname="eth0", mac="02:00:0a:00:01:03", addresses=(ip_interface("10.0.1.3/16"),))
    return plan(
        self_node=SELF,
        cluster=CLUSTER,
        networks={**NETWORKS, NETWORK: Network(id=NETWORK, name="net", vni=VNI)},
        containers=[container(here)],
        facts=facts,
        members={},
        underlay_mtu=1500,
        gateway=GATEWAY,
        dns_ports={},
        groups=groups,
    )


def test_looks_with_memory_are_as_without(rng: random.Random) -> None:
    """Three owners, whose blocks overlap, put and delete rows; one loses its certificate's word, one is removed."""
    cluster = Cluster(rng, NOW)
    table = Table()
    judge, groups, acknowledgements = Judge(cluster.roots), Groups(), Acknowledgements()
    authors = []
    for number in range(3):
        papers = cluster.papers(f"node{number}")
        author = Author(papers.id, papers.key, 1)
        author.put("certificate", "", Certificate(papers.certificate))
        authors.append(author)
    revoked: tuple[str, ...] = ()
    contested = 0
    for _ in range(STEPS):
        author = rng.choice(authors)
        match rng.randrange(8):
            case 0:
                author.delete("endpoint", f"c{rng.randrange(6)}")
            case 1:
                signed = cluster.leases(author.key.owner, "10.0.1.0/29", epoch=rng.randrange(1, 4))
                author.put("leases", "", Leases(signed.content, signed.signature, signed.certificate))
            case 2 if rng.random() < 0.2:
                revoked = () if revoked else (author.key.owner,)
                judge.update(revoked=revoked)
            case 3:
                author.put("applied", "", Applied(versions=(("node1", 1, rng.randrange(9)),)))
            case _:
                state = rng.choice(["starting", "ready"])
                row = endpoint(f"10.0.1.{rng.randrange(1, 10)}", state=state)
                author.put("endpoint", f"c{rng.randrange(6)}", row)
        for batch in author.flush():
            table.receive(batch)
        facts, refused = judge.effective(table, NOW)
        fresh_facts, fresh_refused = Judge(cluster.roots, revoked).effective(table, NOW)
        assert dict(facts.by_owner) == dict(fresh_facts.by_owner) and refused == fresh_refused
        contested += refused["address was given anew"]
        assert codec.to_json(planned(facts, groups)) == codec.to_json(planned(facts, Groups()))
        assert acknowledgements.to_tell(facts, "me", {VNI}) == Acknowledgements().to_tell(facts, "me", {VNI})
        for owner in ("node0", "node1"):
            ids = {f"c{number}" for number in range(6)}
            assert acknowledgements.unaware(facts, owner, ids) == Acknowledgements().unaware(facts, owner, ids)
    assert contested, "the owners were meant to claim each other's addresses"


def fact(owner: str, seq: int) -> Fact:
    value = Endpoint(
        network=NETWORK, vni=VNI, addresses=(ip_address("10.0.1.2"),), mac="02:00:0a:00:01:02", vtep=VTEP, name="web"
    )
    return RowKey(owner, "endpoint", str(seq)), Version(1, seq), value


def test_an_owner_is_read_again_only_when_it_changed() -> None:
    read: list[str] = []

    def count(owner: str, rows: tuple[Fact, ...]) -> int:
        read.append(owner)
        return len(rows)

    counts = ByOwner(count)
    first = Facts.gather([fact("a", 1), fact("b", 1), fact("a", 2)])
    assert counts.of(first) == {"a": 2, "b": 1} and len(first) == 3
    second = Facts({**first.by_owner, "b": (fact("b", 2),)})
    assert counts.of(second) == {"a": 2, "b": 1}
    assert read == ["a", "b", "b"]
    assert counts.of(second.of({"a"})) == {"a": 2}
    assert counts.of(second) == {"a": 2, "b": 1}, "who was away is read anew"
    assert read == ["a", "b", "b", "b"]


def test_an_unchanged_owner_keeps_its_rows(rng: random.Random) -> None:
    """The very same tuple: that is what everything else takes for a sign."""
    cluster = Cluster(rng, NOW)
    table, judge = Table(), Judge(cluster.roots)
    for number in (1, 2):
        papers = cluster.papers(f"node{number}")
        author = Author(papers.id, papers.key, 1)
        author.put("certificate", "", Certificate(papers.certificate))
        signed = cluster.leases(papers.id, f"10.0.{number}.0/24")
        author.put("leases", "", Leases(signed.content, signed.signature, signed.certificate))
        author.put("endpoint", "c", endpoint(f"10.0.{number}.2"))
        for batch in author.flush():
            table.receive(batch)
        if number == 1:
            before = judge.effective(table, NOW)[0].by_owner["node1"]
    assert judge.effective(table, NOW)[0].by_owner["node1"] is before


@given(st.lists(st.dictionaries(st.integers(0, 3), st.frozensets(st.integers(0, 9), max_size=4)), max_size=12))
def test_distinct_again_and_again(steps: list[dict[int, frozenset[int]]]) -> None:
    remembered: Distinct[int] = Distinct()
    for sets in steps:
        assert remembered.are(sets) == (len(frozenset().union(*sets.values())) == sum(map(len, sets.values())))
