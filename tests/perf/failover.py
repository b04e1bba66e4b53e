"""How long the leading manager's host is missed: ``python -m tests.perf.failover [ROUNDS]``, three on etcd."""

from __future__ import annotations

import statistics
import sys
import time

from tests.system.managers import client, until
from vxnet.lab import Lab, Machine
from vxnet.model.api import NetworkCreate

HOSTS = ("h1", "h2", "h3")


def leader(host: Machine) -> str:
    return next(view.node.name for view in client(host).nodes() if view.leader)


def main(rounds: int) -> None:
    commits, writes, leads = [], [], []
    with Lab(hosts=3, managers=3) as lab:
        until(
            lambda: len((lab["h3"].root / "var/lib/vxnet/store.json").read_text().split("2379")) > 6,
            "three members of etcd",
        )
        for number in range(30):
            began = time.monotonic()
            client(lab["h1"]).create_network(NetworkCreate(name=f"c{number}"))
            commits.append(time.monotonic() - began)
        for number in range(rounds):
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
    for what, seconds in (("network create", commits), ("next write", writes), ("another leads", leads)):
        print(f"{what}: {statistics.median(seconds):.3f} s p50, {max(seconds):.3f} s at most, of {len(seconds)}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
