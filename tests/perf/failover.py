"""How long a manager is missed: three with vxnet's own etcd, and the host of the leading one is killed.

::

    h1 h2 h3: each a manager and a member of etcd ── the leader's host dies ──> the next write, another leader
    h4 h5: workers, a container on each ── 1,000 datagrams a second both ways, the whole time ──> lost?
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence

from tests.perf.measure import table
from tests.system.flow import Flows
from tests.system.managers import client, until
from tests.system.operator import Session
from vxnet.lab import Lab, Machine
from vxnet.model.api import NetworkCreate

HOSTS = ("h1", "h2", "h3")
ROUNDS = 7
COMMITS = 30


def leader(host: Machine) -> str:
    return next(view.node.name for view in client(host).nodes() if view.leader)


def main() -> None:
    commits, writes, leads = [], [], []
    with Lab(hosts=5, managers=3) as lab:
        access = lab["h3"].root / "var/lib/vxnet/store.json"
        until(lambda: len(json.loads(access.read_text())["endpoints"]) == 3, "three members of etcd")
        for number in range(COMMITS):
            began = time.monotonic()
            client(lab["h1"]).create_network(NetworkCreate(name=f"c{number}"))
            commits.append(time.monotonic() - began)
        flows = Flows(Session(lab), ("h4", "h5"))
        for number in range(ROUNDS):
            lost = leader(lab["h1"])
            other = next(name for name in HOSTS if name != lost)
            lab.kill(lost)
            began = time.monotonic()
            until(lambda: client(lab[other]).create_network(NetworkCreate(name=f"k{number}")), "a write")  # noqa: B023
            writes.append(time.monotonic() - began)
            until(lambda: leader(lab[other]) != lost, "another leads")  # noqa: B023
            leads.append(time.monotonic() - began)
            lab.start(lost)
            until(lambda: all(client(lab[name]).nodes() for name in HOSTS), "all are back")
            time.sleep(2)
        found = flows.stop()
    sent, lost = sum(one["sent"] for one in found), sum(len(one["lost"]) for one in found)
    table(
        "Managers that fail: three on vxnet's own etcd",
        ("", "bound", "median [range]"),
        [
            ("`network create` on a healthy cluster, over the API", "", shown(commits)),
            ("the next write is acknowledged, by another manager", "≤ 3 s (p50)", shown(writes)),
            ("another manager leads, and heals services", "", shown(leads)),
            ("datagrams lost between containers of two workers", "0", f"{lost} of {sent:,}"),
        ],
    )


def shown(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.3f} s [{min(seconds):.3f}–{max(seconds):.3f}] (n={len(seconds)})"


if __name__ == "__main__":
    main()
