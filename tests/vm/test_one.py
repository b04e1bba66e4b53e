"""One real machine, and a lab's host beside it: what a package, a unit, Linux 6.1 and cgroup v2 make of vxnet.

The tests are the steps of one story, in this order, on one machine: each takes it as the one before has left it.

::

    vm1   Debian 12, Linux 6.1, systemd    192.168.56.31   the manager, from the package
    h1    a host of a lab                  192.168.56.11   a worker, on this machine's kernel
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.flow import Stream
from tests.vm.conftest import NEXT_VERSION, MakeVm
from tests.vm.machine import Vm
from vxnet.lab import Lab, state

pytestmark = [pytest.mark.vm, pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(hosts=1, join=False) as lab:
        yield lab


@pytest.fixture(scope="module")
def vm(lab: Lab, make_vm: MakeVm) -> Vm:
    underlay = state.load(lab.name).underlay
    assert underlay is not None
    machine = make_vm(underlay, 1)
    machine.start()
    return machine


def inspect(vm: Vm, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(vm.sh(f"vxnet inspect {name}"))[0]
    return found


class Pings:
    """From the lab's container to the machine's, ten a second, all the while."""

    def __init__(self, lab: Lab, target: str) -> None:
        argv = ["vxnet", "exec", "box", "ping", "-n", "-i", "0.1", target]
        self._child = lab.popen("h1", argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self._child.stdout
        first = [self._child.stdout.readline() for _ in range(2)]
        assert "icmp_seq" in first[1], first

    def lost(self, lab: Lab) -> tuple[int, int]:
        """How many were lost, and how many were sent."""
        lab.run("h1", ["vxnet", "exec", "box", "pkill", "-INT", "ping"], check=True)
        out = self._child.communicate(timeout=30)[0]
        sent, received = (int(word) for word in re.findall(r"(\d+) packets transmitted, (\d+) received", out)[0])
        # The last one may still be on its way.
        return max(0, sent - received - 1), sent


def test_the_package_starts_a_confined_daemon(vm: Vm) -> None:
    vm.sh("dpkg -i /media/vxnet.deb", timeout_s=240)
    vm.wait(lambda: vm.sh("systemctl is-active vxnetd"), "vxnetd", 120)
    assert vm.sh("uname -r").startswith("6.1.")
    assert vm.sh("stat -f -c %T /sys/fs/cgroup").strip() == "cgroup2fs"
    assert vm.sh("systemctl is-system-running || systemctl --failed").strip() == "running"
    shown = vm.sh("systemctl show vxnetd -p Type -p KillMode -p WatchdogUSec").split()
    assert sorted(shown) == ["KillMode=process", "Type=notify", "WatchdogUSec=1min"]
    verdict = vm.sh("systemd-analyze security vxnetd --no-pager | tail -n 1", timeout_s=120)
    assert "MEDIUM" in verdict or "OK" in verdict, verdict
    assert vm.sh("stat -c '%a %G' /run/vxnet/vxnet.sock").split() == ["660", "vxnet"]
    assert vm.sh("journalctl -u vxnetd -p warning -q -o cat") == ""
    assert "vxnetd is ready" in vm.sh("journalctl -u vxnetd -o cat")


def test_a_container_on_a_machine_with_eth0(vm: Vm) -> None:
    # Of its two cards the first has 10.0.2.15, as every machine's.
    assert f"{vm.address}:2377" in vm.sh("vxnet init")
    vm.sh("vxnet network create -d overlay --attachable blue")
    # Linux 6.1 refuses a veth peer called eth0 that is made where there is an eth0.
    vm.sh("vxnet run -d --name web --network blue -- python3 -m http.server 80")
    assert "Directory listing" in vm.sh("vxnet run --rm --network blue -- curl -s http://web")
    unit = f"vxnet-{inspect(vm, 'web')['id'][:12]}.service"
    assert vm.sh(f"systemctl show {unit} -p Slice -p SubState").split() == ["Slice=vxnet.slice", "SubState=running"]
    # Only what still runs has one.
    assert vm.sh("systemctl list-units 'vxnet-*.service' --all --plain --no-legend").count("\n") == 1


def test_limits_bind(vm: Vm) -> None:
    # run's exit status is the container's: 137 is SIGKILL's, the kernel's word when memory is used up.
    eat = "vxnet run --rm --network blue --memory 40m -- python3 -c 'x = bytearray(200 << 20)'"
    assert vm.run("/bin/sh", "-c", eat).status == 137
    fork = "vxnet run --rm --network blue --pids-limit 5 -- sh -c 'for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; wait'"
    assert "Cannot fork" in vm.run("/bin/sh", "-c", fork).err
    vm.sh("vxnet run -d --name busy --network blue --cpus 0.2 --memory 64m -- sh -c 'while :; do :; done'")
    group = f"/sys/fs/cgroup/vxnet.slice/vxnet-*.service/vxnet/{inspect(vm, 'busy')['id'][:12]}"
    assert vm.sh(f"cat {group}/cpu.max {group}/memory.max").split() == ["20000", "100000", str(64 << 20)]
    vm.wait(lambda: int(re.findall(r"nr_throttled (\d+)", vm.sh(f"cat {group}/cpu.stat"))[0]) > 3, "throttling", 30)


def test_a_lab_host_joins(vm: Vm, lab: Lab) -> None:
    token = vm.sh("vxnet join-token worker -q").strip()
    lab.run("h1", ["vxnet", "join", "--token", token, f"{vm.address}:2377"], check=True)
    vm.wait(lambda: vm.sh("vxnet node ls").count("Ready") == 2, "second node", 60)
    lab.run("h1", ["vxnet", "run", "-d", "--name", "box", "--network", "blue", "--", "sleep", "inf"], check=True)
    assert "Directory listing" in lab.run("h1", ["vxnet", "exec", "box", "curl", "-s", "http://web"], check=True).stdout
    assert "1 received" in vm.sh("vxnet exec web ping -c 1 box")


def test_killed_daemon(vm: Vm, lab: Lab) -> None:
    """The next one comes although a container with limits is there, and no packet is lost."""
    web, daemon = inspect(vm, "web")["pid"], vm.sh("systemctl show vxnetd -p MainPID")
    pings = Pings(lab, inspect(vm, "web")["attachments"][0]["addresses"][0].split("/")[0])
    vm.sh("systemctl kill -s KILL vxnetd")
    vm.wait(lambda: vm.sh("systemctl is-active vxnetd"), "vxnetd", 60)
    assert vm.sh("systemctl show vxnetd -p MainPID -p NRestarts").split() != daemon.split()
    assert inspect(vm, "web")["pid"] == web
    assert vm.sh("vxnet exec busy echo still here") == "still here\n"
    vm.sh("vxnet rm -f busy")
    lost, sent = pings.lost(lab)
    assert sent > 50
    assert lost == 0, f"{lost} of {sent}"


def restart(vm: Vm) -> None:
    vm.sh("systemctl restart vxnetd")
    vm.wait(lambda: vm.sh("systemctl is-active vxnetd"), "vxnetd", 60)


@pytest.mark.vms  # more than a minute that `make test` saves
def test_a_kernel_that_has_no_vxlan(vm: Vm, lab: Lab) -> None:
    """First the operator wants it so, then the module is not to be had; and the kernel's tunnel comes back with it. A
    TAP of Linux 6.1 takes no joined UDP, and between the two ends is a card (virtio), not memory.
    """

    def fetch_both_ways() -> None:
        """8 MB through the tunnel, twice."""
        sums = {side: say("head -c 8M /dev/urandom >/tmp/sent; sha256sum </tmp/sent") for side, say in ends.items()}
        assert ends["box"]("curl -s http://web:82/sent | sha256sum") == sums["web"]
        assert ends["web"]("curl -s http://box:82/sent | sha256sum") == sums["box"]

    def in_web(script: str) -> str:
        return vm.sh(f"vxnet exec web sh -c '{script}'")

    def in_box(script: str) -> str:
        return lab.run("h1", ["vxnet", "exec", "box", "sh", "-c", script], check=True).stdout

    ends = {"web": in_web, "box": in_box}
    for say in ends.values():
        say("python3 -m http.server 82 --directory /tmp >/dev/null 2>&1 &")
    vm.sh("""sed -i '1i datapath = "userspace"' /etc/vxnet/vxnet.toml""")
    restart(vm)
    vm.wait(lambda: "in user space" in vm.sh("vxnet info"), "tunnels in user space", 30)
    vm.wait(lambda: vm.sh("ip -n vxnet -o link show type tun"), "a TAP", 30)
    fetch_both_ways()

    vm.sh("sed -i 1d /etc/vxnet/vxnet.toml; echo install vxlan /bin/false >/etc/modprobe.d/vxlan.conf; rmmod vxlan")
    restart(vm)
    vm.wait(lambda: "the kernel has no vxlan devices (" in vm.sh("vxnet info 2>&1"), "the warning", 30)
    logged = vm.sh("journalctl -u vxnetd -b -p warning -q -o cat")
    assert "tunnels are in user space: the kernel has no vxlan devices" in logged
    assert json.loads(vm.sh("vxnet node inspect self"))[0]["datapath"] == "userspace"
    assert "1 received" in vm.sh("vxnet exec web ping -c 1 -W 5 box")

    vm.sh("rm /etc/modprobe.d/vxlan.conf")
    restart(vm)
    vm.wait(lambda: "the kernel's" in vm.sh("vxnet info"), "the kernel's tunnels", 30)
    vm.wait(lambda: vm.sh("vxnet exec web ping -c 1 -W 2 box"), "an answer", 30)
    assert vm.sh("ip -n vxnet -o link show type tun") == ""


@pytest.mark.vms  # a minute that `make test` saves
def test_upgrade(vm: Vm, lab: Lab) -> None:
    """And back: no packet is lost, and a connection of iperf3 lives through both ways."""
    vm.sh("vxnet run -d --name sink --network blue -- iperf3 -s")
    pids = {name: inspect(vm, name)["pid"] for name in ("web", "sink")}
    pings = Pings(lab, inspect(vm, "web")["attachments"][0]["addresses"][0].split("/")[0])
    stream = Stream(lab, "h1", ["vxnet", "exec", "box"], "sink")
    try:
        before = json.loads(vm.sh("vxnet version --format json"))["daemon"]
        for package, version in (("next", NEXT_VERSION), ("vxnet", before)):
            vm.sh(f"dpkg -i /media/{package}.deb", timeout_s=240)
            versions = json.loads(vm.sh("vxnet version --format json"))
            assert (versions["client"], versions["daemon"]) == (version, version)
            assert {name: inspect(vm, name)["pid"] for name in pids} == pids
        # What the machine's processor was too busy for in one second, it had time for in others.
        assert any(stream.end()[-5:])
    finally:
        stream.kill()
    vm.sh("vxnet rm -f sink")
    lost, sent = pings.lost(lab)
    assert sent > 50
    assert lost == 0, f"{lost} of {sent}"
    assert "Directory listing" in lab.run("h1", ["vxnet", "exec", "box", "curl", "-s", "http://web"], check=True).stdout


def test_reboot(vm: Vm, lab: Lab) -> None:
    """What the node had is there again without help: cluster, networks, containers that are to be restarted."""
    # It ends at SIGTERM by itself, so that systemd's shutdown, not a missing shim, is what it is brought back from.
    serve = "trap 'exit 0' TERM; python3 -m http.server 81 & wait"
    vm.sh(f'vxnet run -d --name kept --network blue --restart unless-stopped -- sh -c "{serve}"')
    vm.reboot()
    vm.wait(lambda: vm.sh("systemctl is-active vxnetd"), "vxnetd", 60)
    assert "blue" in vm.sh("vxnet network ls")
    vm.wait(lambda: vm.sh("vxnet node ls").count("Ready") == 2, "both nodes", 60)
    assert inspect(vm, "web")["state"] == "exited"
    vm.wait(lambda: inspect(vm, "kept")["state"] == "running", "container that is to be restarted", 60)
    fetch = ["vxnet", "exec", "box", "curl", "-s", "--retry", "20", "--retry-all-errors", "http://kept:81"]
    assert "Directory listing" in lab.run("h1", fetch, check=True).stdout


def test_purge(vm: Vm) -> None:
    # In a chain of others that drops all else, vxnet's packets are let through.
    vm.sh("nft 'add table ip other; add chain ip other forward { type filter hook forward priority 0; policy drop; }'")
    vm.wait(lambda: "vxnet" in vm.sh("nft list table ip other"), "the accept in another's chain", 60)
    vm.sh("dpkg -r vxnet", timeout_s=120)
    assert "vxnet" not in vm.sh("nft list table ip other")
    # Processes first, then the kernel's part.
    assert vm.run("/usr/bin/pgrep", "-f", "vxnet").status == 1
    left = vm.sh("ip netns list; ip -o link; nft list tables; ls /sys/fs/cgroup; systemctl list-units --all 'vxnet*'")
    assert "vxnet" not in left.replace("vxnetd.service", "").replace("vxnet.s", ""), left
    assert vm.sh("ls /var/lib/vxnet /etc/vxnet").strip()
    vm.sh("dpkg -P vxnet", timeout_s=120)
    assert vm.sh("find / -xdev -path '*vxnet*' -not -path '/proc/*' -not -path '/var/log/*'").strip() == ""
    assert vm.sh("systemctl is-system-running || systemctl --failed").strip() == "running"
