"""What a network of one host may be."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from vxnet.core import allocate
from vxnet.core.local_networks import decide_local_network, is_isolated, local_part
from vxnet.core.networks import LOCAL_NETWORKS
from vxnet.model.api import NetworkCreate
from vxnet.model.cluster import Network
from vxnet.model.container import Attachment, Container, ContainerSpec
from vxnet.model.errors import VxnetError
from vxnet.model.host import HostAddress, HostPort
from vxnet.model.published import PublishedPort

LINKS = ("lo", "eth0", "eth1", "vxnet_gw", "veth1234", "v1a2b3c4d5.eth0")
TAKEN = (ip_network("172.19.0.0/16"), ip_network("192.168.56.0/24"))
OWN = allocate.ula_pool("machine")


def decided(*others: Network, driver: Any = "bridge", name: str = "desk", **wish: Any) -> Network:
    for key, make in (("subnets", ip_network), ("ranges", ip_network), ("gateways", ip_address)):
        if key in wish:
            wish[key] = tuple(make(text) for text in wish[key])
    request = NetworkCreate(name=name, driver=driver, **wish)
    return decide_local_network(
        request, id="0123456789ab", seed="machine", networks_here=others, taken=TAKEN, links=LINKS, now=5.0
    )


def prefixes(network: Network) -> list[str]:
    return [str(subnet.prefix) for subnet in network.subnets]


def test_a_bridge_network_avoids_what_the_host_has() -> None:
    first = decided()
    assert (first.scope, first.driver, first.vni, prefixes(first)) == ("local", "bridge", 0, ["172.20.0.0/16"])
    second = decided(first, name="two", ipv6=True)
    assert prefixes(second) == ["172.21.0.0/16", f"{OWN.network_address}/64"]
    assert prefixes(decided(subnets=["10.7.0.0/24"], ipv6=True))[0] == "10.7.0.0/24"
    assert is_isolated(decided(options={"com.docker.network.bridge.enable_icc": "false"}))


def test_a_macvlan_network() -> None:
    made = decided(
        driver="macvlan",
        subnets=["192.168.56.0/24"],
        ranges=["192.168.56.64/27"],
        options={"parent": "eth1", "macvlan_mode": "vepa", "mtu": "1400"},
    )
    assert (made.driver, made.scope, made.mtu, prefixes(made)) == ("macvlan", "local", 1400, ["192.168.56.0/24"])


LAN: dict[str, Any] = {"driver": "macvlan", "subnets": ["192.168.56.0/24"]}


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"name": "host"}, "taken by a network that vxnet makes itself"),
        ({"name": "-x"}, "cannot be a network's name"),
        ({"driver": "host"}, "there is one network of driver host"),
        ({"driver": "null"}, "--network none"),
        ({"ingress": True}, "routing mesh"),
        ({"options": {"parent": "eth1"}}, "unknown option 'parent'; bridge networks know"),
        ({"options": {"encrypted": ""}}, "encrypted"),
        ({"options": {"mtu": "9"}}, "mtu '9'"),
        ({"options": {"com.docker.network.bridge.enable_icc": "no"}}, "neither true nor false"),
        ({"subnets": ["192.168.56.0/25"]}, "which this host has or has a route to"),
        ({"subnets": ["10.1.0.0/24", "10.2.0.0/24"]}, "one subnet of each family"),
        ({"subnets": ["10.1.0.0/31"]}, "too small"),
        ({"gateways": ["10.1.0.1"]}, "outside"),
        (LAN, "needs a parent; `--opt parent=LINK`; this host has eth0, eth1"),
        (LAN | {"options": {"parent": "eth7"}}, "no link 'eth7'; this host has eth0, eth1"),
        (LAN | {"options": {"parent": "eth1.100"}}, "ip link add link eth1 name eth1.100 type vlan id 100"),
        (LAN | {"options": {"parent": "lo"}}, "lo cannot be the parent"),
        (LAN | {"options": {"parent": "vxnet_gw"}}, "vxnet_gw cannot be the parent"),
        (LAN | {"options": {"parent": "eth1", "macvlan_mode": "l2"}}, "none of bridge, private, vepa, passthru"),
        ({"driver": "macvlan", "options": {"parent": "eth1"}}, "needs --subnet"),
    ],
)
def test_refusals(wish: dict[str, Any], words: str) -> None:
    with pytest.raises(VxnetError) as refused:
        decided(*LOCAL_NETWORKS, **wish)
    error = refused.value
    assert words in f"{error.message}; {error.hint}", error


def test_a_link_that_another_network_has_alone() -> None:
    whole = decided(**LAN, options={"parent": "eth1", "macvlan_mode": "passthru"})
    with pytest.raises(VxnetError, match="of one container alone"):
        decided(whole, name="more", driver="macvlan", subnets=["10.9.0.0/24"], options={"parent": "eth1"})


def test_ports_of_the_host() -> None:
    """Lead to where the host reaches the container; ``ip=eth1`` to that link's addresses alone."""
    desk = decided(subnets=["172.20.0.0/16"])
    on_desk = Attachment(
        network=desk.id, ifname="eth0", mac="02:00:00:00:00:01", addresses=(ip_interface("172.20.0.2/16"),)
    )
    way_out = Attachment(network="", ifname="eth1", mac="02:00:00:00:00:02", addresses=(ip_interface("172.19.0.2/16"),))
    spec = ContainerSpec(name="web", argv=("x",))
    port = PublishedPort(target=80, published=8080, mode="host")
    of = {
        "desk": Container(id="a", spec=spec, attachments=(on_desk,), published=(port,), created_at=0),
        "gw": Container(id="b", spec=spec, attachments=(on_desk,), gateway=way_out, published=(port,), created_at=0),
        "mesh": Container(id="c", spec=spec, gateway=way_out, published=(PublishedPort(target=1),), created_at=0),
        "link": Container(
            id="d",
            spec=spec,
            gateway=way_out,
            published=tuple(PublishedPort(target=1, published=2, mode="host", interface=n) for n in ("eth1", "eth9")),
            created_at=0,
        ),
    }
    held = (HostAddress(interface="eth1", address=ip_interface("192.168.56.11/24")),)
    part = local_part({desk.id: desk}, 1500, of.values(), held)
    assert [bridge.name for bridge in part.bridges] == ["vxnet_012345678"]
    plain = HostPort(protocol="tcp", published=8080, target=80, to=(ip_address("172.20.0.2"),))
    to = (ip_address("172.19.0.2"),)
    assert part.ports == (
        plain,
        HostPort(protocol="tcp", published=8080, target=80, to=to),
        HostPort(protocol="tcp", published=2, target=1, to=to, addresses=(ip_address("192.168.56.11"),)),
        HostPort(protocol="tcp", published=2, target=1, to=()),
    )
