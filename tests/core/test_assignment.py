"""The stream's reducer, and that a manager's snapshots and changes tell the same."""

from __future__ import annotations

import ipaddress
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from vxnet.core import assignment
from vxnet.core.assignment import Item, Update, apply, decode_update, item, lease_set, reread, with_leases
from vxnet.core.rotation import GossipKeys
from vxnet.core.trust import CertificateAuthority
from vxnet.core.wishes import RemovedNode, Signer, Wishes, lease_key
from vxnet.model.cluster import Cluster, GossipKey, Lease, LeaseSet, Network, Node, Signed
from vxnet.model.codec import from_json, to_json
from vxnet.model.errors import HostError, PeerError

CLUSTER = Cluster(id="c", pools=(ipaddress.ip_network("10.0.0.0/8"),), created_at=1.0)


def signed(revision, *leases, node="n1"):
    content = to_json(LeaseSet(node=node, revision=revision, leases=tuple(leases)))
    return Signed(content=content, signature=b"s", certificate=b"c")


def snapshot(revision, *items):
    return Update(revision=revision, snapshot=True, items=(item("cluster", "", CLUSTER), *items))


def network(id, name="net"):
    return Network(id=id, name=name)


def over_the_wire(update):
    return decode_update(to_json(update))


def test_snapshot_then_changes():
    current = apply(None, over_the_wire(snapshot(5, item("network", "a", network("a")), item("revoked", "x", True))))
    assert current.revision == 5 and current.networks == (network("a"),) and current.revoked == ("x",)
    changes = Update(
        revision=7,
        items=(
            item("network", "a", None),
            item("network", "b", network("b")),
            item("revoked", "y", True),
            item("keys", "", (GossipKey(epoch=2, secret=b"k" * 16),)),
            item("roots", "", (b"r",)),
            item("leases", "", signed(7)),
        ),
    )
    current = apply(current, over_the_wire(changes))
    assert current.networks == (network("b"),) and current.revoked == ("x", "y")
    assert (current.keys[0].epoch, current.roots, current.leases) == (2, (b"r",), signed(7))


def test_old_news_change_nothing():
    current = apply(None, snapshot(5, item("network", "a", network("a"))))
    for update in (
        Update(revision=5, items=(item("network", "a", None),)),
        Update(revision=3, items=(item("network", "a", None),)),
        snapshot(4),
    ):
        assert apply(current, update) is current


def test_a_snapshot_voids_what_was_known_but_not_newer_leases():
    current = apply(None, snapshot(5, item("network", "a", network("a")), item("leases", "", signed(5))))
    current = with_leases(current, signed(9))
    current = apply(current, snapshot(8, item("leases", "", signed(8))))
    assert current.networks == () and current.leases == signed(9)


@pytest.mark.parametrize("odd", [(), ({"epoch": "newer"},)])
def test_nobody_speaks_in_clear_or_trusts_nobody_because_a_manager_has_nothing_to_say(odd):
    keys, roots = (GossipKey(epoch=2, secret=b"k" * 16),), (b"r",)
    first = apply(None, snapshot(5, item("keys", "", keys), item("roots", "", roots)))
    rubbish = item("keys", "", odd), item("roots", "", odd)
    for update in (snapshot(6), snapshot(6, *rubbish), Update(revision=6, items=rubbish)):
        current = apply(first, over_the_wire(update))
        assert (current.revision, current.keys, current.roots) == (6, keys, roots)


def test_of_two_sets_of_leases_the_newer_stays_whichever_way_it_came():
    current = apply(None, snapshot(5, item("leases", "", signed(5))))
    current = with_leases(current, signed(9))
    assert with_leases(current, signed(8)).leases == signed(9)
    assert apply(current, Update(revision=8, items=(item("leases", "", signed(8)),))).leases == signed(9)
    assert apply(current, Update(revision=10, items=(item("leases", "", signed(10)),))).leases == signed(10)


@pytest.mark.parametrize(
    "first",
    [
        Update(revision=1),
        Update(revision=1, snapshot=True),
        replace(snapshot(1), items=(Item(kind="cluster", value=msgspec.Raw(b'{"id":7}')),)),
    ],
)
def test_streams_that_begin_wrongly_are_the_peers_fault(first):
    with pytest.raises(PeerError):
        apply(None, first)


def test_what_is_not_understood_is_kept_until_it_is(monkeypatch):
    gadget = Item(kind="gadget", id="s1", value=msgspec.Raw(b'{"name":"web"}'))
    strange = Item(kind="network", id="n9", value=msgspec.Raw(b'{"id":"n9","name":"x","driver":"future"}'))
    current = apply(None, over_the_wire(snapshot(5, gadget, strange, item("network", "a", network("a")))))
    assert current.others == {"gadget/s1": '{"name":"web"}', "network/n9": bytes(strange.value).decode()}
    assert current.networks == (network("a"),)
    kept = from_json(to_json(current), type(current))
    assert kept == current
    newer = {**assignment._KINDS, "gadget": assignment._KINDS["revoked"]._replace(type=dict)}
    monkeypatch.setattr(assignment, "_KINDS", newer)
    understood = reread(kept)
    assert "gadget/s1" not in understood.others and "s1" in understood.revoked
    assert apply(understood, Update(revision=6, items=(item("network", "n9", None),))).others == {}


