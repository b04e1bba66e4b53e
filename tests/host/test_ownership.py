"""What is vxnet's own goes when it is not wanted; what is not is left alone, by reconcile and by teardown."""

from __future__ import annotations

import json
import os

import pytest
from msgspec.structs import replace

from tests.host.rig import VNI, Container, Machine, Pair, addresses, errors, interfaces, state, wait_until
from vxnet.host.kernel import Kernel
from vxnet.model.host import GatewayBridge, HostState

pytestmark = pytest.mark.host


def everything(machine: Machine) -> dict[str, str]:
    """The host as it is told from outside."""
    return {
        "links": machine.run("ip", "-o", "link"),
        "addresses": machine.run("ip", "-o", "addr"),
        "routes": machine.run("ip", "route", "show", "table", "all") + machine.run("ip", "-6", "route"),
        "rules": machine.run("ip", "rule"),
        "nft": machine.run("nft", "list", "ruleset"),
        "mounts": machine.run("sh", "-c", "cut -d' ' -f5 /proc/thread-self/mountinfo"),
        "run": machine.run("find", "/run"),
    }


FOREIGN = """
ip link add foreign type bridge
ip link set foreign up
ip link add v123.eth0 type veth peer name other
ip addr add 10.99.0.1/24 dev foreign
ip route add 10.98.0.0/16 via 10.99.0.2 metric 77
ip rule add fwmark 7 lookup 77
nft add table inet other
nft add chain inet other input '{ type filter hook input priority 0; }'
nft add rule inet other input udp dport 4789 counter accept
"""


def test_teardown_leaves_the_host_as_it_was(pair: Pair) -> None:
    bare = Machine()
    try:
        before = everything(bare)
        bare.sh(FOREIGN)
        expected = everything(bare)
        assert expected != before
        container = Container(2)
        wanted = state(addresses("10.99.0.1")[0], [container.sandbox()], [pair.d1.remote(pair.v2)])
        assert errors(bare.reconcile(wanted)) == []
        assert everything(bare) != expected
        assert errors(bare.do(bare.kernel.teardown)) == []
        assert everything(bare) == expected
        assert bare.do(bare.kernel.teardown) == []
        assert "eth0" not in container.links()
        container.close()
    finally:
        bare.close()


def test_teardown_by_a_daemon_that_never_reconciled(pair: Pair) -> None:
    pair.h1.stop()
    pair.h1.start()
    assert errors(pair.h1.do(pair.h1.kernel.teardown)) == []
    assert "vxnet" not in pair.h1.run("ip", "-o", "link") + pair.h1.run("nft", "list", "ruleset")
    # Nothing of the old namespace holds the VNI.
    assert errors(pair.h1.reconcile(pair.s1)) == []


def test_reconcile_leaves_foreign_things(pair: Pair) -> None:
    """In all three places, with names as near to vxnet's as can be."""
    pair.h1.sh(FOREIGN)
    pair.h1.inside("ip", "link", "add", "br99", "type", "bridge")
    pair.h1.inside("bridge", "fdb", "add", "02:00:00:00:00:01", "dev", "br99", "self")
    pair.c1.sh("ip addr add 10.77.0.1/24 dev eth0; ip route add 10.78.0.0/16 via 10.77.0.9; nft add table inet mine")
    places = (pair.h1.run("ip", "-o", "link"), pair.c1.run("ip", "route"), pair.c1.run("nft", "list", "ruleset"))
    assert pair.h1.reconcile(pair.s1) == []
    without = replace(pair.s1, segments=(), sandboxes=())
    assert errors(pair.h1.reconcile(without) + pair.h1.reconcile(without)) == []
    assert "br99" in pair.h1.inside("ip", "-o", "link")
    assert "br65536" not in pair.h1.inside("ip", "-o", "link")
    assert "foreign" in places[0] and "foreign" in pair.h1.run("ip", "-o", "link")
    assert "v123.eth0" in pair.h1.run("ip", "-o", "link")
    assert "table inet other" in pair.h1.run("nft", "list", "ruleset")
    assert "10.98.0.0/16" in pair.h1.run("ip", "route")
    assert "table inet mine" in pair.c1.run("nft", "list", "ruleset")


def test_foreign_default_route_is_not_replaced(pair: Pair) -> None:
    pair.c1.sh("ip route del default; ip route add default via 10.0.16.3")
    changes = pair.h1.reconcile(pair.s1)
    assert [change.error for change in changes] == ["File exists"]
    assert "via 10.0.16.3" in pair.c1.run("ip", "route")


