"""Which members etcd has, and whose certificates open it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import pytest

from vxnet.core.decisions import Decision
from vxnet.core.electorate import STUCK_S, Patience, admit, dismiss, places, revoked, settle
from vxnet.core.managership import demote, promote
from vxnet.core.wishes import Wishes
from vxnet.model.cluster import Node, Role
from vxnet.model.codec import to_json
from vxnet.model.store import CLIENT_PORT, PEER_PORT, StoreMember, etcd_url


def node(number: int, role: Role = "manager") -> Node:
    address = ipaddress.ip_address(f"192.0.2.{number}")
    return Node(
        id=f"n{number}", name=f"h{number}", role=role, advertise_addr=address, data_path_addr=address, joined_at=0.0
    )


def member(number: int, *, learner: bool = False, id: int = 0) -> StoreMember:
    address = f"192.0.2.{number}"
    return StoreMember(
        id=id or number,
        name=f"h{number}",
        peers=(etcd_url(address, PEER_PORT),),
        clients=(etcd_url(address, CLIENT_PORT),),
        learner=learner,
    )


def wishes_of(nodes: Iterable[Node]) -> Wishes:
    return Wishes.of(1, {f"node/{one.id}": (to_json(one), 1) for one in nodes})


def commit(wishes: Wishes, decision: Decision) -> None:
    changes = {key: None if record is None else to_json(record) for key, record in decision.changes.items()}
    if changes:
        wishes.apply(wishes.revision + 1, changes)


def test_endpoints_are_those_with_a_vote_and_our_own_is_first() -> None:
    members = [member(1), member(2), member(3, learner=True), StoreMember(id=4, peers=("https://192.0.2.4:2380",))]
    own = etcd_url("192.0.2.2", CLIENT_PORT)
    found = places(members, [node(1), node(2)], own)
    assert found == ((own, etcd_url("192.0.2.1", CLIENT_PORT)), {own: "h2", etcd_url("192.0.2.1", CLIENT_PORT): "h1"})
    assert places([member(3, learner=True)], [node(3)], own) is None


def test_a_learner_is_waited_for_while_its_host_is_away() -> None:
    patience, members, nodes = Patience(), [member(1), member(2, learner=True)], [node(1), node(2)]

    def look(now: float, *, alive: bool) -> frozenset[int]:
        return patience.look(members, nodes, lambda node_id: alive, now)

    assert not look(0.0, alive=False) and not look(STUCK_S, alive=False)
    assert look(STUCK_S + 1, alive=False) == {2}
    assert not look(STUCK_S + 2, alive=True)
    assert not look(STUCK_S + 3, alive=False), "it begins anew"


def test_members_of_managers_stay() -> None:
    wishes = wishes_of([node(1), node(2)])
    assert dismiss(wishes, [member(1), member(2)], ()) == (Decision({}), None)
    _, id = dismiss(wishes, [member(1), member(2, learner=True)], {2})
    assert id == 2, "but no learner that nobody starts"


def test_a_member_is_dismissed_removed_and_its_certificates_revoked_in_this_order() -> None:
    wishes, members = wishes_of([node(1), node(2), node(3)]), [member(1), member(2), member(3)]
    for number in (1, 2, 3):
        commit(wishes, admit(wishes, node(number), 100 + number)[0])
    assert admit(wishes, node(2), 102) == (Decision({}), None)
    commit(wishes, demote(wishes, "h2", lambda id: True, managed=True)[0])
    decision, id = dismiss(wishes, members, ())
    assert id == 2 and "set/node" in decision.guards, "who promotes it meanwhile is not overlooked"
    # Of two members both are needed to remove one: its certificate is good until then.
    assert settle(wishes, members) == (Decision({}), 0)
    commit(wishes, decision)
    assert dismiss(wishes, members, ()) == (Decision({}), 2), "by whoever leads, until it is done"
    members = [member(1), member(3)]
    decision, count = settle(wishes, members)
    assert count == 2
    commit(wishes, decision)
    assert not wishes.dismissed and revoked(wishes) == {102}
    assert settle(wishes, members) == (Decision({}), 0) and dismiss(wishes, members, ()) == (Decision({}), None)


def test_what_was_decided_stands_also_if_the_node_is_promoted_again() -> None:
    """It gets another member. What a certificate of before was is not known: it stays revoked."""
    wishes, members = wishes_of([node(1), node(2, "worker")]), [member(1), member(2)]
    commit(wishes, admit(wishes, node(2), 102)[0])
    commit(wishes, dismiss(wishes, members, ())[0])
    commit(wishes, promote(wishes, "h2")[0])
    assert dismiss(wishes, members, ())[1] == 2
    commit(wishes, settle(wishes, [member(1)])[0])
    assert not revoked(wishes), "it is a manager"
    assert dismiss(wishes, [member(1), member(2, id=7)], ()) == (Decision({}), None)


def test_a_removed_nodes_certificate_is_revoked_though_nobody_knows_its_address() -> None:
    wishes = wishes_of([node(1), node(2)])
    commit(wishes, admit(wishes, node(2), 102)[0])
    commit(wishes, Decision({"node/n2": None}))
    assert settle(wishes, [member(1), member(2)]) == (Decision({}), 0)
    commit(wishes, settle(wishes, [member(1)])[0])
    assert revoked(wishes) == {102}


@pytest.mark.parametrize("count", [1, 89, 90, 91, 300])
def test_a_commit_takes_what_fits(count: int) -> None:
    wishes = wishes_of([node(1)])
    for number in range(count):
        commit(wishes, admit(wishes, node(2), number + 1)[0])
    while (step := settle(wishes, [member(1)]))[1]:
        assert len(step[0].changes) <= 90
        commit(wishes, step[0])
    assert len(revoked(wishes)) == count
