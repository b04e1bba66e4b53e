"""How long a write waits for its refusal when most of the managers are dead: one that nobody answers, several at once.

::

    h1 h2 h3: each a manager and a member of etcd ── two are killed at once ──> `network create` on the third
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from tests.perf.failover import HOSTS, shown
from tests.perf.measure import table
from tests.system.managers import client, make_network, members, until
from vxnet.lab import Lab, Machine
from vxnet.model.api import NetworkCreate
from vxnet.model.errors import UnavailableError

ROUNDS = 5
TOGETHER = 5


def refusal(host: Machine, name: str) -> tuple[float, str]:
    """How long it took, and in which words."""
    began = time.monotonic()
    try:
        client(host).create_network(NetworkCreate(name=name))
    except UnavailableError as error:
        return time.monotonic() - began, str(error)
    raise AssertionError("a write without a quorum")


def main() -> None:
    first, later, together = [], [], []
    with Lab(hosts=3, managers=3) as lab, ThreadPoolExecutor(TOGETHER) as people:
        for number in range(ROUNDS):
            left = HOSTS[number % len(HOSTS)]
            until(lambda: len(members(lab[left])) == len(HOSTS), "three members of etcd")  # noqa: B023
            make_network(lab[left], f"before{number}")
            for name in HOSTS:
                if name != left:
                    lab.kill(name)
            first.append(refusal(lab[left], f"first{number}"))
            later.append(refusal(lab[left], f"later{number}"))
            asked = [people.submit(refusal, lab[left], f"one{number}-{which}") for which in range(TOGETHER)]
            together += [one.result() for one in asked]
            for name in HOSTS:
                if name != left:
                    lab.start(name)
            make_network(lab[left], f"after{number}")
    table(
        "Two of three managers' hosts are dead: `network create` is refused",
        ("", "bound", "median [range]"),
        [
            ("the first after their death", "≤ 5 s", shown([took for took, _ in first])),
            ("the next one", "≤ 5 s", shown([took for took, _ in later])),
            (f"{TOGETHER} at once", "≤ 5 s", shown([took for took, _ in together])),
        ],
    )
    words = {said for _, said in (*first, *later, *together)}
    print(*sorted(words), sep="\n")


if __name__ == "__main__":
    main()
