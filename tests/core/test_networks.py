"""What a network may be asked to be, and to become."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from vxnet.core import allocate, networks
from vxnet.core.decisions import is_prunable
from vxnet.core.networks import add_peer, decide_network, grow_network, remove_peer
from vxnet.model.api import NetworkCreate, NetworkPrune, NetworkUpdate
from vxnet.model.cluster import Cluster, ForeignPeer, Network, Node
from vxnet.model.errors import CallerError, ConflictError, NotFoundError, VxnetError

HOST = ip_address("192.168.56.11")
NODE = Node(id="n", name="h1", role="manager", advertise_addr=HOST, data_path_addr=HOST, joined_at=0.0)
CLUSTER = Cluster(id="c", pools=(ip_network("10.0.0.0/8"),), created_at=0.0)
OWN = allocate.ula_pool("c")


def decided(*others: Network, cluster: Cluster = CLUSTER, nodes: tuple[Node, ...] = (NODE,), **wish: Any) -> Network:
    prefixes = {
        name: tuple(ip_network(text) for text in wish.pop(name)) for name in ("subnets", "ranges") if name in wish
    }
    request = NetworkCreate(name=f"net{len(others)}", **prefixes, **wish)
    return decide_network(request, id="id", vni=65536, cluster=cluster, networks=others, nodes=nodes, now=5.0)


def prefixes(network: Network) -> list[str]:
    return [str(subnet.prefix) for subnet in network.subnets]


@pytest.mark.parametrize(
    ("wish", "found"),
    [
        ({}, ["10.0.0.0/20"]),
        ({"ipv6": True}, ["10.0.0.0/20", f"{OWN.network_address}/64"]),
        ({"ipv6": True, "ipv4": False}, [f"{OWN.network_address}/64"]),
        ({"subnets": ["10.9.0.0/24"], "ipv6": True}, ["10.9.0.0/24", f"{OWN.network_address}/64"]),
        ({"subnets": ["fd00:9::/64"], "ipv6": True}, ["fd00:9::/64", "10.0.0.0/20"]),
        ({"subnets": ["fd00:9::/64"]}, ["fd00:9::/64"]),
        ({"subnets": ["fd00:9::/64"], "ipv4": True}, ["fd00:9::/64", "10.0.0.0/20"]),
        ({"subnets": ["10.9.0.0/24", "10.9.1.0/24", "fd00:9::/64"]}, ["10.9.0.0/24", "10.9.1.0/24", "fd00:9::/64"]),
    ],
)
def test_families(wish: dict[str, Any], found: list[str]) -> None:
    assert prefixes(decided(**wish)) == found


def test_the_clusters_own_ipv6_prefix_is_local_and_its_own() -> None:
    """RFC 4193: fd00::/8 and 40 bits that are one's own."""
    assert OWN.prefixlen == 48 and OWN.subnet_of(ip_network("fd00::/8"))  # type: ignore[arg-type]
    assert OWN == allocate.ula_pool("c") != allocate.ula_pool("d")
    first = decided(ipv6=True)
    assert prefixes(decided(first, ipv6=True)) == ["10.0.16.0/20", f"{OWN.network_address + (1 << 64)}/64"]
    pooled = Cluster(id="c", pools=(ip_network("fd00:77::/56"),), created_at=0.0)
    assert prefixes(decided(cluster=pooled, ipv6=True)) == ["10.0.0.0/20", "fd00:77::/64"]


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"ipv4": False}, "without IPv4 and IPv6"),
        ({"ipv4": False, "subnets": ["10.9.0.0/24"]}, "IPv4 subnet"),
        ({"subnets": ["10.9.0.0/24"], "ranges": ["10.8.0.0/28"]}, "10.8.0.0/28 lies outside"),
        ({"subnets": ["10.9.0.0/24"], "ranges": ["10.9.0.0/16"]}, "10.9.0.0/16 lies outside"),
        ({"subnets": ["10.9.0.0/24"], "ranges": ["10.9.0.0/28", "10.9.0.16/28"]}, "two ranges"),
        ({"subnets": ["10.9.0.0/24"], "auxiliary": {"printer": ip_address("10.8.0.1")}}, "printer=10.8.0.1"),
        ({"options": {"peers": "192.0.2.1,nobody"}}, "'nobody'"),
        ({"options": {"peers": "192.168.56.11"}}, "node h1"),
        ({"options": {"peers": "192.0.2.1"}, "ingress": True}, "the routing mesh's network"),
        ({"options": {"peers": "2001:db8::1"}}, "IP version"),
    ],
)
def test_refusals(wish: dict[str, Any], words: str) -> None:
    with pytest.raises((CallerError, ConflictError), match=words):
        decided(**wish)


