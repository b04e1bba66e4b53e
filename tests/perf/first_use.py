"""A name that resolves answers: first uses of a network on a host that is new to it, and what they lost.

Each use is a container of its own on a host without another on that network, which pings once as soon as it runs; and a
running container that is put on the network, and pings as soon as the name resolves in it. In a cluster of three, and
in one that is too large for each row to go to everybody straight (:mod:`vxnet.core.push`).
"""

from __future__ import annotations

import time

from tests.perf.measure import python, sh, table
from vxnet.lab import Lab

USES = 100
HEADER = ["", "uses", "bound, lost", "lost", "s in all"]
SIZES = (3, 18)

RUNS = """
import subprocess, sys
lost = 0
for number in range(int(sys.argv[1])):
    argv = ["vxnet", "run", "--rm", "--network", "first", "--", "ping", "-c1", "-W1", "b"]
    lost += subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode != 0
print(lost)
"""

CONNECTS = """
import subprocess, sys
ask = ["vxnet", "exec", "a", "sh", "-c", "until getent hosts b >/dev/null; do :; done; ping -c1 -W1 b >/dev/null"]
lost = 0
for number in range(int(sys.argv[1])):
    asking = subprocess.Popen(ask)
    subprocess.run(["vxnet", "network", "connect", "first", "a"], check=True)
    lost += asking.wait(timeout=20) != 0
    subprocess.run(["vxnet", "network", "disconnect", "first", "a"], check=True)
print(lost)
"""


def main() -> None:
    for hosts in SIZES:
        rows = []
        with Lab(hosts=hosts) as lab:
            sh(lab, "h1", "vxnet network create -d overlay --attachable first")
            sh(lab, "h1", "vxnet network create -d overlay --attachable other")
            sh(lab, "h3", "vxnet run -d --name b --network first -- sleep infinity")
            sh(lab, "h2", "vxnet run -d --name a --network other -- sleep infinity")
            for words, code in (("`run`", RUNS), ("`network connect`", CONNECTS)):
                began = time.monotonic()
                lost = python(lab, "h2", code, str(USES), timeout_s=280).strip()
                rows.append([words, str(USES), "0", lost, f"{time.monotonic() - began:.0f}"])
        table(f"First uses of a network on a host new to it, {hosts} nodes", HEADER, rows)