def test_disconnected_interface_goes_at_once(pair: Pair) -> None:
    with_two = replace(
        pair.s1,
        sandboxes=(pair.c1.sandbox(vnis=(65536, 65537)),),
        segments=(pair.s1.segments[0], replace(pair.s1.segments[0], vni=65537, remotes=())),
    )
    assert errors(pair.h1.reconcile(with_two)) == []
    assert {"eth0", "eth1", "eth9"} <= set(pair.c1.links())
    assert errors(pair.h1.reconcile(pair.s1, [pair.c1.id])) == []
    assert "eth1" not in pair.c1.links()
    assert set(pair.h1.links("-n", "vxnet")) == {"lo", "br65536", "vx65536", "v00000002.eth0"}
    assert pair.h1.reconcile(pair.s1) == []


def test_way_out_goes_and_comes(pair: Pair) -> None:
    internal = replace(pair.s1, sandboxes=(pair.c1.sandbox(gateway=False),))
    assert errors(pair.h1.reconcile(internal)) == []
    assert "default" not in pair.c1.run("ip", "route") and "eth9" not in pair.c1.links()
    assert errors(pair.h1.reconcile(pair.s1)) == []
    assert pair.c1.reaches("192.168.9.2")


def test_resolver_moves_and_goes(pair: Pair) -> None:
    moved = replace(pair.s1, sandboxes=(pair.c1.sandbox(dns=41000),))
    assert len(pair.h1.reconcile(moved, [pair.c1.id])) == 1
    assert "elements = { 53 : 41000 }" in pair.c1.run("nft", "list", "ruleset")
    none = replace(pair.s1, sandboxes=(pair.c1.sandbox(dns=0),))
    assert len(pair.h1.reconcile(none)) == 1
    assert "127.0.0.11" not in pair.c1.run("nft", "list", "ruleset")
    alone = replace(none, sandboxes=(replace(none.sandboxes[0], interfaces=()),))
    assert errors(pair.h1.reconcile(alone)) == []
    assert pair.c1.run("nft", "list", "ruleset") == ""


def test_port_of_a_dead_container_is_left_to_the_kernel(pair: Pair) -> None:
    """Its namespace takes it along. One that stays, because somebody holds the namespace, goes after the grace."""
    gone = replace(pair.s1, sandboxes=())
    first = pair.h1.reconcile(gone)
    assert errors(first) == [] and not [
        change for change in first if "v00000002" in change.object and "link" in change.object
    ]
    second = pair.h1.reconcile(gone)
    assert {change.object for change in second} == {"link v00000002.eth0", "link v00000002.eth9"}
    assert pair.h1.reconcile(gone) == []


def test_vanished_container_is_no_error(pair: Pair) -> None:
    dying = Container(7)
    wanted = state(pair.v1, [pair.c1.sandbox(), dying.sandbox()], [pair.d1.remote(pair.v2)])
    assert errors(pair.h1.reconcile(wanted)) == []
    dying.close()
    assert wait_until(lambda: "v00000007.eth0" not in pair.h1.links("-n", "vxnet"))
    changes = pair.h1.reconcile(wanted)
    assert errors(changes) == []
    assert {change.verb for change in changes} <= {"delete"}, "its neighbours"
    assert pair.h1.reconcile(wanted) == []


def test_restarted_container_gets_new_links(pair: Pair) -> None:
    """The same id and port names in a new namespace while the old one still lives."""
    again = Container(2)
    try:
        renewed = replace(pair.s1, sandboxes=(again.sandbox(),))
        assert errors(pair.h1.reconcile(renewed, [again.id])) == []
        assert again.reaches("10.0.16.3")
        assert pair.h1.reconcile(renewed) == []
    finally:
        again.close()


def test_hosts_own_namespace_is_nobodys_sandbox(machine: Machine) -> None:
    box = replace(Container(2).sandbox(), netns=f"/proc/self/fd/{machine.fd}")
    before = machine.run("ip", "-o", "link")
    wanted = HostState(sandboxes=(box,), vteps=addresses("192.168.9.2"))
    (error,) = errors(machine.reconcile(wanted))
    assert "own network namespace" in error.error and error.sandbox == box.id
    assert machine.run("ip", "-o", "link") == before


