"""`vxnet bench`: figures of all paths that agree with iperf3 by hand, and nothing left, also when it is interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter

import pytest

from tests.system.operator import Session, eventually

pytestmark = [pytest.mark.lab, pytest.mark.slow]

PATHS = ["underlay", "kernel", "user space"]


def traces(session: Session, host: str) -> Counter[str]:
    """Whatever a measurement could leave behind, by lines. What tests before it left is on its way out: see `<=`."""
    look = (
        "ip -o link | cut -d: -f2; ip netns; ss -Hlntu | awk '{print $1,$5}' | sort; ls /run;"
        "pgrep -fa 'iperf3|bench_end|uvxlan' | cut -d' ' -f2-"
    )
    return Counter(session.run(host, look).stdout.splitlines())


def test_figures_and_plots(session: Session) -> None:
    before = {host: traces(session, host) for host in ("h1", "h2", "h3")}
    done = session.run("h1", "cd /run && vxnet bench -t 1 -r 2 --format json --plot b.svg h2", timeout_s=110)
    assert done.returncode == 0, done.stderr
    (found,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (found["host"], found["address"], found["rounds"]) == ("h2", "192.168.56.12", 2)
    assert [path["path"] for path in found["paths"]] == PATHS
    for path in found["paths"]:
        assert path["problem"] == "", path
        for figure in ("tcp_bits_s", "rtt_us", "udp_packets_s", "connections_s", "ratio"):
            assert path[figure] > 0, (path, figure)
    assert found["paths"][0]["ratio"] == 1.0
    plot = session.say("h1", "cat /run/b.svg; rm /run/b.svg")
    assert "<svg" in plot
    # As many bits as iperf3 counts by hand on this machine, as far as noise lets one say.
    server = session.lab.popen("h2", ["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: ":5201" in session.say("h2", "ss -Hlnt"))
        by_hand = json.loads(session.say("h1", "iperf3 -c 192.168.56.12 -t 1 -J"))["end"]["sum_received"]
    finally:
        server.kill()
        server.wait()
    assert 0.2 < found["paths"][0]["tcp_bits_s"] / by_hand["bits_per_second"] < 5
    for host, there in before.items():
        eventually(lambda host=host, there=there: traces(session, host) <= there)  # type: ignore[misc]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_interrupted_it_leaves_nothing(session: Session, number: signal.Signals) -> None:
    before = {host: traces(session, host) for host in ("h1", "h2")}
    child = session.lab.popen("h1", ["vxnet", "bench", "-t", "5", "h2"], stderr=subprocess.PIPE, text=True)
    try:
        for host in before:
            eventually(lambda host=host: any("iperf3 -s" in line for line in traces(session, host)), 20)  # type: ignore[misc]
        child.send_signal(number)
        child.communicate(timeout=20)
    finally:
        child.kill()
        child.wait()
    for host, there in before.items():
        # A client that was killed leaves its own child, which ends with its server.
        eventually(lambda host=host, there=there: traces(session, host) <= there, 30)  # type: ignore[misc]


def test_who_may_and_with_whom(session: Session) -> None:
    assert "this node is a worker" in session.refusal("h2", "vxnet bench")  # which has no list of nodes
    assert "no other node is called nosuch" in session.refusal("h1", "vxnet bench nosuch")
    assert "a plot is a .png or an .svg, not x.pdf" in session.refusal("h1", "vxnet bench --plot x.pdf h2")
