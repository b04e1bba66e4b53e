"""A hundred containers on one host: how long a start takes inside the daemon, and what they cost while they idle."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from tests.perf.measure import ms, python, sh, table
from vxnet.lab import Lab

COUNT = 100
IDLE_S = 30

# The client's request over the unix socket is a part of it; the command line's start is not.
ONE_BY_ONE = """
import json, sys, time
from vxnet.cluster.client import Client
from vxnet.model.container import ContainerSpec, NetworkWish
client, times = Client(), []
for number in range(int(sys.argv[1])):
    spec = ContainerSpec(name=f"c{number}", argv=("sleep", "infinity"), networks=(NetworkWish(network="live"),))
    started = time.monotonic()
    client.create_container(spec, start=True)
    times.append(time.monotonic() - started)
print(json.dumps(times))
"""
AT_ONCE = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from vxnet.cluster.client import Client
from vxnet.model import codec
from vxnet.model.container import ContainerSpec, NetworkWish
def start(number):
    spec = ContainerSpec(name=f"c{number}", argv=("sleep", "infinity"), networks=(NetworkWish(network="live"),))
    Client().create_container(spec, start=True)
count = int(sys.argv[1])
codec.get_ready()
with ThreadPoolExecutor(count) as pool:
    started = time.monotonic()
    list(pool.map(start, range(count)))
    print(time.monotonic() - started)
"""


def processes(lab: Lab, host: str) -> dict[int, str]:
    """vxnet's on the host, by pid on this machine: the daemon, and the containers' shims."""
    found = {}
    daemon = lab[host].daemon_pid
    assert daemon is not None
    namespace = os.readlink(f"/proc/{daemon}/ns/pid")
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "ns/pid") == namespace:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[0].endswith(b"vxnet-shim"):
                    found[int(entry.name)] = "shim"
        except OSError:
            continue
    return {**found, daemon: "daemon"}


def pss_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def rss_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def cpu_s(pid: int) -> float:
    """Nanoseconds on a processor: finer than the ticks of ``stat``, of all its threads."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def main() -> None:
    with Lab(hosts=2) as lab:
        sh(lab, "h1", "vxnet network create -d overlay --attachable live")
        sh(lab, "h2", "vxnet run -d --name keeper --network live -- sleep infinity")
        at_once = []
        for _ in range(5):
            at_once.append(float(python(lab, "h2", AT_ONCE, str(COUNT))))
            sh(lab, "h2", "vxnet ps -q --filter name=c | xargs vxnet rm -f")
        one_by_one: list[float] = json.loads(python(lab, "h2", ONE_BY_ONE, str(COUNT)))
        time.sleep(5)
        seen = processes(lab, "h2")
        before = {pid: cpu_s(pid) for pid in seen}
        time.sleep(IDLE_S)
        idle = sum(cpu_s(pid) - before[pid] for pid in seen) / IDLE_S
        total = sum(map(pss_kb, seen)) / 1024
        shims = sorted(rss_kb(pid) for pid, kind in seen.items() if kind == "shim")
        daemon = next(pss_kb(pid) for pid, kind in seen.items() if kind == "daemon") / 1024
        sh(lab, "h2", "vxnet ps -q | xargs vxnet rm -f")
    assert len(shims) == COUNT + 1
    table(
        f"{COUNT} containers on one host",
        ["", "bound", "Docker 20.10", "median [range]"],
        [
            ["create and start inside the daemon, ms", "25", "544", ms(one_by_one, 1)],
            [f"{COUNT} at once until all run, ms", "3000", "–", ms(at_once)],
            ["PSS of all vxnet processes, MB", "190", "≥ 400", f"{total:.0f} (daemon {daemon:.0f})"],
            ["RSS of a shim, kB", "1024", "13000", f"{shims[len(shims) // 2]} [{shims[0]}–{shims[-1]}]"],
            ["idle, % of a core", "1", "0.5–0.7", f"{idle * 100:.2f}"],
        ],
    )