def test_gateway_with_both_families(pair: Pair) -> None:
    pair.h1.sh("ip addr add fd00:9::1/64 dev eth0 nodad; echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_ra")
    pair.h2.sh("ip addr add fd00:9::2/64 dev eth0 nodad")
    box = pair.c1.sandbox()
    way_out = replace(box.interfaces[-1], addresses=interfaces("172.19.0.2/16", "fd00:19::ac13:2/64"))
    wanted = replace(
        pair.s1,
        sandboxes=(
            replace(box, interfaces=(*box.interfaces[:-1], way_out), default_via=addresses("172.19.0.1", "fd00:19::1")),
        ),
        gateway=GatewayBridge(addresses=interfaces("172.19.0.1/16", "fd00:19::1/64"), mtu=1500),
    )
    assert errors(pair.h1.reconcile(wanted)) == []
    assert pair.h1.reconcile(wanted) == []
    assert pair.c1.reaches("fd00:9::2")
    assert pair.c1.reaches("192.168.9.2")
    assert pair.h1.run("cat", "/proc/sys/net/ipv6/conf/eth0/accept_ra").strip() == "2"


def test_data_port_and_vtep_change(pair: Pair) -> None:
    for host, wanted in ((pair.h1, pair.s1), (pair.h2, pair.s2)):
        moved = replace(wanted, data_port=4799)
        assert errors(host.reconcile(moved)) == []
        assert host.reconcile(moved) == []
    assert pair.c1.reaches("10.0.16.3")


@pytest.mark.parametrize("version", [4, 6])
def test_peers_without_vxnet_are_let_in_and_stay(version: int) -> None:
    """The rules are as nft prints them, and the tunnel learns while it has such a peer, with no new tunnel made."""
    pair = Pair(version)
    try:
        host, (stranger,) = pair.h1, addresses("192.0.2.9" if version == 4 else "2001:db8::9")
        pair.reconcile()
        index = json.loads(host.inside("ip", "-j", "link", "show", f"vx{VNI}"))[0]["ifindex"]
        segment = replace(pair.s1.segments[0], foreign=(stranger,))
        wanted = replace(pair.s1, segments=(segment,))
        assert errors(host.reconcile(wanted)) == []
        assert host.reconcile(wanted) == []
        family = "ip" if version == 4 else "ip6"
        rule = f"udp dport 4789 {family} saddr {stranger} @th,96,24 0x10000 accept"
        assert rule in host.run("nft", "list", "table", "inet", "vxnet")
        assert f"dst {stranger}" in host.inside("bridge", "fdb", "show", "dev", f"vx{VNI}")
        assert pair.c1.reaches("10.0.16.3")
        assert errors(host.reconcile(pair.s1)) == []
        assert host.reconcile(pair.s1) == []
        assert str(stranger) not in host.inside("bridge", "fdb") + host.run("nft", "list", "ruleset")
        link = json.loads(host.inside("ip", "-d", "-j", "link", "show", f"vx{VNI}"))[0]
        assert (link["ifindex"], link["linkinfo"]["info_data"]["learning"]) == (index, False)
    finally:
        pair.close()


def test_what_routes_promise(pair: Pair) -> None:
    near, far = addresses("192.168.9.2", "203.0.113.1")
    mtus = pair.h1.kernel.route_mtus
    assert pair.h1.do(mtus, (near,)) == {near: 1500}
    assert pair.h1.do(mtus, ()) == {}
    assert pair.h1.do(mtus, (far,)) == {}, "no way at all"
    pair.h1.sh("ip route add 203.0.113.0/24 via 192.168.9.2 mtu 1400")
    assert pair.h1.do(mtus, (near, far)) == {near: 1500, far: 1400}
    pair.h1.sh("ip link set eth0 mtu 1300")
    assert pair.h1.do(mtus, (near, far))[near] == 1300


def test_descriptors_do_not_grow(pair: Pair) -> None:
    pair.h1.reconcile(pair.s1)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        pair.h1.reconcile(pair.s1)
    # Some are closed beside the work.
    assert wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_two_daemons_do_not_fight(pair: Pair) -> None:
    """An upgrade in place: the new one looks while the old one still holds everything."""
    other = pair.h1.do(Kernel)
    assert pair.h1.do(other.reconcile, pair.s1) == []
    pair.h1.do(other.close)
    assert pair.h1.reconcile(pair.s1) == []
