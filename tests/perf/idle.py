"""Thirty hosts with nothing to do: how long until all know each other, and what that costs from then on."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tests.perf.measure import table
from vxnet.lab import Lab
from vxnet.model.errors import VxnetError

HOSTS = int(os.environ.get("VXNET_HOSTS", "30"))
SETTLE_LIMIT_S = 60.0
REST_S = 15.0
"""After which a join's echoes have died away."""
IDLE_S = 60.0
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    begun = time.monotonic()
    with Lab(hosts=HOSTS) as lab:
        up_s = time.monotonic() - begun
        settled_s = up_s + _settle(lab)
        time.sleep(REST_S)
        pids = [pid for host in lab.hosts for pid in _processes(lab[host].init.pid)]
        before, rest, octets = _cpu_s(pids), time.monotonic(), _sent(lab)
        time.sleep(IDLE_S)
        passed = time.monotonic() - rest
        cpu = _cpu_s(pids) - before
        rate = (_sent(lab) - octets) / passed / HOSTS
        memory = sum(_pss_kib(pid) for pid in pids) / 1024
    table(
        f"{HOSTS} idle hosts in a lab",
        ["", "bound", "measured"],
        [
            ["`lab up`", "–", f"{up_s:.1f} s"],
            ["… and every host sees all as alive", "–", f"{settled_s:.1f} s"],
            [
                f"processor time of all {len(pids)} processes, {IDLE_S:.0f} s",
                "30 % of a core",
                f"{100 * cpu / passed:.1f} %",
            ],
            ["gossip sent, each host", "20 kb/s", f"{8 * rate / 1000:.1f} kb/s"],
            ["PSS of all", "–", f"{memory:.0f} MiB"],
        ],
    )


def _settle(lab: Lab) -> float:
    begun = time.monotonic()
    waiting = list(lab.hosts)
    while waiting:
        assert time.monotonic() - begun < SETTLE_LIMIT_S, f"not settled: {waiting}"
        with contextlib.suppress(VxnetError):
            members = lab.client(waiting[-1]).gossip().members
            if sum(member.status == "alive" for member in members) == HOSTS:
                waiting.pop()
                continue
        time.sleep(0.05)
    return time.monotonic() - begun


def _processes(init: int) -> Iterator[int]:
    """All in the pid namespace of ``init``."""
    wanted = os.stat(f"/proc/{init}/ns/pid").st_ino
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and os.stat(entry / "ns/pid").st_ino == wanted:
                yield int(entry.name)


def _cpu_s(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


def _pss_kib(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def _sent(lab: Lab) -> int:
    """Octets of datagrams' payload, by all hosts."""
    return sum(lab.client(host).gossip().statistics["sent_octets"] for host in lab.hosts)
