"""The routing mesh on a real kernel: tests/host/mesh_rig.py has the picture."""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import time
from collections.abc import Iterator
from typing import Literal

import pytest
from msgspec.structs import replace

from tests.host.mesh_rig import VIP, Site, port
from tests.host.rig import wait_until
from tests.host.throwaway import Place, wire
from vxnet.host import conntrack, elements, nft
from vxnet.host.netlink import Netlink
from vxnet.model.host import STICKY_BUCKETS
from vxnet.model.mesh import MeshTraffic

pytestmark = [pytest.mark.host, pytest.mark.slow]

Version = Literal[4, 6]
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_MTU = 10, 2, 14


@pytest.fixture(scope="module")
def made() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture
def site(made: Site) -> Iterator[Site]:
    yield made
    made.hang_up()
    made.publish()


both_families = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


@both_families
def test_the_server_sees_its_client_through_either_node(site: Site, version: Version) -> None:
    site.publish_to(site.t1, site.t3)
    listening = [site.listen(one) for one in (site.t1, site.t3)]
    servers = [site.udp(one, 5353) for one in (site.t1, site.t3)]
    for node in site.nodes:
        address = str(node.outside[version == 6])
        for _ in range(8):
            assert site.answers(site.client, address, listening) == site.client_address(node, version)
        asked = {site.ask(site.udp(site.client, version=version), address, servers) for _ in range(30)}
        assert asked == {(0, site.client_address(node, version)), (1, site.client_address(node, version))}


def test_tasks_without_a_way_out() -> None:
    """Of ``--internal`` networks: with a route for answers alone."""
    site = Site(way_out=False)
    try:
        site.publish_to(site.t1, site.t3)
        listening = [site.listen(one) for one in (site.t1, site.t3)]
        servers = [site.udp(one, 5353) for one in (site.t1, site.t3)]
        for version in (4, 6):
            for node in site.nodes:
                address, client = str(node.outside[version == 6]), site.client_address(node, version)
                assert site.answers(site.client, address, listening) == client
                asked = {site.ask(site.udp(site.client, version=version), address, servers) for _ in range(30)}
                assert asked == {(0, client), (1, client)}
        for address in ("192.0.2.1", "2001:db8::1", str(site.h1.outside[0])):
            with pytest.raises(OSError, match=r"refused|unreachable"):
                site.connect(site.t1, address, 81)
    finally:
        site.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "192.168.52.1", "fd00:52::1", "172.19.0.1"])
def test_from_the_host_itself(site: Site, address: str) -> None:
    for task in (site.t1, site.t3):
        site.publish_to(task)
        assert site.answers(site.h1, address, [site.listen(task)])
        assert site.ask(site.udp(site.h1, version=6 if ":" in address else 4), address, [site.udp(task, 5353)])
        site.hang_up()


def test_a_host_that_uses_its_own_address_is_seen_by_it(site: Site) -> None:
    site.publish_to(site.t3)
    for address in map(str, site.h1.outside):
        assert site.answers(site.h1, address, [site.listen(site.t3)]) == address
        site.hang_up()


def test_from_containers_and_a_task_from_itself(site: Site) -> None:
    for task in (site.t1, site.t2, site.t3):
        site.publish_to(task)
        listening, servers = [site.listen(task)], [site.udp(task, 5353)]
        for address in ("172.19.0.1", str(site.h1.outside[0])):
            seen = site.answers(site.t1, address, listening)
            assert seen == str(site.h1.feet[0])  # as each host has a container of that address
            assert site.ask(site.udp(site.t1, version=4), address, servers)
        site.hang_up()


def test_a_task_that_itself_uses_virtual_ips(site: Site) -> None:
    site.publish_to(site.t1)
    published = [site.listen(site.t1)]
    serving = [site.listen(one, 9000) for one in (site.t1, site.t2, site.t3)]
    asked = set()
    for _ in range(60):  # by chance: of three, 20 miss one once in a thousand
        assert site.answers(site.client, str(site.h2.outside[0]), published)
        ours = site.connect(site.t1, VIP, 9000)
        number, theirs, seen = site.accept(serving)
        theirs.sendall(b"answer")
        assert ours.recv(100) == b"answer"
        assert seen == str(site.t1.app_address)
        asked.add(number)
    assert asked == {0, 1, 2}


