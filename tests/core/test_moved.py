"""A node's address changes: which addresses can be, and who hears of it."""

from __future__ import annotations

import ipaddress

import pytest
from msgspec.structs import replace

from vxnet.core.decisions import update_node
from vxnet.core.wishes import Wishes
from vxnet.model.api import NodeUpdate
from vxnet.model.cluster import Node, NodeAddresses, Role
from vxnet.model.codec import from_json, to_json
from vxnet.model.errors import CallerError, ConflictError, VxnetError

ADDRESS = ipaddress.ip_address("192.0.2.9")


def node(number: int, role: Role = "worker") -> Node:
    address = ipaddress.ip_address(f"192.0.2.{number}")
    return Node(
        id=f"n{number}", name=f"h{number}", role=role, advertise_addr=address, data_path_addr=address, joined_at=0.0
    )


def wishes_of(*nodes: Node) -> Wishes:
    return Wishes.of(1, {f"node/{one.id}": (to_json(one), 1) for one in nodes})


def test_the_data_path_goes_along_if_it_was_at_the_same_address() -> None:
    wishes = wishes_of(node(1, "manager"), node(2))
    decision, changed = update_node(wishes, "h2", NodeUpdate(advertise_addr=ADDRESS))
    assert changed.addresses == NodeAddresses(advertise_addr=ADDRESS, data_path_addr=ADDRESS)
    assert "set/node" in decision.changes and "set/node" in decision.guards, (
        "of two that choose one address one is told so"
    )
    apart = replace(node(2), data_path_addr=ipaddress.ip_address("198.51.100.2"))
    _, changed = update_node(wishes_of(node(1), apart), "h2", NodeUpdate(advertise_addr=ADDRESS))
    assert changed.addresses == NodeAddresses(advertise_addr=ADDRESS, data_path_addr=apart.data_path_addr)


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("192.0.2.1", ConflictError, "is that of node h1"),
        ("127.0.0.1", CallerError, "cannot be reached by other hosts"),
        ("2001:db8::9", CallerError, "not of the cluster's family"),
    ],
)
def test_addresses_that_cannot_be(address: str, error: type[VxnetError], words: str) -> None:
    wishes = wishes_of(node(1, "manager"), node(2))
    with pytest.raises(error, match=words):
        update_node(wishes, "h2", NodeUpdate(advertise_addr=ipaddress.ip_address(address)))


def test_a_manager_with_a_member_of_etcd_stays_where_it_is() -> None:
    wishes = wishes_of(node(1, "manager"), node(2))
    update = NodeUpdate(advertise_addr=ADDRESS)
    with pytest.raises(ConflictError, match="known to the others by its address"):
        update_node(wishes, "h1", update, managed=True)
    assert update_node(wishes, "h1", update)[1].advertise_addr == ADDRESS
    assert update_node(wishes, "h2", update, managed=True)[1].advertise_addr == ADDRESS


def test_the_node_itself_is_told_and_of_a_manager_everybody() -> None:
    wishes = wishes_of(node(1, "manager"), node(2))
    for name, for_all in (("h2", 0), ("h1", 1)):
        address = ipaddress.ip_address(f"192.0.2.{10 + for_all}")
        decision, changed = update_node(wishes, name, NodeUpdate(advertise_addr=address))
        changes = {key: to_json(record) for key, record in decision.changes.items()}
        delta = wishes.apply(wishes.revision + 1, changes)
        (told,) = delta.own[changed.id]
        assert told.kind == "addresses" and from_json(bytes(told.value), NodeAddresses) == changed.addresses
        assert [one.kind for one in delta.items] == ["manager"] * for_all
    again = wishes.apply(wishes.revision + 1, {"node/n2": to_json(replace(wishes.nodes["n2"], labels={"a": "b"}))})
    assert not again.own
