"""`vxnet trace`: the way of a packet that arrives, and the place where others stop."""

from __future__ import annotations

import ipaddress
import json

import pytest

from tests.system.operator import Session, eventually

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def trace(session: Session, host: str, *words: str) -> tuple[int, list[str], list[str]]:
    """Exit status, what is well, and where it stops."""
    done = session.run(host, f"vxnet trace --format json {' '.join(words)}")
    hops = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.stderr == ""
    return (
        done.returncode,
        [hop["found"] for hop in hops if hop["ok"]],
        [f"{hop['where']}: {hop['found']}" for hop in hops if not hop["ok"]],
    )


def test_it_arrives(session: Session) -> None:
    session.network("blue")
    session.container("h1", "a", "blue")
    near = session.container("h1", "b", "blue")
    far = session.container("h2", "c", "blue")
    session.service("s", "--network blue --constraint node.hostname==h3")
    eventually(lambda: session.inside("h1", "a", "ping -c1 -W1 c && ping -c1 -W1 s").returncode == 0)
    vni = session.json("h1", "vxnet network inspect blue")[0]["network"]["vni"]

    status, well, stops = trace(session, "h1", "a", "c")
    assert (status, stops) == (0, [])
    assert f"c is {far}" in well
    assert "h2 (192.168.56.12, alive) by eth1, MTU 1500, UDP 4789" in well
    (row,) = [line for line in well if line.startswith("fdb") and "dst 192.168.56.12" in line]
    assert row.split()[1] in session.datapath("h1", f"bridge fdb show dev vx{vni} self")
    assert well[-1] == "answered"
    assert "leaves by eth1 to 192.168.56.12" in "\n".join(well)

    status, well, stops = trace(session, "h1", "a", "b")
    assert (status, stops) == (0, []) and f"b is {near}" in well
    assert any("a container of this host" in line for line in well)

    status, well, stops = trace(session, "h1", "a", "s")
    assert (status, stops) == (0, [])
    assert any("leads to one of" in line for line in well)
    assert any("h3 (192.168.56.13" in line for line in well)

    status, well, stops = trace(session, "h1", "a", "192.168.56.13")
    assert (status, stops) == (0, []) and any("NAT" in line for line in well)
    assert session.say("h1", "vxnet trace a c").splitlines()[-1].split() == ["ok", "probe:", "answered"]


def test_where_it_stops(session: Session) -> None:
    session.network("blue")
    session.container("h1", "a", "blue")
    session.container("h2", "c", "blue")
    eventually(lambda: session.inside("h1", "a", "ping -c1 -W1 c").returncode == 0)
    assert trace(session, "h1", "a", "nobody")[2] == ["name, of 127.0.0.11: no address is known for nobody"]
    # Of the network's own, and nobody's.
    nobody = str(ipaddress.ip_network(f"{session.inside('h1', 'a', 'hostname -I').stdout.split()[0]}/20", False)[-2])
    (unknown,) = trace(session, "h1", "a", nobody)[2]
    assert f"no row tells who has {nobody}" in unknown
    assert "nosuch" in session.refusal("h1", "vxnet trace nosuch c")
    # The other host's container drops what it gets; then this host's own rules do.
    pid = session.pid("h2", "c")
    drop = (
        "nft add table ip o; nft add chain ip o i '{{ type filter hook {} priority -200; }}';"
        "nft add rule ip o i {} drop"
    )
    session.say("h2", f'nsenter -t {pid} -n sh -c "{drop.format("input", "icmp type echo-request")}"')
    status, _, stops = trace(session, "h1", "a", "c")
    assert status == 4 and len(stops) == 1
    assert "not seen that the reply of" in stops[0] and "comes back by eth1" in stops[0]
    own = session.pid("h1", "a")
    session.say("h1", f'nsenter -t {own} -n sh -c "{drop.format("output", "icmp type echo-request")}"')
    assert "not seen that the request enters" in trace(session, "h1", "a", "c")[2][0]


def test_a_row_that_is_gone(session: Session) -> None:
    session.network("blue")
    session.container("h1", "a", "blue")
    far = session.container("h2", "c", "blue")
    eventually(lambda: session.inside("h1", "a", "ping -c1 -W1 c").returncode == 0)
    vni = session.json("h1", "vxnet network inspect blue")[0]["network"]["vni"]
    mac = next(row.split()[0] for row in session.tables("h1").splitlines() if row.startswith("02:"))
    take = f"while :; do bridge fdb del {mac} dev vx{vni} self 2>/dev/null; done"
    thief = session.lab.popen("h1", ["ip", "netns", "exec", "vxnet", "sh", "-c", take])
    try:
        stops = eventually(lambda: trace(session, "h1", "a", far)[2])
        assert any("the kernel has nothing, planned is" in line and mac in line for line in stops)
    finally:
        thief.kill()
        thief.wait()