def test_one_port_of_a_client_through_two_nodes_to_one_task(site: Site) -> None:
    site.publish_to(site.t1)
    listening, server = [site.listen(site.t1)], site.udp(site.t1, 5353)
    site.client.sh("ip addr add 192.168.60.9/32 dev lo")
    for node in site.nodes:
        node.sh(f"ip route add 192.168.60.9 via 192.168.5{node.number}.9")

    def opened(kind: socket.SocketKind) -> socket.socket:
        made = socket.socket(socket.AF_INET, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("192.168.60.9", 7777))
        return site.keep(made)

    pairs = []
    for node in site.nodes:
        ours = site.client.do(opened, socket.SOCK_STREAM)
        ours.connect((str(node.outside[0]), 80))
        _, theirs, seen = site.accept(listening)
        assert seen == "192.168.60.9"
        pairs.append((ours, theirs))
    for ours, theirs in pairs:
        for data in (b"one", b"two"):
            ours.sendall(data)
            assert theirs.recv(10) == data
            theirs.sendall(data)
            assert ours.recv(10) == data
    peers = []
    flows = [site.client.do(opened, socket.SOCK_DGRAM) for _ in site.nodes]
    for ours, node in zip(flows, site.nodes, strict=True):
        ours.connect((str(node.outside[0]), 53))
        ours.send(b"question")
        peers.append(server.recvfrom(10)[1])
    for ours, peer in zip(flows, peers, strict=True):
        server.sendto(b"answer", peer)
        assert ours.recv(10) == b"answer"


@both_families
def test_without_a_backend_it_is_refused_at_once(site: Site, version: Version) -> None:
    site.publish_to()
    address = str(site.h1.outside[version == 6])
    for place in (site.client, site.h1):
        with pytest.raises(ConnectionRefusedError):
            site.connect(place, address)
        ours = site.udp(place, version=version)
        ours.connect((address, 53))
        # Who asks from the host itself is told by the call already.
        with pytest.raises((ConnectionRefusedError, PermissionError)):
            ours.recv(10 * ours.send(b"question"))


@both_families
def test_errors_come_back_to_who_caused_them(site: Site, version: Version) -> None:
    """Nobody listens: the task's own kernel says so; a datagram too long for the tunnel: the node."""
    site.publish_to(site.t3)
    address = str(site.h1.outside[version == 6])
    with pytest.raises(ConnectionRefusedError):
        site.connect(site.client, address)
    ours = site.udp(site.client, version=version)
    ours.connect((address, 53))
    ours.send(b"question")
    with pytest.raises(ConnectionRefusedError):
        ours.recv(10)
    server = site.udp(site.t3, 5353)
    if version == 4:
        ours.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
    level, option = (socket.IPPROTO_IP, IP_MTU) if version == 4 else (socket.IPPROTO_IPV6, 24)
    assert ours.getsockopt(level, option) == 1500
    ours.send(bytes(1440))
    assert wait_until(lambda: ours.getsockopt(level, option) == 1450)
    with contextlib.suppress(OSError):  # the error of the first, where the system tells it
        ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    ours.send(bytes(1400))
    assert len(server.recvfrom(2000)[0]) == 1400


@both_families
def test_a_narrow_way_to_the_client_is_learnt(site: Site, version: Version) -> None:
    """Both ways a megabyte, over a route that carries less than the tunnel."""
    site.publish_to(site.t3)
    client = site.client_address(site.h1, version)
    bits = 32 if version == 4 else 128
    site.h1.sh(f"ip route add {client}/{bits} dev c0 mtu 1300")
    try:
        listening = [site.listen(site.t3)]
        ours = site.connect(site.client, str(site.h1.outside[version == 6]))
        _, theirs, _ = site.accept(listening)
        for one, other in ((ours, theirs), (theirs, ours)):
            for _ in range(8):
                one.sendall(bytes(1 << 15))
                left = 1 << 15
                while left:
                    left -= len(other.recv(left))
    finally:
        site.h1.sh(f"ip route del {client}/{bits} dev c0")


