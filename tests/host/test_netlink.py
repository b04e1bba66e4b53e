"""The transport: many messages in one send, each on its own merits."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.throwaway import Place
from vxnet.host import addresses, datapath, gateway, links, neighbours
from vxnet.host.links import _DATA, _PORT, Wish
from vxnet.host.neighbours import BRIDGE, FLOOD, NEIGHBOUR, TUNNEL, key_head
from vxnet.host.netlink import Netlink, attribute, attributes
from vxnet.model.host import GatewayBridge, Segment


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=40), max_size=20))
def test_attributes_are_read_as_written(wanted: dict[int, bytes]) -> None:
    packed = b"".join(attribute(kind, value) for kind, value in wanted.items())
    assert len(packed) % 4 == 0
    assert attributes(packed) == wanted


@given(st.binary(max_size=200))
def test_attributes_of_anything_end(data: bytes) -> None:
    attributes(data)


@pytest.fixture
def netlink(place: Place) -> Iterator[Netlink]:
    with Netlink(place.fd) as netlink:
        yield netlink


VX = Wish("vx1", "vxlan", 1450, data={"IFLA_VXLAN_ID": 1, "IFLA_VXLAN_PORT": 4789, "IFLA_VXLAN_LEARNING": 0})
BR = Wish("br1", "bridge", 1450, mac="06:00:00:00:00:01", data={"IFLA_BR_STP_STATE": 0})


@pytest.mark.host
def test_refusals_are_told_by_position_in_the_kernels_words(netlink: Netlink) -> None:
    twin = VX._replace(name="vx2")
    failures = netlink.batch([links.add(VX), links.add(twin), links.add(BR), links.change(999, up=True)])
    assert {at: number for at, (number, _) in failures.items()} == {1: errno.EEXIST, 3: errno.ENODEV}
    assert "VXLAN device with the specified VNI already exists" in failures[1][1]
    assert {"vx1", "br1"} <= links.dump(netlink).keys()


@pytest.mark.host
def test_one_bad_row_among_thousands(netlink: Netlink) -> None:
    netlink.request(links.add(VX))
    vx = links.dump(netlink)["vx1"].ifindex
    wanted = {
        key_head(TUNNEL, vx) + bytes((2, 0, 0, 0, *divmod(row, 256))): bytes((10, 0, 0, 1)) for row in range(4000)
    }
    bad = key_head(TUNNEL, 999) + bytes(5) + b"\1"
    rows = dict(list(wanted.items())[:2500]) | {bad: bytes(4)} | dict(list(wanted.items())[2500:])
    difference = neighbours.difference(rows, {})
    changes = neighbours.apply(netlink, difference, rows, {}, {vx: "vx1"})
    assert [(change.object, bool(change.error)) for change in changes] == [
        ("2500 fdb rows of vx1", False),
        ("fdb 00:00:00:00:00:01 dev 999 dst 0.0.0.0", True),
        ("1500 fdb rows of vx1", False),
    ]
    assert neighbours.dump(netlink, {vx: 0}) == wanted


@pytest.mark.host
def test_rows_are_dumped_as_put(netlink: Netlink) -> None:
    """All three tables, both families; strangers' rows beside them are not seen."""
    netlink.batch([links.add(VX), links.add(BR), links.add(BR._replace(name="br2"))])
    found = links.dump(netlink)
    vx, br, other = (found[name].ifindex for name in ("vx1", "br1", "br2"))
    netlink.request(links.change(vx, master=br))
    mac, four, six = bytes((2, 0, 0, 0, 0, 5)), bytes((10, 0, 0, 5)), socket.inet_pton(socket.AF_INET6, "fd00::5")
    wanted = {
        key_head(TUNNEL, vx) + mac: bytes((192, 0, 2, 1)),
        key_head(TUNNEL, vx) + FLOOD + bytes((192, 0, 2, 1)): bytes((192, 0, 2, 1)),
        key_head(TUNNEL, vx) + FLOOD + bytes((192, 0, 2, 2)): bytes((192, 0, 2, 2)),
        key_head(BRIDGE, br) + mac: struct.pack("=i", vx),
        key_head(NEIGHBOUR, br) + four: mac,
        key_head(NEIGHBOUR, br) + six: mac,
    }
    strange = {key_head(NEIGHBOUR, other) + four: mac}
    both = wanted | strange
    changes = neighbours.apply(netlink, neighbours.difference(both, {}), both, {}, {vx: "vx1", br: "br1", other: "br2"})
    assert [change for change in changes if change.error] == []
    assert {change.object for change in changes} == {
        "fdb 02:00:00:00:00:05 dev vx1 dst 192.0.2.1",
        "fdb 00:00:00:00:00:00 dev vx1 dst 192.0.2.1",
        "fdb 00:00:00:00:00:00 dev vx1 dst 192.0.2.2",
        "fdb 02:00:00:00:00:05 dev vx1 master br1",
        "neigh 10.0.0.5 lladdr 02:00:00:00:00:05 dev br1",
        "neigh fd00::5 lladdr 02:00:00:00:00:05 dev br1",
        "neigh 10.0.0.5 lladdr 02:00:00:00:00:05 dev br2",
    }
    assert neighbours.dump(netlink, {vx: br}) == wanted
    gone = neighbours.apply(netlink, neighbours.difference({}, wanted), {}, wanted, {})
    assert [change.error for change in gone] == [""] * len(wanted)
    assert neighbours.dump(netlink, {vx: br}) == {}
    assert neighbours.dump(netlink, {vx: other}) == strange
    again = neighbours.apply(netlink, neighbours.difference({}, wanted), {}, wanted, {})
    assert again == [], "the deletion of what is gone is no event"


