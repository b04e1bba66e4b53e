"""A lab with its real daemons: up is a cluster, and what dies comes back into it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from vxnet.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def statuses(lab: Lab) -> dict[str, str]:
    return {view.node.name: view.status for view in lab.client("h1").nodes()}


def wait_statuses(lab: Lab, wanted: dict[str, str], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while (found := statuses(lab)) != wanted:
        assert time.monotonic() < deadline, f"still {found}"
        time.sleep(0.05)


READY = {"h1": "ready", "h2": "ready", "h3": "ready"}


def test_up_is_three_ready_nodes(lab: Lab) -> None:
    assert statuses(lab) == READY
    assert [host.status for host in lab.view().hosts] == ["up"] * 4
    assert lab.run("h1", ["vxnet", "node", "ls"], check=True).stdout.count("Ready") == 3
    assert [str(view.node.advertise_addr) for view in lab.client("h1").nodes()] == [
        str(lab[host].address) for host in lab.hosts
    ]
    assert lab.run("x1", ["vxnet", "info"]).returncode != 0, "an outside machine has a daemon"


def test_a_daemon_that_was_killed_comes_back(lab: Lab) -> None:
    lab.kill("h2", daemon=True)
    lab.start("h2")
    wait_statuses(lab, READY)


def test_a_host_that_died_comes_back(lab: Lab) -> None:
    lab.kill("h3")
    wait_statuses(lab, {**READY, "h3": "down"})
    lab.start("h3")
    wait_statuses(lab, READY)


def test_a_host_that_is_cut_off_is_down_until_it_is_healed(lab: Lab) -> None:
    lab.cut("h3")
    wait_statuses(lab, {**READY, "h3": "down"})
    lab.heal("h3")
    wait_statuses(lab, READY, timeout_s=60)


def test_no_join_leaves_it_to_you(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=2, join=False)
    assert lab.client("h1").info().cluster == ""
    assert lab.client("h2").info().name == "h2"


def test_the_commands_as_they_are_typed() -> None:
    lab = Lab(hosts=1)

    def vxnet(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vxnet", "lab", *argv]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    try:
        up = vxnet("up", "--name", lab.name, "--hosts", "1")
        assert (up.returncode, up.stderr) == (0, "")
        assert "192.168.56.11" in up.stdout
        assert lab.name in vxnet("ls").stdout
        done = vxnet("exec", "--name", lab.name, "h1", "--", "sh", "-c", "vxnet node ls; exit 3")
        assert (done.returncode, "Ready" in done.stdout) == (3, True)
        again = vxnet("up", "--name", lab.name)
        assert again.returncode == 1
        assert again.stderr.startswith(f"vxnet: there is a lab '{lab.name}' already")
        assert vxnet("exec", "--name", lab.name, "h7", "--", "true").stderr.startswith("vxnet: lab ")
        for command in (
            ("kill", "h1"),
            ("start", "h1"),
            ("kill", "--daemon", "h1"),
            ("start", "h1"),
            ("cut", "h1"),
            ("heal",),
        ):
            verb, *rest = command
            assert vxnet(verb, "--name", lab.name, *rest).returncode == 0, command
        down = vxnet("down", "--name", lab.name)
        assert (down.returncode, down.stdout) == (0, f"{lab.name}\n")
        assert lab.name not in vxnet("ls").stdout
    finally:
        lab.down()


def test_down_after_sigkill_of_every_daemon(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=3)
    inits = [lab[host].pid for host in lab.hosts]
    for host in lab.hosts:
        lab.kill(host, daemon=True)
    lab.down()
    for pid in inits:
        assert subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, check=False).stdout == b""
