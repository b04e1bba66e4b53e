"""Hosts whose address changes: the managers are told the new one, and what runs goes on."""

from __future__ import annotations

import ipaddress

import pytest

from tests.system.managers import client, make_network, until
from vxnet.core import trust
from vxnet.model.api import NodeUpdate
from vxnet.model.container import ContainerSpec, NetworkWish
from vxnet.model.errors import CallerError, ConflictError

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def answered(host, name):
    """How many pings of a container have had an answer."""
    return b"".join(client(host).logs(name)).count(b"time=")


def renumber(lab, host, address):
    """As a DHCP server that has forgotten it, or an operator who has not."""
    lab.run(host, ["ip", "address", "flush", "dev", "eth1", "scope", "global"], check=True)
    lab.run(host, ["ip", "address", "add", f"{address}/24", "dev", "eth1"], check=True)


def test_nodes_go_where_the_managers_are_told_that_they_are(make_lab):
    lab = make_lab(hosts=3)
    first = client(lab["h1"])
    make_network(lab["h1"], "blue")
    blue = (NetworkWish(network="blue"),)
    client(lab["h3"]).create_container(ContainerSpec(name="b", argv=("sleep", "1000"), networks=blue), start=True)
    ping = ("ping", "-n", "-i", "0.1", "b")
    client(lab["h2"]).create_container(ContainerSpec(name="a", argv=ping, networks=blue), start=True)
    until(lambda: answered(lab["h2"], "a") > 3, "pings")
    started = client(lab["h3"]).containers()[0].started_at
    with pytest.raises(ConflictError, match="is that of node h2"):
        first.update_node("h3", NodeUpdate(advertise_addr=lab["h2"].address))

    nobodys = ipaddress.ip_address("192.168.56.77")
    with pytest.raises(CallerError, match="this host does not have the address"):
        first.update_node("h1", NodeUpdate(advertise_addr=nobodys))

    # A worker. What it is told before it has the address, or by mistake, it waits with.
    first.update_node("h3", NodeUpdate(advertise_addr=nobodys))
    until(lambda: "that the host has not (yet)" in lab["h3"].log.read_text(), "it says what it lacks")
    before = answered(lab["h2"], "a")
    until(lambda: answered(lab["h2"], "a") > before + 3, "pings go on")
    # It finds the manager by itself; the others have to hear where it is.
    address = ipaddress.ip_address("192.168.56.113")
    first.update_node("h3", NodeUpdate(advertise_addr=address))
    renumber(lab, "h3", address)
    certificate = lab["h3"].root / "var/lib/vxnet/node.crt"
    until(
        lambda: trust.addresses(trust.certificate_from_pem(certificate.read_bytes())) == {address},
        "its certificate says where it is",
    )
    before = answered(lab["h2"], "a")
    until(lambda: answered(lab["h2"], "a") > before + 3, "pings go on")
    until(
        lambda: {one.node.name for one in first.nodes() if one.status == "ready"} == {"h1", "h2", "h3"}, "all are here"
    )
    assert client(lab["h3"]).containers()[0].started_at == started

    # The only manager: the others find it by gossip.
    renumber(lab, "h1", "192.168.56.111")
    first.update_node("h1", NodeUpdate(advertise_addr=ipaddress.ip_address("192.168.56.111")))
    make_network(lab["h1"], "later")
    for name in ("h2", "h3"):
        until(lambda name=name: "later" in {net.name for net in client(lab[name]).networks()}, f"{name} follows it")
    before = answered(lab["h2"], "a")
    until(lambda: answered(lab["h2"], "a") > before + 3, "pings go on")
