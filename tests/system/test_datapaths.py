"""A cluster whose hosts have tunnels of both kinds: the same networks, the same wire."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from tests.system.operator import Session, eventually
from vxnet.host import uvxlan
from vxnet.lab import Lab, build
from vxnet.model.errors import CallerError

pytestmark = [pytest.mark.lab, pytest.mark.slow]

HOSTS = ("h1", "h2", "h3")
METRICS = "curl -s --unix-socket /run/vxnet/vxnet.sock http://localhost/metrics"


@pytest.fixture
def mixed(make_lab: Callable[..., Lab]) -> Iterator[Session]:
    session = Session(make_lab(hosts=3, datapath=("userspace", "h1=kernel")))
    yield session
    session.forget()


def forwarders(session: Session, host: str) -> list[str]:
    return session.say(host, f"pgrep -u {uvxlan.UID} || true").split()


def test_containers_of_both_kinds_of_hosts_talk(mixed: Session) -> None:
    mixed.network("blue", "--attachable --ipv6")
    for host in HOSTS:
        mixed.container(host, f"on-{host}", "blue")
    for host in HOSTS:
        for other in HOSTS:
            for family in "46":
                look = f"ping -{family} -c1 -W1 on-{other}"
                eventually(lambda h=host, line=look: mixed.inside(h, f"on-{h}", line).returncode == 0)  # type: ignore[misc]
    kinds = {host: mixed.json(host, "vxnet info --format json")["datapath"] for host in HOSTS[1:]}
    assert kinds == {"h2": "userspace", "h3": "userspace"}
    assert "the kernel's" in mixed.say("h1", "vxnet info")
    shown = {row["name"]: row["tags"]["datapath"] for row in mixed.json("h1", "vxnet gossip --format json")["members"]}
    assert shown == {"h1": "kernel", "h2": "userspace", "h3": "userspace"}
    assert {host: mixed.json("h1", f"vxnet node inspect {host}")[0]["datapath"] for host in HOSTS} == shown
    tunnels = [
        line.split() for line in mixed.say("h2", METRICS).splitlines() if line.startswith("vxnet_tunnel_frames_total{")
    ]
    assert {name.partition("=")[2]: float(frames) > 0 for name, frames in tunnels} == {
        '"received"}': True,
        '"sent"}': True,
    }
    assert "vxnet_tunnel_frames_total{" not in mixed.say("h1", METRICS)

    # The forwarder is nobody's child: a dead daemon takes nothing with it, and the next one adopts it.
    before = forwarders(mixed, "h2")
    ping = mixed.ping("h2", "on-h2", "on-h1", "-i0.01", "-c300", "-W1")
    mixed.lab.kill("h2", daemon=True)
    mixed.lab.start("h2")
    assert ping.unanswered(300) == []
    assert forwarders(mixed, "h2") == before != []
    assert "mended: 0" in mixed.say("h2", "vxnet info")


def test_a_host_changes_its_kind_while_it_talks(mixed: Session) -> None:
    mixed.network("blue")
    for host in HOSTS:
        mixed.container(host, f"on-{host}", "blue")
    eventually(lambda: mixed.inside("h3", "on-h3", "ping -c1 -W1 on-h1").returncode == 0)
    for kind in ("kernel", "userspace"):
        ping = mixed.ping("h3", "on-h3", "on-h1", "-i0.02", "-c250", "-W1")
        mixed.say("h3", f"""sed -i 's/^datapath.*/datapath = "{kind}"/' /etc/vxnet/vxnet.toml""")
        mixed.lab.kill("h3", daemon=True)
        mixed.lab.start("h3")
        assert len(ping.unanswered(250)) <= 50, "a second, at 50 packets a second"
        assert len(forwarders(mixed, "h3")) == (kind == "userspace")
        assert mixed.inside("h3", "on-h3", "ping -c1 -W2 on-h2").returncode == 0


REFUSED = """
import runpy, sys
from vxnet.host import facts
whole = facts.tunnel_wish
facts.tunnel_wish = lambda segment, port: whole(segment, port)._replace(data={"IFLA_VXLAN_ID": 1 << 24})
sys.argv = ["vxnet", "daemon"]
runpy.run_module("vxnet", run_name="__main__")
"""
"""A daemon whose kernel refuses it the vxlan device that it tries (one with a VNI of 25 bits): as near to a kernel
without such devices as this one comes."""


def test_a_kernel_without_vxlan_and_more_queues(make_lab: Callable[..., Lab]) -> None:
    session = Session(make_lab(hosts=2, daemon_argv=[sys.executable, "-c", REFUSED]))
    lab = session.lab
    session.network("blue")
    for host in HOSTS[:2]:
        session.container(host, f"on-{host}", "blue")
    eventually(lambda: session.inside("h1", "on-h1", "ping -c1 -W1 on-h2").returncode == 0)
    for host in HOSTS[:2]:
        told = session.json(host, "vxnet info --format json")
        assert told["datapath"] == "userspace"
        assert [line for line in told["warnings"] if "the kernel has no vxlan devices (" in line and "modprobe" in line]
        assert session.json("h1", f"vxnet node inspect {host}")[0]["datapath"] == "userspace"
    assert "tunnels are in user space: the kernel has no vxlan devices" in session.say("h1", "vxnet info 2>&1")
    assert "tunnels are in user space: the kernel has no vxlan devices" in lab["h1"].log.read_text()

    # Another forwarder with two pairs of threads takes the place of the one with one.
    before = forwarders(session, "h2")
    session.say("h2", "echo 'queues = 2' >>/etc/vxnet/vxnet.toml")
    lab.kill("h2", daemon=True)
    lab.start("h2")
    eventually(lambda: session.inside("h1", "on-h1", "ping -c1 -W1 on-h2").returncode == 0)
    assert len(forwarders(session, "h2")) == 1 and forwarders(session, "h2") != before
    assert '"numqueues":2' in session.datapath("h2", "ip -d -j link show type tun")


@pytest.mark.parametrize("wish", ["h9=userspace", "fast", "h1="])
def test_a_wrong_kind_is_refused(wish: str) -> None:
    with pytest.raises(CallerError, match=r"KIND or HOST=KIND|its hosts are"):
        build.plan("x", 2, 0, 1500, False, (), [wish])
