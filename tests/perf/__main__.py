"""``python -m tests.perf [BENCH…]`` prints the tables of docs/performance.md. Needs root."""

from __future__ import annotations

import importlib
import os
import sys

from tests.perf.measure import machine

BENCHES = (
    "lab_up",
    "run_latency",
    "name_latency",
    "throughput",
    "datapath",
    "datapath_peers",
    "dns",
    "vips",
    "mesh",
    "flows",
    "mesh_lab",
    "many_containers",
    "idle",
    "scale",
    "many_networks",
    "first_use",
    "drift",
    "gossip",
    "services",
    "swarm",
    "scheduling",
    "mesh_updates",
    "failover",
    "quorum",
    "managers",
)


def main(names: list[str]) -> int:
    unknown = set(names) - set(BENCHES)
    if unknown or os.geteuid():
        print(f"usage (as root): python -m tests.perf [{' '.join(BENCHES)}]", file=sys.stderr)
        return 2
    print(machine())
    for name in names or BENCHES:
        importlib.import_module(f"tests.perf.{name}").main()
    return 0


sys.exit(main(sys.argv[1:]))