def test_unpublished_ports_cannot_be_reached(site: Site) -> None:
    """Neither by a neighbour that routes by hand, nor from another task, nor from a host but on what is published."""
    site.publish_to(site.t1, site.t3)
    for task in (site.t1, site.t3):
        for number in (8080, 9999):
            site.listen(task, number)
    site.client.sh("ip route replace 10.0.0.0/20 via 192.168.52.1; ip -6 route replace fd00:a::/64 via fd00:52::1")
    unpublished = 9999
    for place, address, number in (
        (site.client, "10.0.0.11", 8080),
        (site.client, "10.0.0.13", unpublished),
        (site.client, "fd00:a::b", 8080),
        (site.h2, "10.0.0.11", unpublished),
        (site.h1, "10.0.0.11", unpublished),
        (site.t3, "10.0.0.11", 8080),
        (site.t2, "10.0.0.11", 8080),
        (site.t2, "10.0.0.2", 80),
        (site.t1, "172.19.0.1", unpublished),
    ):
        with pytest.raises(OSError):
            place.do(lambda: site.keep(socket.create_connection((address, number), timeout=0.3)))  # noqa: B023


def test_ports_bound_to_addresses_and_kept_for_some(site: Site) -> None:
    first = replace(port("tcp", 80, 8080, 4, [site.t1]), addresses=(site.h1.outside[0],))
    second = replace(port("tcp", 80, 9090, 4, [site.t3]), addresses=(ipaddress.ip_address("172.19.0.1"),))
    sources = ipaddress.ip_network("192.168.52.0/24"), ipaddress.ip_network("192.0.2.7")
    kept = replace(port("tcp", 81, 8080, 4, [site.t1]), guarded=True, sources=sources)
    nobodys = replace(port("tcp", 81, 8080, 6, [site.t1]), guarded=True)
    bound = replace(port("tcp", 82, 8080, 4, [site.t1]), addresses=(site.h1.outside[0],), guarded=True)
    site.publish(first, second, kept, nobodys, bound)
    listening = [site.listen(site.t1), site.listen(site.t3, 9090)]
    outside, outside6 = (str(one) for one in site.h1.outside)
    for place, address, number, task in (
        (site.client, outside, 80, 0),
        (site.t1, "172.19.0.1", 80, 1),
        (site.client, outside, 81, 0),
        (site.h1, "127.0.0.1", 81, 0),
        (site.h1, outside, 82, 0),
    ):
        ours = site.connect(place, address, number)
        assert site.accept(listening)[0] == task, (address, number)
        ours.close()
    for place, address, number in (
        (site.h1, "127.0.0.1", 80),
        (site.client, str(site.h2.outside[0]), 80),
        (site.client, str(site.h2.outside[0]), 81),
        (site.client, outside6, 81),
        (site.client, outside, 82),
    ):
        with pytest.raises(OSError):
            place.do(lambda: site.keep(socket.create_connection((address, number), timeout=0.3)))  # noqa: B023


