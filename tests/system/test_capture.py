"""`vxnet capture`: packets between containers by their names, on the terminal and in a file that others read."""

from __future__ import annotations

import subprocess

import pytest
from scapy.layers.inet import ICMP
from scapy.layers.vxlan import VXLAN
from scapy.utils import PcapNgReader

from tests.system.operator import Session, eventually

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_names_and_a_file(session: Session) -> None:
    session.network("blue")
    session.network("red")
    for name in ("blue", "red"):
        session.container("h1", f"a-{name}", name)
        session.container("h2", f"b-{name}", name, "python3 -m http.server 80")
        eventually(lambda name=name: session.inside("h1", f"a-{name}", f"ping -c1 -W1 b-{name}").returncode == 0)  # type: ignore[misc]
    lab = session.lab
    argv = ["vxnet", "capture", "--network", "blue", "-c", "10", "-w", "/run/blue.pcapng"]
    child = lab.popen("h1", argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stderr is not None and child.stderr.readline() == "listening on eth1\n"
        while child.poll() is None:  # red is not asked for
            session.inside("h1", "a-red", "ping -c1 -W1 b-red")
            session.inside("h1", "a-blue", "ping -c1 -W1 b-blue; curl -s -o /dev/null http://b-blue")
        out, err = child.communicate(timeout=20)
    finally:
        child.kill()
        child.communicate()
    assert child.returncode == 0 and err == "10 packets\n"
    lines = [line.split("  ") for line in out.splitlines()]
    assert len(lines) == 10 and {line[2] for line in lines} == {"blue"}
    assert {"h1 > h2", "h2 > h1"} == {line[1] for line in lines}
    ways = {line[3] for line in lines}
    # All: IPv6 asks for routers and for its multicast groups, whenever it likes to.
    assert (
        {"a-blue > b-blue", "b-blue > a-blue"}
        <= ways
        <= {f"{one}-blue > {to}" for one in "ab" for to in ("a-blue", "b-blue", "all")}
    )
    assert any("ICMP echo-request" in line[-1] for line in lines) and any("> 80 SYN" in line[-1] for line in lines)
    with PcapNgReader(str(lab["h1"].root / "run/blue.pcapng")) as reader:
        packets = list(reader)
    assert len(packets) == 10 and all(VXLAN in packet for packet in packets)
    assert any(ICMP in packet[VXLAN] for packet in packets)
    assert any("a-blue > b-blue" in str(packet.comments or packet.comment) for packet in packets)


def test_it_ends_when_told(session: Session) -> None:
    done = session.run("h1", "vxnet capture -t 0.3 -q -w /run/none.pcapng")
    assert (done.returncode, done.stderr) == (0, "listening on eth1\n0 packets\n")
    assert "cannot listen on nosuch" in session.run("h1", "vxnet capture -i nosuch").stderr
    waiting = session.run("h1", "vxnet capture -t 0.3 --container nobody").stderr
    assert waiting == "listening on eth1\nnobody is called nobody so far\n0 packets\n"
    # Without scapy it says what to do.
    session.say("h1", "mkdir -p /run/noscapy/scapy; echo 'raise ImportError' >/run/noscapy/scapy/__init__.py")
    try:
        refused = session.run("h1", "vxnet capture -t 1", env={"PYTHONPATH": "/run/noscapy"})
        assert refused.returncode == 1 and "pip install 'vxnet[debug]'" in refused.stderr
    finally:
        session.say("h1", "rm -r /run/noscapy")
