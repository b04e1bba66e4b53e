"""How long a manager is missed: three with vxnet's own etcd, the host of the leading one is killed, and then two.

::

    h1 h2 h3: each a manager and a member of etcd ── the leader's host dies ──> the next write, another leader
                                                 └── a second one dies ──────> a write is refused in words
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence

from tests.perf.measure import table
from tests.system.managers import client, until
from vxnet.lab import Lab, Machine
from vxnet.model.api import NetworkCreate
from vxnet.model.errors import VxnetError

HOSTS = ("h1", "h2", "h3")
ROUNDS = 7
COMMITS = 30
REFUSALS = 5


def leader(host: Machine) -> str:
    return next(view.node.name for view in client(host).nodes() if view.leader)


def refusal(host: Machine, name: str) -> float:
    began = time.monotonic()
    try:
        client(host).create_network(NetworkCreate(name=name))
    except VxnetError:
        return time.monotonic() - began
    raise AssertionError("a write without a quorum")


def main() -> None:
    commits, writes, leads = [], [], []
    with Lab(hosts=3, managers=3) as lab:
        access = lab["h3"].root / "var/lib/vxnet/store.json"
        until(lambda: len(json.loads(access.read_text())["endpoints"]) == 3, "three members of etcd")
        for number in range(COMMITS):
            began = time.monotonic()
            client(lab["h1"]).create_network(NetworkCreate(name=f"c{number}"))
            commits.append(time.monotonic() - began)
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
        for name in HOSTS[1:]:
            lab.kill(name)
        refusals = [refusal(lab["h1"], f"r{number}") for number in range(REFUSALS)]
    table(
        "Managers that fail: three on vxnet's own etcd",
        ("", "bound", "median [range]"),
        [
            ("`network create` on a healthy cluster, over the API", "", _shown(commits)),
            ("the next write is acknowledged, by another manager", "≤ 3 s (p50)", _shown(writes)),
            ("another manager leads, and heals services", "", _shown(leads)),
            ("two of three are dead: a write is refused in words", "≤ 5 s", _shown(refusals)),
        ],
    )


def _shown(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.3f} s [{min(seconds):.3f}–{max(seconds):.3f}] (n={len(seconds)})"


if __name__ == "__main__":
    main()
