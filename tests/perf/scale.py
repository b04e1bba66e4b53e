"""Many: 10,000 endpoints on other hosts, and 1,000 networks on one.

Times are CPU times of this process, the kernel's part included: one thread does it all and waits for nothing. On a
machine without other work they are the wall's; on a busy one they still mean something.

The endpoints: the objects that the daemon wires together (tests/perf/crowd.py) and a real kernel, in this process, fed
with the signed rows of 100 nodes that have just joined. The networks: the same kernel part, 10 containers on 100
networks each. Memory: the process's, before and after, in one of its own.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.host.rig import GATEWAY, Container, Machine, addresses, interfaces, state
from tests.perf.crowd import Crowd
from tests.perf.measure import ms, table
from vxnet.core.rows import Batch
from vxnet.daemon.main import GARBAGE
from vxnet.model.host import HostState, Interface, Remote, Sandbox, Segment

NODES, EACH = 100, 100
RUNS = 5
CHANGES = 10
LOOKS = 5
VNIS = range(65536, 65536 + 1000)
PER_CONTAINER = 100


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    began = time.process_time()
    result = function(*arguments)
    return time.process_time() - began, result


def endpoints() -> None:
    times: dict[str, list[float]] = {}

    def note(what: str, seconds: float) -> None:
        times.setdefault(what, []).append(seconds)

    for _ in range(RUNS):
        crowd = Crowd(NODES, EACH)
        try:
            crowd.reconcile(crowd.plan())
            note("received", timed(crowd.receive, crowd.batches)[0])
            judged = timed(crowd.node.rows, crowd.wall)[0]
            planned, wanted = timed(crowd.plan)
            programmed, changes = timed(crowd.reconcile, wanted, [])
            assert not any(change.error for change in changes), changes
            note("judged", judged)
            note("planned", planned)
            note("written", programmed)
            note("programmed", judged + planned + programmed)
            note("named", timed(crowd.tell, wanted)[0])
            for _ in range(LOOKS):
                seconds, changes = timed(crowd.reconcile, wanted)
                assert changes == []
                note("looked", seconds)
            for number in range(CHANGES):
                note("changed", one_change(crowd, number))
        finally:
            crowd.close()
    rows = [
        ("received: 1,400 signed batches checked and kept", "–", "received"),
        ("judged: leases, addresses, places", "–", "judged"),
        ("planned", "–", "planned"),
        ("written to the kernel: 30,100 rows", "–", "written"),
        ("**programmed**: judged, planned and written", "150", "programmed"),
        ("names built", "–", "named"),
        ("**everything looked at and compared**", "100", "looked"),
        ("**one row more**: from its datagram to the kernel and the names", "5", "changed"),
    ]
    table(
        "10,000 remote endpoints",
        ["", "bound, ms", "median [range], ms"],
        [[what, bound, tenths(times[key]) if key == "changed" else ms(times[key])] for what, bound, key in rows],
    )


def tenths(seconds: list[float]) -> str:
    values = sorted(value * 1000 for value in seconds)
    return f"{values[len(values) // 2]:.1f} [{values[0]:.1f}–{values[-1]:.1f}] (n={len(values)})"


def one_change(crowd: Crowd, number: int) -> float:
    other = crowd.others[number]
    other.author.put("endpoint", "one more", other.endpoint(EACH))
    batches = other.author.flush()
    began = time.process_time()
    crowd.receive(batches)
    wanted = crowd.plan()
    changes = crowd.reconcile(wanted, [])
    crowd.tell(wanted)
    seconds = time.process_time() - began
    assert len(changes) == 3, changes
    return seconds


class Networks:
    """1,000 of them, with a container and three remote endpoints each."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.containers = [Container(number + 2) for number in range(len(VNIS) // PER_CONTAINER)]
        local, other = addresses("192.168.9.1", "192.168.9.2")
        self.machine.reconcile(state(local, [], []))
        self.state = HostState(
            segments=tuple(
                Segment(vni=vni, mtu=1450, local=local, remotes=self._remotes(vni), flood=(other,)) for vni in VNIS
            ),
            sandboxes=tuple(map(self._sandbox, range(len(self.containers)))),
            gateway=GATEWAY,
            vteps=(other,),
        )

    def _sandbox(self, number: int) -> Sandbox:
        container = self.containers[number]
        own = VNIS[number * PER_CONTAINER : (number + 1) * PER_CONTAINER]
        return Sandbox(
            id=container.id,
            netns=container.path,
            interfaces=tuple(
                Interface(
                    name=f"eth{at:02}",
                    port=f"v{number}.eth{at:02}",
                    vni=vni,
                    mac=f"02:{vni & 0xFF:02x}:0a:{vni >> 8 & 0xFF:02x}:00:02",
                    mtu=1450,
                    addresses=interfaces(f"10.{vni >> 8 & 0xFF}.{vni & 0xFF}.2/24"),
                )
                for at, vni in enumerate(own)
            ),
            dns_port=40000,
        )

    @staticmethod
    def _remotes(vni: int) -> tuple[Remote, ...]:
        (vtep,) = addresses("192.168.9.2")
        return tuple(
            Remote(
                mac=f"02:{vni & 0xFF:02x}:0a:{vni >> 8 & 0xFF:02x}:01:{host:02x}",
                addresses=addresses(f"10.{vni >> 8 & 0xFF}.{vni & 0xFF}.{host}"),
                vtep=vtep,
            )
            for host in (3, 4, 5)
        )

    def close(self) -> None:
        for place in (self.machine, *self.containers):
            place.close()


