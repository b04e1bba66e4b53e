"""How long damage lasts: each of the damages of tests/system/test_drift.py, several times, with the whole picture and a
ping as the end; and how long an address that has moved is out of reach.
"""

from __future__ import annotations

import json
import time

from tests.perf.measure import ms, python, sh, table
from tests.system.operator import Session
from tests.system.test_drift import DAMAGES, Place
from vxnet.lab import Lab

ROUNDS = 3
MOVES = 15

ANSWER = """
import subprocess, sys, time
pid, address = sys.argv[1:]
while subprocess.run(["nsenter", "-t", pid, "-n", "ping", "-n", "-c1", "-W0.05", address],
                     stdout=subprocess.DEVNULL).returncode:
    pass
print(time.monotonic())
"""


def damages(lab: Lab) -> list[list[str]]:
    session = Session(lab)
    place = Place(session)
    worst: tuple[float, str] = (0.0, "")
    for _ in range(ROUNDS):
        for what, command in DAMAGES.items():
            took = place.damage(command)
            worst = max(worst, (took, what))
    session.forget()
    return [
        [f"{len(DAMAGES)} damages, {ROUNDS} times each: all as before", "1000 p50, 2000 max", ms(place.times)],
        [f"… the longest: {worst[1]}", "2000", f"{worst[0] * 1000:.0f}"],
    ]


def moves(lab: Lab, hosts: tuple[str, ...], words: str) -> list[str]:
    """A container with one address and MAC ends on one host and begins on the other; from its start to the first answer
    that a third one gets, whose ARP and routes are warm."""
    sh(lab, "h1", "vxnet network create -d overlay --attachable --subnet 10.61.0.0/24 moves || true")
    sh(lab, "h1", "vxnet run -d --name peer --network moves -- sleep infinity")
    pid = str(json.loads(sh(lab, "h1", "vxnet inspect peer"))[0]["pid"])
    run = "vxnet run -d --name mover --network moves --ip 10.61.0.200 -- sleep infinity"
    gaps = []
    sh(lab, hosts[-1], run)
    for number in range(MOVES):
        old, new = hosts[(number - 1) % len(hosts)], hosts[number % len(hosts)]
        sh(lab, "h1", f"nsenter -t {pid} -n ping -c1 -W1 10.61.0.200")
        sh(lab, old, "vxnet rm -f mover")
        deadline = time.monotonic() + 5
        while lab.run(new, ["sh", "-c", run]).returncode and time.monotonic() < deadline:
            time.sleep(0.02)
        started = time.monotonic()
        found = python(lab, "h1", ANSWER, pid, "10.61.0.200")
        gaps.append(max(0.0, float(found) - started))
    sh(lab, hosts[(MOVES - 1) % len(hosts)], "vxnet rm -f mover")
    sh(lab, "h1", "vxnet rm -f peer")
    return [f"an address moves to another {words}: `run` is back → it answers", "500", ms(gaps)]


def main() -> None:
    with Lab(hosts=3) as lab:
        rows = damages(lab)
        rows.append(moves(lab, ("h2", "h3"), "host"))
        rows.append(moves(lab, ("h2",), "container of the same host"))
    table("Damage and moves", ["", "bound, ms", "median [range], ms"], rows)
