"""``vxnet lab up --hosts 3`` to three ready nodes, and ``lab down``."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from tests.perf.measure import ms, table

RUNS = 7
VXNET = [sys.executable, "-m", "vxnet"]


def main() -> None:
    name = f"bench{os.getpid()}"
    up, down = [], []
    for _ in range(RUNS):
        try:
            started = time.monotonic()
            subprocess.run([*VXNET, "lab", "up", "--name", name, "--hosts", "3"], check=True, capture_output=True)
            up.append(time.monotonic() - started)
            listed = subprocess.run(
                [*VXNET, "lab", "exec", "--name", name, "h1", "--", "vxnet", "node", "ls"],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            ready = sum("ready" in line.lower() for line in listed.splitlines())
            assert ready == 3, f"`lab up` came back with {ready} nodes ready:\n{listed}"
        finally:
            started = time.monotonic()
            subprocess.run([*VXNET, "lab", "down", "--name", name], check=True, capture_output=True)
            down.append(time.monotonic() - started)
    table(
        "A lab",
        ["", "bound, ms", "median [range], ms"],
        [["`lab up --hosts 3`, three nodes ready", "4000", ms(up)], ["`lab down`", "–", ms(down)]],
    )
