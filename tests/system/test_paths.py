"""A switch that takes less than the hosts think: found, and named."""

from __future__ import annotations

import subprocess

import pytest

from tests.system.operator import Session, eventually

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def set_port_mtu(session: Session, host: str, mtu: int) -> None:
    """Of the underlay's port to ``host``, which neither host sees."""
    from vxnet.host.netns import CLONE_NEWNET
    from vxnet.lab import namespaces
    from vxnet.lab.state import load

    def change() -> None:
        subprocess.run(["ip", "link", "set", host, "mtu", str(mtu)], check=True)

    namespaces.in_host(load(session.lab.name).underlay, "underlay", change, CLONE_NEWNET)


def test_a_narrow_path_is_found_and_named(session: Session) -> None:
    session.network("wide")
    session.container("h2", "a", "wide")
    session.container("h3", "b", "wide")
    eventually(lambda: session.inside("h2", "a", "ping -c1 -W1 b").returncode == 0)
    eventually(lambda: [path["carried"] for path in paths(session, "h2")] == [1500, 1500], 30)
    assert "WARNING" not in session.run("h2", "vxnet info").stderr
    set_port_mtu(session, "h3", 1396)  # and 4 for a VLAN tag
    try:
        assert session.inside("h2", "a", "ping -c1 -W1 -M do -s 1422 b").returncode != 0
        warning = eventually(lambda: session.run("h2", "vxnet info").stderr, 40)
        assert warning.count("\n") == 1 and "h3 (192.168.56.13) carries packets of 1400 octets" in warning
        assert "promises 1500" in warning and "--opt mtu=1350" in warning
        (line,) = session.json("h2", "vxnet network inspect wide")[0]["warnings"]
        assert "h3 (192.168.56.13)" in line and "1350" in line and "1450" in line
        # What it advises works.
        assert session.inside("h2", "a", "ping -c1 -W1 -M do -s 1322 b").returncode == 0
        # Each host finds it when its own survey is due.
        eventually(lambda: [path["name"] for path in paths(session, "h1") if path["carried"] == 1500] == ["h2"], 40)
    finally:
        set_port_mtu(session, "h3", 1500)
    eventually(lambda: session.run("h2", "vxnet info").stderr == "", 40)


def paths(session: Session, host: str) -> list[dict[str, object]]:
    found = session.json(host, "vxnet info --format json")["paths"]
    return [path for path in found if path["name"] != host]