def test_a_port_of_the_loopback_is_the_hosts_alone(site: Site) -> None:
    """Also where a neighbour on the underlay routes by hand."""
    site.publish(replace(port("udp", 53, 5353, 4, [site.t1]), addresses=(ipaddress.ip_address("127.0.0.1"),)))
    servers = [site.udp(site.t1, 5353)]
    assert site.ask(site.udp(site.h1, version=4), "127.0.0.1", servers)
    stranger = Place()
    try:
        wire(site.h1, "n0", stranger, "n0")  # type: ignore[arg-type]
        site.h1.sh("ip addr add 192.168.54.1/24 dev n0")
        stranger.sh(
            "ip addr add 192.168.54.9/24 dev n0; ip link set lo up; ip link set n0 up;"
            "ip route del local 127.0.0.0/8 dev lo table local; ip route del local 127.0.0.1 dev lo table local;"
            "sysctl -qw net.ipv4.conf.all.route_localnet=1; ip route add 127.0.0.1/32 via 192.168.54.1"
        )
        asking = site.udp(stranger, version=4)
        asking.sendto(b"question", ("127.0.0.1", 53))
        assert select.select(servers, [], [], 0.5)[0] == []
    finally:
        stranger.close()


def test_a_clients_address_chooses(site: Site) -> None:
    tasks = (site.t1, site.t2, site.t3)
    buckets = tuple(tasks[bucket % 3].addresses[0] for bucket in range(STICKY_BUCKETS))
    site.publish(replace(port("tcp", 80, 8080, 4, tasks), sticky=True, backends=buckets))
    listening = [site.listen(one) for one in tasks]
    site.client.sh("for n in $(seq 20 60); do ip addr add 192.168.52.$n/32 dev lo; done")
    address = str(site.h1.outside[0])
    chosen: dict[str, int] = {}
    for number in range(20, 60):

        def connected(source: str = f"192.168.52.{number}") -> socket.socket:
            return socket.create_connection((address, 80), timeout=2, source_address=(source, 0))

        for _ in range(3):
            ours = site.keep(site.client.do(connected))
            task, _, seen = site.accept(listening)
            assert chosen.setdefault(seen, task) == task
            ours.close()
    assert {*chosen.values()} == {0, 1, 2}


def test_who_drains_keeps_what_it_has(site: Site) -> None:
    site.publish_to(site.t3)
    listening = [site.listen(one) for one in (site.t1, site.t3)]
    address = str(site.h1.outside[0])
    ours = site.connect(site.client, address)
    assert site.accept(listening)[0] == 1
    servers = [site.udp(one, 5353) for one in (site.t1, site.t3)]
    flow = site.udp(site.client, version=4)
    assert site.ask(flow, address, servers)[0] == 1
    site.publish_to(site.t1, draining=[site.t3])
    for _ in range(4):
        fresh = site.connect(site.client, address)
        assert site.accept(listening)[0] == 0
        fresh.close()
        assert site.ask(flow, address, servers)[0] == 1
        ours.sendall(b"still")


def test_no_udp_flow_stays_with_who_is_gone(site: Site) -> None:
    address, flow = str(site.h1.outside[0]), site.udp(site.client, version=4)
    servers = [site.udp(one, 5353) for one in (site.t1, site.t3)]
    flow.connect((address, 53))
    flow.send(b"before it is published")
    with pytest.raises(ConnectionRefusedError):
        flow.recv(10)
    flow.send(b"and again")
    site.publish_to(site.t1)
    site.forget()
    with contextlib.suppress(ConnectionRefusedError):
        flow.send(b"")
    assert site.ask(flow, address, servers)[0] == 0
    site.publish_to(site.t3)
    site.forget()
    assert site.ask(flow, address, servers)[0] == 1
    site.publish_to()
    site.forget()
    flow.send(b"nobody")
    with pytest.raises(ConnectionRefusedError):
        flow.recv(10)
    site.publish_to(site.t1)
    assert site.ask(flow, address, servers)[0] == 0


def test_flows_with_anothers_mark_are_left_alone(site: Site) -> None:
    """Another program leads a port of the host elsewhere, and its mark has the bit that vxnet's has."""
    h1 = site.h1
    site.publish_to(site.t1)
    h1.sh(
        "nft 'table ip others { chain prerouting { type nat hook prerouting priority dstnat - 1; "
        "udp dport 54 ct mark set 0x80000000 dnat to 192.168.9.3:54; }; }'"
    )
    try:
        site.udp(site.client, version=4).sendto(b"x", (str(h1.outside[0]), 54))
        site.publish_to(site.t3)
        site.forget()
        with h1.do(lambda: Netlink(protocol=elements.NETLINK_NETFILTER)) as netlink:
            flows = conntrack._flows(netlink, conntrack._MARK, conntrack.UDP.values())
            assert 54 in [flow.port for flow, _body in flows]
    finally:
        h1.sh("nft delete table ip others")