def test_a_kept_item_goes_when_it_is_gone():
    current = apply(None, snapshot(5, Item(kind="gadget", id="s1", value=msgspec.Raw(b"1"))))
    assert apply(current, Update(revision=6, items=(item("gadget", "s1", None),))).others == {}


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_rubbish_lines(line):
    try:
        update = decode_update(line)
    except PeerError:
        return
    try:
        apply(None, update)
    except PeerError:
        pass


@pytest.mark.parametrize(
    "value",
    [b"1", b'"x"', b"[]", b"{}", b"[" * 2000 + b"]" * 2000, b'{"content":"AA==","signature":"AA==","certificate":""}'],
)
@pytest.mark.parametrize("kind", ["network", "leases", "keys", "roots", "manager", "revoked", "future"])
def test_torn_values_never_raise_and_change_nothing_else(kind, value):
    base = apply(None, snapshot(5, item("network", "a", network("a")), item("leases", "", signed(5))))
    after = apply(base, Update(revision=6, items=(Item(kind=kind, id="z", value=msgspec.Raw(value)),)))
    assert network("a") in after.networks and after.leases == signed(5) and after.revision == 6


def test_lease_sets_that_cannot_be_read():
    with pytest.raises(PeerError):
        lease_set(Signed(content=b"{}", signature=b"", certificate=b""))


# The manager's side


def node(id, role="worker"):
    address = ipaddress.ip_address("192.0.2.1")
    return Node(id=id, name=id, role=role, advertise_addr=address, data_path_addr=address, joined_at=0.0)


def random_commits(rng, count):
    """(revision, changes) of a store's life."""
    commits = [
        (
            1,
            {
                "cluster": CLUSTER,
                "ca/1": CertificateAuthority(certificate=b"r1", key=b"k"),
                "gossip/keys": GossipKeys(keys=(GossipKey(epoch=1, secret=b"k" * 16),)),
                "node/m": node("m", "manager"),
            },
        )
    ]
    revision = 1
    for number in range(count):
        revision += rng.choice((1, 1, 3))
        id = f"n{rng.randrange(6)}"
        prefix = ipaddress.ip_network(f"10.0.0.{8 * rng.randrange(8)}/29")
        changes = rng.choice(
            [
                {f"network/{id}": network(id, f"name{number}")},
                {f"network/{id}": None, f"node/{id}": None},
                {f"node/{id}": node(id, rng.choice(("worker", "manager")))},
                {f"removed/{id}": RemovedNode(id=id, name=id, removed_at=1.0), f"node/{id}": None},
                {
                    lease_key("n1", prefix): Lease(
                        network="n1", vni=1, prefix=prefix, node=f"n{rng.randrange(3)}", epoch=revision
                    )
                },
                {lease_key("n1", prefix): None},
                {"signer/m": Signer(digest=str(number))},
                {"ca/2": CertificateAuthority(certificate=b"r2", key=b"k")},
                {"future/x": {"a": 1}, "lead": {"holder": "m"}},
            ]
        )
        commits.append((revision, changes))
    return [
        (at, {key: None if value is None else to_json(value) for key, value in changes.items()})
        for at, changes in commits
    ]


def sign(wishes, node_id):
    return signed(wishes.revision, *wishes.leases_of_node(node_id), node=node_id)


@pytest.mark.parametrize("case", range(30))
def test_changes_lead_where_snapshots_do(case):
    """Node n1 follows by changes; at every step its assignment is the one that a snapshot would give."""
    rng = random.Random(case)
    wishes, current, records = Wishes(), None, {}
    for revision, changes in random_commits(rng, 40):
        delta = wishes.apply(revision, changes)
        for key, value in changes.items():
            if value is None:
                records.pop(key, None)
            else:
                records[key] = (value, revision)
        fresh = Wishes.of(revision, records)
        full = Update(
            revision=revision, snapshot=True, items=(*fresh.all_items(), item("leases", "", sign(fresh, "n1")))
        )
        items = delta.items
        if delta.all_leases or "n1" in delta.nodes:
            items = (*items, item("leases", "", sign(wishes, "n1")))
        current = apply(current, full if current is None else Update(revision=revision, items=items))
        expected = apply(None, full)
        assert lease_set(current.leases).leases == lease_set(expected.leases).leases
        assert replace(current, leases=None) == replace(expected, leases=None)
        assert {key: wishes.version(key) for key in records} == {key: at for key, (_, at) in records.items()}


def test_a_workers_report_is_nobodys_news():
    wishes = Wishes.of(1, {"node/a": (to_json(node("a")), 1)})
    delta = wishes.apply(2, {"node/a": to_json(replace(node("a"), version="2"))})
    assert delta.items == () and not delta.sets_changed
    assert wishes.apply(3, {"node/b": to_json(node("b"))}).sets_changed


def test_a_record_that_cannot_be_read_is_named_and_changes_nothing():
    wishes = Wishes.of(1, {"node/a": (to_json(node("a")), 1)})
    with pytest.raises(HostError, match="node/b"):
        wishes.apply(2, {"node/a": None, "node/b": b"{}"})
    assert wishes.revision == 1 and "a" in wishes.nodes
