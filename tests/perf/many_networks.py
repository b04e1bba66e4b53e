"""A thousand networks on one host, by its daemon: what they cost in memory, and how long they are gone with their
namespace.
"""

from __future__ import annotations

import time

from tests.perf.many_containers import rss_kb
from tests.perf.measure import ms, table
from vxnet.lab import Lab
from vxnet.model.api import NetworkCreate
from vxnet.model.container import ContainerSpec, NetworkWish

NETWORKS, EACH = 1000, 20
LOSSES = 5
SETTLE_S = 5.0
PATIENCE_S = 120.0


def main() -> None:
    with Lab(hosts=1) as lab:
        client = lab.client("h1")
        pid = lab["h1"].daemon_pid
        assert pid is not None
        before = rss_kb(pid)
        names = [f"n{number}" for number in range(NETWORKS)]
        for name in names:
            client.create_network(NetworkCreate(name=name, attachable=True))
        known = rss_kb(pid)
        for at in range(0, NETWORKS, EACH):
            wishes = tuple(NetworkWish(network=name) for name in names[at : at + EACH])
            spec = ContainerSpec(name=f"c{at}", argv=("sleep", "infinity"), networks=wishes)
            client.create_container(spec, start=True)
        time.sleep(SETTLE_S)
        live = rss_kb(pid)
        losses = [lose(lab) for _ in range(LOSSES)]
        after = rss_kb(pid)
    table(
        f"{NETWORKS} networks on a host, {EACH} on a container",
        ["", "bound", "median [range]"],
        [
            ["RSS of the daemon: known, MB", "", f"+{(known - before) / 1024:.0f}"],
            ["… and live, MB", "60", f"+{(live - before) / 1024:.0f}"],
            ["… and five times made anew, MB", "", f"+{(after - before) / 1024:.0f}"],
            ["namespace `vxnet` deleted → all are back, ms", "3000", ms(losses)],
        ],
    )


def lose(lab: Lab) -> float:
    """From the end of their namespace until every network has its tunnel and its bridge again: seconds."""
    lab.run("h1", ["ip", "netns", "delete", "vxnet"], check=True)
    began = time.monotonic()
    while True:
        links = lab.run("h1", ["ip", "-n", "vxnet", "-o", "link", "show", "type", "vxlan"]).stdout
        if links.count("\n") >= NETWORKS:
            return time.monotonic() - began
        if time.monotonic() > began + PATIENCE_S:
            raise TimeoutError(f"{links.count(chr(10))} of {NETWORKS} networks are back")
        time.sleep(0.02)
