"""A machine without vxnet on a network: a VXLAN device made by hand, as RFC 7348 has it.

::

     h1, h2, h3  vxnet            x1  no daemon: vx0, static FDB, 10.70.0.250
        └────────── underlay ──────┘
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.operator import Session, eventually
from tests.system.test_data_path import on_the_wire

pytestmark = [pytest.mark.lab, pytest.mark.slow]

X1 = "192.168.56.101"


@pytest.fixture
def far(session: Session) -> Iterator[str]:
    """A network with a on h2 and b on h3, and the device on x1 whose rows lead to both; a's address."""
    session.network("hall", "--attachable --subnet 10.70.0.0/24 --ip-range 10.70.0.64/26")
    a = session.container("h2", "a", "hall")
    session.container("h3", "b", "hall")
    view = session.json("h1", "vxnet network inspect hall")[0]["network"]
    mac = session.json("h2", "vxnet inspect a")[0]["attachments"][0]["mac"]
    session.say(
        "x1",
        f"ip link add vx0 address 02:78:00:00:00:01 type vxlan id {view['vni']} local {X1} dstport 4789 nolearning"
        " && ip link set vx0 mtu 1450 up && ip addr add 10.70.0.250/24 dev vx0"
        f" && bridge fdb add {mac} dev vx0 dst 192.168.56.12"
        f" && ip neigh add {a} lladdr {mac} dev vx0"
        " && for host in 12 13; do bridge fdb append 00:00:00:00:00:00 dev vx0 dst 192.168.56.$host; done",
    )
    try:
        yield a
    finally:
        session.say("x1", "ip link del vx0")


def reaches(session: Session, host: str, name: str, target: str) -> bool:
    return session.inside(host, name, f"ping -c1 -W1 {target}").returncode == 0


def test_a_peer_takes_part_once_it_is_let_in(session: Session, far: str) -> None:
    drift = session.json("h2", "vxnet info --format json")["drift"]
    assert session.run("x1", f"ping -c1 -W1 {far}").returncode != 0
    assert session.say("h1", f"vxnet network peer add --name x1 hall {X1}") == f"{X1}\n"
    eventually(lambda: session.run("x1", f"ping -c1 -W1 {far}").returncode == 0)
    # By its rows, and by ARP on both sides: b's are learnt.
    assert reaches(session, "h2", "a", "10.70.0.250")
    eventually(lambda: reaches(session, "h3", "b", "10.70.0.250"))
    assert session.run("x1", f"ping -c1 -W1 -M do -s 1422 {far}").returncode == 0
    assert session.table("h2", "vxnet network peer ls hall") == [{"vtep": X1, "name": "x1"}]
    # What vxnet's own containers say to each other is none of its business.
    with on_the_wire(session, "x1") as overheard:
        assert reaches(session, "h2", "a", "b")
    assert not [frame for frame in overheard if "echo" in frame]
    assert session.json("h2", "vxnet info --format json")["drift"] == drift
    session.say("h1", "vxnet network peer rm hall x1")
    eventually(lambda: session.run("x1", f"ping -c1 -W1 {far}").returncode != 0)
    eventually(lambda: X1 not in session.datapath("h2", "bridge fdb show"))
    assert X1 not in session.say("h2", "nft list table inet vxnet")


def test_a_peer_of_one_network_is_none_of_another(session: Session, far: str) -> None:
    """Its address lets it into its own identifier alone, with its own MAC addresses alone."""
    session.say("h1", f"vxnet network peer add hall {X1}")
    eventually(lambda: session.run("x1", f"ping -c1 -W1 {far}").returncode == 0)
    session.network("closed", "--attachable --subnet 10.71.0.0/24")
    inside = session.container("h2", "c", "closed")
    vni = session.json("h1", "vxnet network inspect closed")[0]["network"]["vni"]
    session.say(
        "x1",
        f"ip link add vx1 address 02:78:00:00:00:02 type vxlan id {vni} local {X1} dstport 4789 nolearning"
        " && ip link set vx1 up && ip addr add 10.71.0.250/24 dev vx1"
        " && bridge fdb append 00:00:00:00:00:00 dev vx1 dst 192.168.56.12",
    )
    try:
        assert session.run("x1", f"ping -c2 -i0.2 -W1 {inside}").returncode != 0
        pid = session.pid("h2", "c")
        assert "02:78" not in session.say("h2", f"nsenter -t {pid} -n ip neigh")
    finally:
        session.say("x1", "ip link del vx1")
    # One that takes b's MAC for its own gets none of b's frames.
    mac = session.json("h3", "vxnet inspect b")[0]["attachments"][0]["mac"]
    session.say("x1", f"ip link set vx0 address {mac}")
    session.run("x1", f"ping -c2 -i0.2 -W1 {far}")
    with on_the_wire(session, "x1") as overheard:
        assert reaches(session, "h2", "a", "b")
    assert not [frame for frame in overheard if "echo request" in frame]


def test_peers_at_birth(session: Session) -> None:
    session.network("born", f"--attachable --opt peers={X1}")
    assert session.table("h1", "vxnet network peer ls born") == [{"vtep": X1, "name": ""}]
    session.container("h2", "a", "born")
    eventually(lambda: f"dst {X1}" in session.datapath("h2", "bridge fdb show"))
