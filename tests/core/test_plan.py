"""The desired state of a host, out of wishes and facts."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from vxnet.core.facts import NO_FACTS, Facts
from vxnet.core.plan import PORT_NAME_MAX, plan, port_name
from vxnet.core.remembered import Remembered
from vxnet.model import codec
from vxnet.model.address import IPAddress
from vxnet.model.cluster import Cluster, ForeignPeer, Network, Node, Subnet
from vxnet.model.container import Attachment, Container, ContainerSpec, TaskRef
from vxnet.model.host import GatewayBridge, HostState, Interface, Remote, Sandbox, Segment
from vxnet.model.published import PublishedPort
from vxnet.model.row import Endpoint, Gateway, RowKey, Version
from vxnet.model.service import PublicService

A, B, C = (ip_address(f"192.168.56.1{number}") for number in (1, 2, 3))
SELF = Node(id="node-a", name="h1", role="manager", advertise_addr=A, data_path_addr=A, joined_at=0.0)
CLUSTER = Cluster(id="cluster", pools=(ip_network("10.0.0.0/8"),), created_at=0.0, data_port=4790)
NETWORKS = {
    "net-a": Network(
        id="net-a",
        name="a",
        vni=65536,
        subnets=(Subnet(prefix=ip_network("10.0.0.0/20"), gateway=ip_address("10.0.0.1")),),
    ),
    "net-b": Network(id="net-b", name="b", vni=65537, mtu=9000),
    "host": Network(id="host", name="host", driver="host", scope="local"),
}
GATEWAY = GatewayBridge(addresses=(ip_interface("172.19.0.1/16"),), mtu=1500)
ID = "1a2b3c4d5e6f" + "0" * 52


def attachment(number: int, network: str = "net-a", ifname: str = "eth0") -> Attachment:
    return Attachment(
        network=network,
        ifname=ifname,
        mac=f"02:00:0a:00:00:{number:02x}",
        addresses=(ip_interface(f"10.0.0.{number}/20"),),
    )


def container(*attachments: Attachment, id: str = ID, pid: int = 77, gateway: Attachment | None = None) -> Container:
    return Container(
        id=id, spec=ContainerSpec(argv=("true",)), attachments=attachments, pid=pid, gateway=gateway, created_at=0.0
    )


WAY_OUT = Attachment(network="", ifname="eth1", mac="02:00:ac:13:00:02", addresses=(ip_interface("172.19.0.2/16"),))


def endpoint(number: int, vtep: IPAddress, network: str = "net-a", vni: int = 65536) -> Endpoint:
    return Endpoint(
        network=network,
        vni=vni,
        addresses=(ip_address(f"10.0.0.{number}"),),
        mac=f"02:00:0a:00:00:{number:02x}",
        vtep=vtep,
        name=f"c{number}",
    )


def facts(endpoints: Sequence[tuple[str, Endpoint]]) -> Facts:
    return Facts.gather(
        (RowKey(owner, "endpoint", str(at)), Version(1, at), row) for at, (owner, row) in enumerate(endpoints)
    )


def planned(
    *containers: Container,
    endpoints: tuple[tuple[str, Endpoint], ...] = (),
    node: Node = SELF,
    mtu: int | Callable[[Sequence[IPAddress]], int] = 1500,
    networks: Mapping[str, Network] = NETWORKS,
    gateway: GatewayBridge = GATEWAY,
    boxes: Remembered[Sandbox] | None = None,
) -> HostState:
    return plan(
        self_node=node,
        cluster=CLUSTER,
        networks=networks,
        containers=containers,
        facts=facts(endpoints),
        members={"node-a": A, "node-b": B},
        underlay_mtu=mtu,
        gateway=gateway,
        dns_ports={ID: 40000},
        boxes=boxes,
    )


def test_a_container_among_others() -> None:
    state = planned(
        container(attachment(3), gateway=WAY_OUT),
        endpoints=(("node-c", endpoint(6, C)), ("node-b", endpoint(5, B)), ("node-b", endpoint(4, B))),
    )
    assert state == HostState(
        segments=(
            Segment(
                vni=65536,
                mtu=1450,
                local=A,
                remotes=tuple(
                    Remote(mac=f"02:00:0a:00:00:0{number}", addresses=(ip_address(f"10.0.0.{number}"),), vtep=vtep)
                    for number, vtep in ((4, B), (5, B), (6, C))
                ),
                flood=(B, C),
            ),
        ),
        sandboxes=(
            Sandbox(
                id=ID,
                netns="/proc/77/ns/net",
                interfaces=(
                    Interface(
                        name="eth0",
                        port="v1a2b3c4d5.eth0",
                        vni=65536,
                        mac="02:00:0a:00:00:03",
                        mtu=1450,
                        addresses=(ip_interface("10.0.0.3/20"),),
                    ),
                    Interface(
                        name="eth1",
                        port="v1a2b3c4d5.eth1",
                        vni=None,
                        mac="02:00:ac:13:00:02",
                        mtu=1500,
                        addresses=(ip_interface("172.19.0.2/16"),),
                    ),
                ),
                default_via=(ip_address("172.19.0.1"),),
                dns_port=40000,
            ),
        ),
        gateway=GATEWAY,
        data_port=4790,
        # C sends although nobody knows it as a member any more: its containers outlive its daemon.
        vteps=(B, C),
    )


def test_peers_without_vxnet_are_the_segments_and_no_members() -> None:
    """Their address opens the port for one identifier, not for all."""
    peers = tuple(ForeignPeer(vtep=ip_address(text)) for text in ("192.0.2.9", "192.0.2.10", "2001:db8::1"))
    networks = NETWORKS | {"net-a": replace(NETWORKS["net-a"], peers=peers)}
    state = planned(container(attachment(3)), networks=networks)
    assert [str(vtep) for vtep in state.segments[0].foreign] == ["192.0.2.9", "192.0.2.10"]
    assert state.segments[0].flood == () and state.vteps == (B,)


def test_other_subnets_are_on_the_link() -> None:
    more = tuple(Subnet(prefix=prefix, gateway=prefix[1]) for prefix in map(ip_network, ("10.9.0.0/24", "fd00:9::/64")))
    networks = NETWORKS | {"net-a": replace(NETWORKS["net-a"], subnets=(*NETWORKS["net-a"].subnets, *more))}
    (box,) = planned(container(attachment(3)), networks=networks).sandboxes
    assert box.interfaces[0].links == (ip_network("10.9.0.0/24"),)
    # Of IPv6 this container has no address.
    assert box.interfaces[0].unreachable == (ip_network("fd00:9::/64"),)


def test_no_segment_without_a_container_here() -> None:
    state = planned(endpoints=(("node-b", endpoint(5, B)),))
    assert state.segments == () and state.sandboxes == () and state.vteps == (B,)


@pytest.mark.parametrize(
    "row, why",
    [
        (("node-a", endpoint(5, A)), "an own row"),
        (("node-b", endpoint(5, A)), "somebody's row with this host's VTEP"),
        (("node-b", endpoint(5, B, network="net-b", vni=65537)), "a network that has no container here"),
        (("node-b", endpoint(5, B, network="gone")), "a network that is no more"),
        (("node-b", endpoint(5, B, vni=65999)), "another VNI than the network's"),
        (("node-b", endpoint(3, B)), "what lives here"),
        (("node-b", endpoint(5, ip_address("2001:db8::1"))), "a VTEP of another family"),
    ],
)
def test_rows_without_effect(row: tuple[str, Endpoint], why: str) -> None:
    (segment,) = planned(container(attachment(3)), endpoints=(row,)).segments
    assert segment.remotes == () and segment.flood == (), why


def test_two_claims_on_one_address_settle_the_same_way_in_any_order() -> None:
    rows = (("node-c", endpoint(5, C)), ("node-b", endpoint(5, B)))
    first, second = (planned(container(attachment(3)), endpoints=order) for order in (rows, rows[::-1]))
    assert first == second
    assert [remote.vtep for remote in first.segments[0].remotes] == [B]


def test_the_rows_own_addresses_are_handed_on() -> None:
    """The kernel side compares plans by identity first."""
    row = endpoint(5, B)
    (segment,) = planned(container(attachment(3)), endpoints=(("node-b", row),)).segments
    assert segment.remotes[0].addresses is row.addresses and segment.remotes[0].vtep is row.vtep


def test_mtu() -> None:
    on_both = container(attachment(3), attachment(4, "net-b", "eth1"))
    assert [segment.mtu for segment in planned(on_both).segments] == [1450, 9000]
    assert [one.mtu for one in planned(on_both).sandboxes[0].interfaces] == [1450, 9000]
    six = replace(SELF, data_path_addr=ip_address("2001:db8::1"))
    assert planned(on_both, node=six).segments[0].mtu == 1430
    assert planned(on_both, mtu=lambda vteps: 1400 if vteps == (B,) else 0).segments[0].mtu == 1350


def test_container_on_no_overlay() -> None:
    alone = container(gateway=WAY_OUT)
    state = planned(alone)
    assert state.segments == ()
    assert [one.name for one in state.sandboxes[0].interfaces] == ["eth1"]
    nothing = planned(container())
    assert nothing.sandboxes[0].interfaces == () and nothing.sandboxes[0].default_via == ()


def test_attachment_whose_network_is_gone_or_no_overlay() -> None:
    state = planned(container(attachment(3, "gone"), attachment(4, "host", "eth1")))
    assert state.segments == () and state.sandboxes[0].interfaces == ()


def test_no_gateway_no_way_out() -> None:
    state = plan(
        self_node=SELF,
        cluster=CLUSTER,
        networks=NETWORKS,
        containers=[container(attachment(3), gateway=WAY_OUT)],
        facts=NO_FACTS,
        members={},
        underlay_mtu=1500,
        gateway=None,
        dns_ports={},
    )
    (sandbox,) = state.sandboxes
    assert [one.name for one in sandbox.interfaces] == ["eth0"]
    assert sandbox.default_via == () and sandbox.dns_port == 0


@given(st.randoms(use_true_random=False), st.lists(st.integers(2, 60), unique=True, max_size=12))
def test_order_of_what_comes_in_does_not_matter(shuffle: random.Random, numbers: list[int]) -> None:
    containers = [container(attachment(number), id=f"{number:064x}", pid=number) for number in numbers[:4]]
    rows = [("node-b" if number % 2 else "node-c", endpoint(number, B if number % 2 else C)) for number in numbers[2:]]
    first = planned(*containers, endpoints=tuple(rows))
    shuffle.shuffle(containers)
    shuffle.shuffle(rows)
    second = planned(*containers, endpoints=tuple(rows))
    assert codec.to_json(first) == codec.to_json(second)
    for segment in first.segments:
        claimed = [address for remote in segment.remotes for address in remote.addresses]
        claimed += [one.ip for box in first.sandboxes for face in box.interfaces for one in face.addresses]
        assert len(claimed) == len(set(claimed)), "an address stands in one place"


def test_what_is_remembered_of_a_sandbox_is_what_a_newcomer_would_make() -> None:
    """Whatever of its surroundings changes; and one that is the same is the same object."""
    boxes: Remembered[Sandbox] = Remembered()
    one, other = container(attachment(3), gateway=WAY_OUT), container(attachment(4), id="f" * 64)
    (wider,) = (replace(net, mtu=1300) for net in NETWORKS.values() if net.id == "net-a")
    calm: dict[str, Any] = {}
    rounds: list[tuple[tuple[Container, ...], dict[str, Any]]] = [
        ((one, other), calm),
        ((other,), calm),
        ((replace(one, pid=78), other), calm),
        ((one, other), {"mtu": 1400}),
        ((one, other), {"networks": {**NETWORKS, "net-a": wider}}),
        ((one, other), {"networks": {}}),
        ((one, other), {"gateway": replace(GATEWAY, mtu=1400)}),
        ((one, other), calm),
    ]
    for containers, around in rounds:
        assert planned(*containers, **around, boxes=boxes) == planned(*containers, **around)
    before = planned(one, other, boxes=boxes).sandboxes
    after = planned(replace(one, pid=79), other, boxes=boxes).sandboxes
    assert [was is now for was, now in zip(before, after, strict=True)] == [False, True]


@given(st.text("0123456789abcdef", min_size=64, max_size=64), st.text("abcdefgh0123456789", min_size=1, max_size=15))
def test_port_names_fit(id: str, ifname: str) -> None:
    name = port_name(id, ifname)
    assert len(name) <= PORT_NAME_MAX and name.startswith(f"v{id[:8]}")


def test_port_names_differ() -> None:
    names = ["eth0", "eth1", "eth10", "eth100", "eth101", "a-long-name-one", "a-long-name-two"]
    assert len({port_name(ID, name) for name in names}) == len(names)
    assert port_name(ID, "eth0") == "v1a2b3c4d5.eth0"


def test_the_routing_mesh() -> None:
    """This node's foot, a published task here and one elsewhere, and another node that only hands connections on."""
    ingress = replace(NETWORKS["net-a"], ingress=True)
    mine = attachment(9, ifname="ingress0")
    task = replace(container(attachment(3, "net-b"), mine, gateway=WAY_OUT), task=TaskRef(task="t1", service="s"))
    web = PublicService(id="s", name="web", ports=(PublishedPort(target=80, published=8080),))
    foot = attachment(8, ifname="vxnet_in")
    there = Gateway(network="net-a", vni=65536, addresses=(ip_address("10.0.0.16"),), mac="02:00:0a:00:00:10", vtep=B)
    tasks = [replace(endpoint(9, A), service="s", task="t1"), replace(endpoint(17, B), service="s", task="t2")]
    rows = Facts.gather(
        [
            (RowKey("node-a", "endpoint", "1"), Version(1, 1), tasks[0]),
            (RowKey("node-b", "endpoint", "2"), Version(1, 1), tasks[1]),
            (RowKey("node-b", "gateway", "net-a"), Version(1, 2), there),
        ]
    )

    def of(foot: Attachment | None, published: Sequence[PublicService] | None = None) -> HostState:
        return plan(
            self_node=SELF,
            cluster=CLUSTER,
            networks={**NETWORKS, "net-a": ingress},
            containers=(task,) if foot is not None else (),
            facts=rows,
            members={"node-a": A, "node-b": B},
            underlay_mtu=1500,
            gateway=GATEWAY,
            dns_ports={},
            services=[web],
            published=published,
            serving=rows,
            ingress=foot,
        )

    state = of(foot)
    segment = next(one for one in state.segments if one.vni == 65536)
    assert segment.ingress and [remote.mac for remote in segment.remotes] == ["02:00:0a:00:00:10", "02:00:0a:00:00:11"]
    assert state.ingress is not None
    assert (state.ingress.mac, state.ingress.addresses, state.ingress.mtu) == (foot.mac, foot.addresses, 1450)
    assert state.ingress.gateways == ("02:00:0a:00:00:08", "02:00:0a:00:00:10")
    (port,) = (one for one in state.ingress.ports if one.version == 4)
    assert (port.published, port.target, port.protocol) == (8080, 80, "tcp")
    (box,) = state.sandboxes
    assert box.answers is not None
    assert (box.answers.interface, box.answers.ports) == ("ingress0", (("tcp", 80),))
    assert box.answers.via == (ip_address("10.0.0.8"),)
    # A port that a program of this host has; its task answers what comes by other nodes all the same.
    left = of(foot, [replace(web, ports=())])
    assert left.ingress is not None and left.ingress.ports == () and left.sandboxes == state.sandboxes
    # Nothing published, or no address: nothing of it is here.
    bare = of(None)
    assert bare.ingress is None and not bare.segments