def networks() -> None:
    live, looked, shared = [], [], []
    for _ in range(3):
        many = Networks()
        try:
            seconds, changes = timed(many.machine.reconcile, many.state)
            assert not any(change.error for change in changes), [change for change in changes if change.error][:3]
            live.append(seconds)
            for _ in range(LOOKS):
                seconds, changes = timed(many.machine.reconcile, many.state)
                assert changes == []
                looked.append(seconds)
                seconds, changes = timed(many.machine.reconcile, many.state, [])
                shared.append(seconds)
        finally:
            many.close()
    table(
        "1,000 networks on a host",
        ["", "bound, ms", "median [range], ms"],
        [
            ["**live**: 3,000 links and 8,000 rows from nothing", "3000", ms(live)],
            ["everything looked at and compared", "–", ms(looked)],
            ["the shared part looked at, as at each change", "–", ms(shared)],
        ],
    )


# Memory


def resident_mb() -> float:
    gc.collect()
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def grown(what: str) -> float:
    """MB by which this process grows."""
    if what == "networks":
        many = Networks()
        many.machine.reconcile(HostState(segments=many.state.segments[:1], gateway=GATEWAY))
        before = resident_mb()
        many.machine.reconcile(many.state)
        many.machine.reconcile(many.state)
        after = resident_mb()
        many.close()
        return after - before
    crowd = Crowd(NODES, EACH)
    wanted = crowd.plan()
    crowd.reconcile(wanted)
    crowd.tell(wanted)
    before = resident_mb()
    # As it comes from a socket: octets of its own.
    crowd.receive([Batch(bytes(bytearray(one.content)), one.signature) for one in crowd.batches])
    for _ in range(2):
        wanted = crowd.plan()
        crowd.reconcile(wanted)
        crowd.tell(wanted)
    after = resident_mb()
    crowd.close()
    return after - before


def memory() -> None:
    rows = []
    for what, words in (("endpoints", "10,000 remote endpoints"), ("networks", "1,000 networks")):
        argv = [sys.executable, "-m", "tests.perf.scale", what]
        found = [float(subprocess.run(argv, check=True, capture_output=True, text=True).stdout) for _ in range(3)]
        rows.append([words, "60", f"{sorted(found)[1]:.0f} [{min(found):.0f}–{max(found):.0f}]"])
    table("Resident memory, more than without", ["", "bound, MB", "median [range], MB"], rows)


def main() -> None:
    before = gc.get_threshold()
    gc.set_threshold(*GARBAGE)
    try:
        endpoints()
        networks()
        memory()
    finally:
        gc.set_threshold(*before)


if __name__ == "__main__":
    gc.set_threshold(*GARBAGE)
    print(grown(sys.argv[1]))