def test_addresses_come_from_the_range_and_chosen_ones_from_the_subnet() -> None:
    net = decided(subnets=["10.9.0.0/24"], ranges=["10.9.0.64/28"], auxiliary={"printer": ip_address("10.9.0.70")})
    given = allocate.first_blocks(net, (), ["a", "b"])
    assert len(given) == 2 and all(block.subnet_of(ip_network("10.9.0.64/28")) for _, block in given)  # type: ignore[arg-type]
    assert not any(ip_address("10.9.0.70") in block for _, block in given)
    for _ in range(20):  # until the range is used up
        try:
            (block,) = allocate.lease_blocks(net, [lease(net, one) for _, one in given], "a", 1, 2)
        except VxnetError as error:
            assert "10.9.0.64/28 has 15 usable" in str(error) and "--subnet-add" in (error.hint or "")
            break
        given.append(("a", block))
    assert sum(block.num_addresses for _, block in given) == 15
    assert allocate.lease_address(net, (), "a", ip_address("10.9.0.200")) == ip_network("10.9.0.200/32")
    with pytest.raises(CallerError, match="printer"):
        allocate.lease_address(net, (), "a", ip_address("10.9.0.70"))


def lease(net: Network, block: Any) -> Any:
    from vxnet.model.cluster import Lease

    return Lease(network=net.id, vni=net.vni, prefix=block, node="a", epoch=1)


def grown(net: Network, *others: Network, **wish: Any) -> Network:
    wish["subnets"] = tuple(ip_network(text) for text in wish.get("subnets", ()))
    return grow_network(net, NetworkUpdate(**wish), networks=(net, *others), nodes=(NODE,))


def test_a_network_grows_and_loses_nothing() -> None:
    net = decided(subnets=["10.9.0.0/24"], labels={"a": "1", "b": "2"})
    more = grown(net, subnets=["10.9.1.0/24", "fd00:9::/64"], labels={"c": "3"}, labels_removed=("a",))
    assert prefixes(more) == ["10.9.0.0/24", "10.9.1.0/24", "fd00:9::/64"] and more.labels == {"b": "2", "c": "3"}
    assert more.subnets[0] == net.subnets[0] and (more.id, more.vni) == (net.id, net.vni)
    with pytest.raises(CallerError, match="no label 'z'"):
        grown(net, labels_removed=("z",))
    other = decided(subnets=["10.10.0.0/24"])
    for prefix in ("10.9.0.0/25", "10.10.0.0/16", "192.168.0.0/16"):
        with pytest.raises((CallerError, ConflictError), match=prefix):
            grown(net, other, subnets=[prefix])
    with pytest.raises(ConflictError, match="1280"):
        grown(decided(options={"mtu": "800"}), subnets=["fd00:9::/64"])


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"ipv4": False}, "needs IPv4"),
        ({"subnets": (ip_network("fd00:9::/64"),)}, "needs IPv4"),
        ({"subnets": (ip_network("10.1.0.0/24"), ip_network("172.30.0.0/24"))}, "one subnet of each family"),
    ],
)
def test_an_ingress_network_that_answers_would_not_find_back_in(wish: dict[str, Any], words: str) -> None:
    with pytest.raises(CallerError, match=words):
        decided(ingress=True, **wish)


def test_an_ingress_network_does_not_grow() -> None:
    ingress = decided(ingress=True)
    assert {subnet.prefix.version for subnet in ingress.subnets} == {4, 6}
    with pytest.raises(ConflictError, match="one subnet of each family"):
        grown(ingress, subnets=(ip_network("10.99.0.0/24"),))


def test_the_mesh_has_no_peers() -> None:
    with pytest.raises(CallerError, match="the routing mesh's network"):
        add_peer(decided(ingress=True), ForeignPeer(vtep=ip_address("192.0.2.3")), (NODE,))


def test_peers_come_and_go() -> None:
    net = decided(options={"peers": "192.0.2.1, 192.0.2.2,192.0.2.1"})
    assert [str(peer.vtep) for peer in net.peers] == ["192.0.2.1", "192.0.2.2"]
    named = add_peer(net, ForeignPeer(vtep=ip_address("192.0.2.3"), name="x1"), (NODE,))
    with pytest.raises(ConflictError, match=r"192\.0\.2\.3"):
        add_peer(named, ForeignPeer(vtep=ip_address("192.0.2.3")), (NODE,))
    with pytest.raises(ConflictError, match="x1"):
        add_peer(named, ForeignPeer(vtep=ip_address("192.0.2.4"), name="x1"), (NODE,))
    assert remove_peer(named, "x1") == net and remove_peer(named, "192.0.2.3") == net
    with pytest.raises(NotFoundError, match=r"no peer ''"):
        remove_peer(named, "")


def test_what_prune_means() -> None:
    net = decided(labels={"team": "a"})
    for labels, until, meant in [
        ((), None, True),
        (("team",), None, True),
        (("team=a",), 6.0, True),
        (("team=b",), None, False),
        ((), 5.0, False),
    ]:
        assert is_prunable(net, NetworkPrune(labels=labels, until=until)) is meant


def test_pools_of_ipv6() -> None:
    networks.check_pools([ip_network("10.0.0.0/8"), ip_network("fd00:1::/48")], 20)
    with pytest.raises(CallerError, match="/64"):
        networks.check_pools([ip_network("fd00:1::/72")], 20)