def test_a_connection_that_nobody_answered_finds_the_next(site: Site) -> None:
    """Its first packet went to a task that was gone before the news of it came."""
    silent = site.t3
    silent.sh("ip link set ingress0 down")
    try:
        site.publish_to(silent)
        listening = [site.listen(site.t1)]

        def begun() -> socket.socket:
            made = socket.socket()
            made.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                made.connect((str(site.h1.outside[0]), 80))
            return made

        ours = site.client.do(begun)
        time.sleep(0.05)  # the packet is under way, whatever becomes of it
        site.publish_to(site.t1)
        site.keep(ours)
        _, theirs, _ = site.accept(listening)
        theirs.sendall(b"answer")
        assert ours.recv(10) == b"answer"
    finally:
        silent.sh("ip link set ingress0 up")
        site.put()


def test_what_is_counted(site: Site) -> None:
    site.publish()  # counters begin with the port
    site.publish_to(site.t1, site.t3)
    listening, servers = (
        [site.listen(one) for one in (site.t1, site.t3)],
        [site.udp(one, 5353) for one in (site.t1, site.t3)],
    )
    address = str(site.h1.outside[0])
    for _ in range(3):
        site.answers(site.client, address, listening)
    site.answers(site.h1, "127.0.0.1", listening)
    site.ask(site.udp(site.client, version=4), address, servers)
    tcp, udp = traffic(site, "tcp"), traffic(site, "udp")
    assert (tcp.connections, udp.connections) == (4, 1)
    assert (udp.received, udp.sent) == (28 + len(b"question"), 28 + len(b"answer"))
    assert tcp.received > 4 * 8 and tcp.sent > 4 * 6
    site.publish_to()
    with pytest.raises(ConnectionRefusedError):
        site.connect(site.client, address)
    assert traffic(site, "tcp").refused == 1


def traffic(site: Site, protocol: str) -> MeshTraffic:
    """Of its one port."""
    (found,) = [one for one in site.h1.do(site.h1.kernel.mesh_traffic) if one.protocol == protocol]
    return found


def test_a_second_look_finds_nothing_to_do_and_damage_is_mended(site: Site) -> None:
    site.publish_to(site.t1, site.t2, site.t3)
    assert site.put() == []
    listening = [site.listen(one) for one in (site.t1, site.t2, site.t3)]
    for place, damage in (
        (site.h1, "ip link del vxnet_in"),
        (site.h1, "ip addr flush dev vxnet_in"),
        (site.h1, "nft flush ruleset"),
        (site.t1, "ip rule del priority 118; ip -6 rule del priority 118"),
        (site.t1, "ip route flush table 118"),
        (site.t1, "nft delete table netdev vxnet"),
        (site.t1, "nft flush table netdev vxnet"),
        (site.t1, "ip link del ingress0"),
    ):
        place.sh(damage)
        assert site.put(), damage
        assert site.put() == [], damage
        for version in (4, 6):
            for _ in range(6):
                address = str(site.h1.outside[version == 6])
                assert site.answers(site.client, address, listening) == site.client_address(site.h1, version)


def test_a_changed_backend_is_a_few_elements(site: Site) -> None:
    site.publish_to(site.t1, site.t3)
    generation = site.h1.do(lambda: nft.generation_now(site.h1.kernel._nft))
    changes = site.publish_to(site.t1, site.t2, site.t3)
    assert {change.object for change in changes} == {
        "nft table inet vxnet set mesh_to4 and mesh_to6 and mesh_end4 and mesh_end6 in the host"
    }
    assert site.h1.do(lambda: nft.generation_now(site.h1.kernel._nft)) == generation + 1
