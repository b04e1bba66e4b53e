"""What a host tells of itself."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from tests.host.rig import GATEWAY, Machine, errors
from vxnet.host import datapath, facts, netns
from vxnet.model.errors import HostError
from vxnet.model.host import HostState


@pytest.fixture(autouse=True)
def look_again() -> Iterator[None]:
    facts._complete = False
    yield
    facts._complete = False


@pytest.mark.host
def test_addresses_and_routes_without_vxnets_own(machine: Machine) -> None:
    machine.sh(
        "ip link add up0 type veth peer name down0; ip link set up0 up;"
        "ip addr add 192.0.2.1/24 dev up0; ip addr add 2001:db8::1/64 dev up0 nodad;"
        "ip addr add 198.51.100.1/24 dev down0;"
        "ip route add default via 192.0.2.254; ip route add 203.0.113.0/24 via 192.0.2.253;"
        "ip route add 0.0.0.0/1 via 192.0.2.252; ip route add 128.0.0.0/1 via 192.0.2.252;"
        "ip route add 2000::/3 via 2001:db8::2"
    )
    assert errors(machine.reconcile(HostState(gateway=GATEWAY))) == []
    told = machine.do(facts.observe_host)
    assert {(one.interface, str(one.address)) for one in told.addresses} == {
        ("up0", "192.0.2.1/24"),
        ("up0", "2001:db8::1/64"),
    }
    assert [str(one) for one in told.routes] == ["192.0.2.0/24", "203.0.113.0/24", "2001:db8::/64"]
    assert told.hostname == socket.gethostname()


@pytest.mark.host
def test_nothing_is_missing_here_and_nothing_is_left(machine: Machine) -> None:
    before = (machine.run("ip", "-o", "link"), machine.run("nft", "list", "ruleset"), len(os.listdir("/proc/self/fd")))
    assert machine.do(facts.missing) == ()
    assert (
        machine.run("ip", "-o", "link"),
        machine.run("nft", "list", "ruleset"),
        len(os.listdir("/proc/self/fd")),
    ) == before


@pytest.mark.host
def test_each_lack_comes_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    monkeypatch.setattr(netns, "kernel_has_filesystem", lambda kind: False)
    monkeypatch.setattr(netns, "hidden_from_host", lambda: True)
    found = facts.missing()
    assert [text.split(":")[0] for text in found] == [
        "the program nft",
        "overlayfs",
        "a mount namespace that the host sees into",
    ]
    assert all(len(text.split(": ", 1)[1]) > 10 for text in found)
    assert facts.missing() == found, "asked again while something lacks"


@pytest.mark.host
def test_a_kernel_that_refuses_vxlan(monkeypatch: pytest.MonkeyPatch) -> None:
    """As near to one without it as this kernel comes: it refuses a VNI of 25 bits."""
    wish = datapath.tunnel_wish
    refused = {"IFLA_VXLAN_ID": 1 << 24}
    monkeypatch.setattr(
        "vxnet.host.facts.tunnel_wish", lambda segment, port: wish(segment, port)._replace(data=refused)
    )
    found = facts.choose_tunnel("auto")
    assert found.kind == "userspace" and found.reason
    with pytest.raises(HostError, match=r"no vxlan devices \(.+modprobe vxlan, or datapath"):
        facts.choose_tunnel("kernel")
    monkeypatch.setattr("vxnet.host.tap.DEVICE", "/nowhere")
    with pytest.raises(HostError, match=r"no vxlan devices \(.+\) and no TAPs.+modprobe tun"):
        facts.choose_tunnel("auto")


@pytest.mark.host
def test_what_the_tunnels_are() -> None:
    assert facts.choose_tunnel("auto") == facts.choose_tunnel("kernel") == ("kernel", "")
    assert facts.choose_tunnel("userspace") == ("userspace", "")


def test_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert facts.missing() == ("root's privileges: run it as root",)


def test_nameservers_in_order() -> None:
    lines = ("# nameserver 9.9.9.9", "search x", "nameserver 192.0.2.53", "nameserver", "nameserver nonsense")
    assert facts.nameservers("\n".join((*lines, "  nameserver fe80::1%eth0\n"))) == (
        ip_address("192.0.2.53"),
        ip_address("fe80::1%eth0"),
    )