@pytest.mark.host
def test_links_are_read_as_written(place: Place, netlink: Netlink) -> None:
    netlink.batch([links.add(VX), links.add(BR), links.set_alias("br1", "vxnet:1")])
    found = links.dump(netlink)
    assert found["br1"].up and found["br1"].mac == BR.mac and found["br1"].alias == "vxnet:1"
    assert found["vx1"].mtu == 1450 and found["vx1"].kind == "vxlan" and found["vx1"].peer_namespace is None
    assert links.differing(VX.data, found["vx1"].data, "vxlan") == []
    assert links.differing({"IFLA_VXLAN_PORT": 4790}, found["vx1"].data, "vxlan") == ["IFLA_VXLAN_PORT"]
    again = links.get(netlink, "br1")
    assert again is not None and again._replace(data={}) == found["br1"]._replace(data={})  # its timers run
    assert links.get(netlink, "none") is None
    with pytest.raises(KeyError):
        links.differing({"IFLA_VXLAN_NONSENSE": 1}, found["vx1"].data, "vxlan")
    netlink.batch(links.delete(found[name].ifindex for name in ("vx1", "br1")))
    assert links.dump(netlink).keys() == {"lo"}
    assert links.delete([]) == []


@pytest.mark.host
def test_addresses_and_routes(place: Place, netlink: Netlink) -> None:
    place.sh(
        "ip link add sw type bridge; ip link set sw up;"
        "ip addr add 10.1.0.1/24 dev sw; ip addr add fd01::1/64 dev sw nodad"
    )
    found = {(str(one.interface), one.ours) for one in addresses.dump(netlink) if one.scope == 0}
    assert found == {("10.1.0.1/24", False), ("fd01::1/64", False)}
    place.sh(
        "ip route add 10.2.0.0/16 via 10.1.0.9; ip route add blackhole 10.3.0.0/16; ip route add default via 10.1.0.8;"
        "ip route add unreachable 10.4.0.0/16; ip route add unreachable fd04::/64"
    )
    routes = {(str(one.destination), str(one.via), one.ours) for one in addresses.dump_routes(netlink)}
    assert {("10.2.0.0/16", "10.1.0.9", False), ("0.0.0.0/0", "10.1.0.8", False)} <= routes
    assert not any(destination == "10.3.0.0/16" for destination, _, _ in routes)
    nowhere = {(str(one.destination), one.ifindex) for one in addresses.dump_routes(netlink) if one.unreachable}
    assert nowhere == {("10.4.0.0/16", 0), ("fd04::/64", 0)}


def test_a_wrong_name_of_an_attribute_does_not_pass() -> None:
    """Where it is used it would be an error in the middle of a reconcile."""
    for local in ("192.0.2.1", "2001:db8::1"):
        segment = Segment(vni=7, mtu=1450, local=ip_address(local))
        assert datapath.tunnel_wish(segment, 4789).data.keys() <= _DATA["vxlan"].keys()
        assert datapath.bridge_wish(segment).data.keys() <= _DATA["bridge"].keys()
    assert gateway.bridge_wish(GatewayBridge(addresses=(), mtu=1500)).data.keys() <= _DATA["bridge"].keys()
    assert datapath.TUNNEL_PORT.keys() | datapath.CONTAINER_PORT.keys() | gateway.GATEWAY_PORT.keys() <= _PORT.keys()


@pytest.mark.host
def test_a_link_that_has_only_counted_is_the_same_object(place: Place, netlink: Netlink) -> None:
    place.sh("ip link add v1 type veth peer name v2; ip link set v1 up; ip link set v2 up")
    place.sh("ip addr add 10.1.1.1/24 dev v1")
    reader = links.Reader()
    before = reader.dump(netlink)
    counted = place.run("ip", "-s", "-j", "link", "show", "v2")
    place.run("ping", "-c1", "-W1", "-q", "10.1.1.2", check=False)
    assert place.run("ip", "-s", "-j", "link", "show", "v2") != counted
    after = reader.dump(netlink)
    assert after["v1"] is before["v1"] and after["v2"] is before["v2"]
    assert after == links.dump(netlink)
    place.sh("ip link set v2 mtu 1400 alias new")
    assert reader.dump(netlink)["v2"] == before["v2"]._replace(mtu=1400, alias="new")


@pytest.mark.host
def test_a_dump_that_was_torn_is_asked_for_again(place: Place, netlink: Netlink) -> None:
    """The kernel marks the first datagram behind the change, and not the end."""
    with Netlink(place.fd) as other:
        assert not other.batch([links.add(Wish(f"br{number}", "bridge", 1450)) for number in range(2, 120)])
        changed: list[int] = []
        asked: list[int] = []

        def change(data: bytes) -> None:
            (sequence,) = struct.unpack_from("=I", data, 8)
            if not changed:
                other.request(links.add(BR))
            changed.append(sequence)
            if sequence not in asked:
                asked.append(sequence)

        netlink.dump_whole(links.RTM_GETLINK, links._IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0), change)
    assert changed.count(asked[0]) > 2, "all was told at once: nothing could be torn"
    assert len(asked) == 2


@pytest.mark.host
def test_a_dump_that_the_kernel_refuses_is_not_an_empty_one(netlink: Netlink) -> None:
    wrong = addresses._IFADDR.pack(socket.AF_UNSPEC, 5, 0, 0, 0)
    with pytest.raises(OSError, match="Invalid values in header for address dump request") as refused:
        netlink.dump(addresses.RTM_GETADDR, wrong)
    assert refused.value.errno == errno.EINVAL


@pytest.mark.host
def test_of_what_is_not_there_a_dump_is_empty(netlink: Netlink) -> None:
    assert addresses.dump(netlink, 999) == []
    assert addresses.dump_routes(netlink, 77) == []
    assert neighbours.dump_bridge(netlink, 999) == {}
