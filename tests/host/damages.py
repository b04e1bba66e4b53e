"""What somebody may do to a host behind vxnet's back, and how the host looks before and afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

from tests.host.rig import Pair, errors, wait_until
from vxnet.host.inspection import differences


class Damage(NamedTuple):
    what: str
    do: Callable[[Pair], object]
    changes: int | None
    """How many the repair is told as; None: it depends on the kernel."""
    seen: bool = True
    """By who only looks from outside; what the forwarder holds it tells the daemon alone."""


D1 = "02:00:0a:00:10:03"
PORT = "v00000002.eth0"
GATEWAY_PORT = "v00000002.eth9"


def inside(line: str) -> Callable[[Pair], object]:
    return lambda pair: pair.h1.inside("sh", "-ec", line)


def on_host(line: str) -> Callable[[Pair], object]:
    return lambda pair: pair.h1.sh(line)


def in_container(line: str) -> Callable[[Pair], object]:
    return lambda pair: pair.c1.sh(line)


DAMAGES = [
    Damage("tunnel row deleted", inside(f"bridge fdb del {D1} dev vx65536 dst 192.168.9.2 self"), 1),
    Damage("tunnel row altered", inside(f"bridge fdb replace {D1} dev vx65536 dst 192.168.9.99 self"), 1),
    Damage("tunnel row too many", inside("bridge fdb add 02:00:00:00:00:01 dev vx65536 dst 192.168.9.99 self"), 1),
    Damage("flood row deleted", inside("bridge fdb del 00:00:00:00:00:00 dev vx65536 dst 192.168.9.2"), 1),
    Damage("flood row too many", inside("bridge fdb append 00:00:00:00:00:00 dev vx65536 dst 192.168.9.99"), 1),
    Damage("bridge row deleted", inside(f"bridge fdb del {D1} dev vx65536 master"), 1),
    Damage("bridge row on another port", inside(f"bridge fdb replace {D1} dev {PORT} master static"), 1),
    Damage("own container's row deleted", inside(f"bridge fdb del 02:00:0a:00:10:02 dev {PORT} master"), 1),
    Damage("neighbour deleted", inside("ip neigh del 10.0.16.3 dev br65536"), 1),
    Damage("IPv6 neighbour deleted", inside("ip neigh del fd00:16::3 dev br65536"), 1),
    Damage(
        "neighbour altered", inside("ip neigh replace 10.0.16.3 lladdr 02:00:00:00:00:09 dev br65536 nud permanent"), 1
    ),
    Damage(
        "neighbour too many", inside("ip neigh add 10.0.16.9 lladdr 02:00:00:00:00:09 dev br65536 nud permanent"), 1
    ),
    Damage("tunnel is no port", inside("ip link set vx65536 nomaster"), None),
    Damage("container's port is no port", inside(f"ip link set {PORT} nomaster"), None),
    Damage(
        "flags of the tunnel port", inside("bridge link set dev vx65536 flood on learning on neigh_suppress off"), 1
    ),
    Damage("flags of a container's port", inside(f"bridge link set dev {PORT} isolated on learning on"), 1),
    Damage("isolation of a gateway port", on_host(f"bridge link set dev {GATEWAY_PORT} isolated off"), 1),
    Damage("tunnel deleted", inside("ip link del vx65536"), None),
    Damage("tunnel down", inside("ip link set vx65536 down"), 1),
    Damage(
        "tunnel made anew by hand, with learning",
        lambda pair: (
            pair.h1.inside("ip", "link", "del", "vx65536"),
            pair.h1.sh(
                "ip link add vx65536 netns vxnet type vxlan id 65536 local 192.168.9.1 dstport 4789 learning;"
                "nsenter --net=/run/netns/vxnet ip link set vx65536 up"
            ),
        ),
        None,
    ),
    Damage(
        "tunnel with its socket in the wrong namespace",
        inside(
            "ip link del vx65536; ip link add vx65536 type vxlan id 65536 local 192.168.9.1 dstport 4789 nolearning"
        ),
        None,
    ),
    Damage("bridge deleted", inside("ip link del br65536"), None),
    Damage("bridge down", inside("ip link set br65536 down"), None),
    Damage("bridge's own settings", inside("ip link set br65536 type bridge stp_state 1 mcast_snooping 1"), 1),
    Damage("MTU of the tunnel", inside("ip link set vx65536 mtu 1300"), None),
    Damage("MTU of the bridge", inside("ip link set br65536 mtu 1300"), 1),
    Damage("MTU of a port", inside(f"ip link set {PORT} mtu 1300"), None),
    Damage("MTU in the container", in_container("ip link set eth0 mtu 1300"), 1),
    Damage("port down", inside(f"ip link set {PORT} down"), 1),
    Damage("namespace's name", on_host("ip netns del vxnet"), 1),
    Damage("host's nft table deleted", on_host("nft delete table inet vxnet"), 1),
    Damage("host's nft table emptied", on_host("nft flush chain inet vxnet input"), 1),
    Damage("an element of it", on_host("nft delete element inet vxnet vteps4 '{ 192.168.9.2 }'"), 1),
    Damage("a stranger in it", on_host("nft add element inet vxnet vteps4 '{ 192.168.9.66 }'"), 1),
    Damage("container's nft table", in_container("nft delete table inet vxnet"), 1),
    Damage("container's nft rule", in_container("nft flush chain inet vxnet output"), 1),
    Damage("container's interface", in_container("ip link del eth0"), None),
    Damage("container's interface down", in_container("ip link set eth0 down"), None),
    Damage("container's MAC", in_container("ip link set eth0 address 02:00:00:00:00:07"), 1),
    Damage("container's port deleted", inside(f"ip link del {PORT}"), None),
    Damage("container's way out", in_container("ip link del eth9"), None),
    Damage("container's address", in_container("ip addr del 10.0.16.2/24 dev eth0"), 1),
    Damage("container's IPv6 address", in_container("ip addr del fd00:16::2/64 dev eth0"), 1),
    Damage("container's default route", in_container("ip route del default"), 1),
    Damage("container's loopback", in_container("ip link set lo down"), 1),
    Damage("vxnet_gw deleted", on_host("ip link del vxnet_gw"), None),
    Damage("address of vxnet_gw", on_host("ip addr del 172.19.0.1/16 dev vxnet_gw"), None),
    Damage("routing", on_host("echo 0 > /proc/sys/net/ipv4/ip_forward"), 1),
    Damage("ownership mark", inside("ip link set vx65536 alias somebody"), 1),
]


def inspection(pair: Pair) -> set[str]:
    return {change.object for change in pair.h1.do(differences, pair.s1)}


def works(pair: Pair) -> bool:
    return (
        pair.c1.reaches("10.0.16.3")
        and pair.c1.reaches("fd00:16::3")
        and pair.d1.reaches("10.0.16.2")
        and pair.c1.reaches("192.168.9.2")
    )


VOLATILE = {
    *("ifindex", "link_index", "link_netnsid", "address", "alias", "bridge_id", "root_id", "hello_timer", "gc_timer"),
    *("operstate", "flags", "link", "promiscuity", "allmulti"),
}


def strip(value: object) -> object:
    """Without what differs between two equal links."""
    if isinstance(value, dict):
        return {name: strip(part) for name, part in value.items() if name not in VOLATILE and "timer" not in name}
    return [strip(part) for part in value] if isinstance(value, list) else value


def picture(pair: Pair) -> dict[str, object]:
    """The state of h1 as ``ip`` and ``bridge`` tell it."""
    host, box = pair.h1, pair.c1
    fdb = json.loads(host.inside("bridge", "-j", "fdb"))
    routes = json.loads(box.run("ip", "-j", "route")) + json.loads(box.run("ip", "-6", "-j", "route"))
    return {
        "links": {name: strip(link) for name, link in host.links("-n", "vxnet").items()},
        "host": {name: strip(link) for name, link in host.links().items() if name != "lo"},
        "fdb": sorted(
            f"{row['mac']} {row['ifname']} {row.get('master')} {row.get('dst')}"
            for row in fdb
            if row["state"] == "static" or row.get("dst")
        ),
        "neigh": sorted(host.run("ip", "-n", "vxnet", "neigh", "show", "nud", "permanent").splitlines()),
        "nft": host.run("nft", "list", "table", "inet", "vxnet"),
        "inner": {name: strip(link) for name, link in box.links().items()},
        "addresses": sorted(
            line.split()[3] for line in box.run("ip", "-o", "addr", "show", "scope", "global").splitlines()
        ),
        "routes": sorted(
            f"{one['dst']} {one.get('gateway')} {one['dev']}" for one in routes if one["dst"] != "fe80::/64"
        ),
        "inner nft": box.run("nft", "list", "table", "inet", "vxnet"),
    }


def picture_at_rest(pair: Pair) -> dict[str, object]:
    """To compare a later one with: an early one, of ports that do not forward yet, would never come again."""
    assert wait_until(pair.h1.forwards)
    return picture(pair)


def settles_to(pair: Pair, before: dict[str, object]) -> bool:
    """As :meth:`tests.host.rig.Machine.forwards`, in the kernel's own time."""
    if wait_until(lambda: picture(pair) == before):
        return True
    assert picture(pair) == before
    return True


def assert_mended(pair: Pair, damage: Damage) -> None:
    """One look at h1 mends it, tells it once, and leaves the host as it was."""
    before = picture_at_rest(pair)
    assert inspection(pair) == set()
    damage.do(pair)
    told = inspection(pair)
    assert inspection(pair) == told, "a look changes nothing"
    changes = pair.h1.reconcile(pair.s1)
    assert changes and errors(changes) == []
    assert told or not damage.seen, f"not seen by inspection: {changes}"
    if damage.changes is not None:
        assert len(changes) == damage.changes, changes
    assert settles_to(pair, before)
    assert works(pair)
    assert pair.h1.reconcile(pair.s1) == []
