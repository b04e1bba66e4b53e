"""What the benches share: commands on a lab's hosts, medians and tables.

All times are CLOCK_MONOTONIC, which the hosts of a lab share with this machine, so that an event on one host can be
timed from another.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vxnet.lab import Lab


def sh(lab: Lab, host: str, script: str, timeout_s: float = 120) -> str:
    """What ``script`` printed on ``host``; raises if any command of it failed."""
    return lab.run(host, ["sh", "-euc", script], check=True, timeout_s=timeout_s).stdout


def python(lab: Lab, host: str, code: str, *argv: str, timeout_s: float = 120) -> str:
    """Run ``code`` on the host, so that entering it is not a part of what is timed."""
    return lab.run(host, [sys.executable, "-c", code, *argv], check=True, timeout_s=timeout_s).stdout


def compiled(name: str, directory: str | Path) -> str:
    """The program ``name``.c of this folder, in ``directory``: its path there."""
    program = str(Path(directory) / name)
    subprocess.run(["cc", "-O2", "-o", program, Path(__file__).parent / f"{name}.c"], check=True)
    return program


def mesh_cluster(lab: Lab) -> None:
    """h1, h2 and h3 are one cluster, by IPv4 although their links may have both families; h4 stays outside."""
    sh(lab, "h1", "vxnet init --advertise-addr eth1")
    token = sh(lab, "h1", "vxnet join-token -q worker").strip()
    for host in ("h2", "h3"):
        sh(lab, host, f"vxnet join --token {token} --advertise-addr eth1 192.168.56.11")


def ms(seconds: Sequence[float], digits: int = 0) -> str:
    """``median [least–most]`` in milliseconds, the median with so many decimals, and of how many."""
    values = [value * 1000 for value in seconds]
    return f"{statistics.median(values):.{digits}f} [{min(values):.0f}–{max(values):.0f}] (n={len(values)})"


def interval(values: Sequence[float], seed: int = 1, rounds: int = 10_000) -> tuple[float, float]:
    """The 95 % interval of the median, by bootstrap (Efron 1979), percentile method."""
    rng = random.Random(seed)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(rounds))
    return medians[int(rounds * 0.025)], medians[int(rounds * 0.975)]


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n### {title}\n")
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    sys.stdout.flush()


def machine() -> str:
    """The line without which no figure means anything."""
    model = "unknown processor"
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    uname = os.uname()
    load = os.getloadavg()[0]
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{os.cpu_count()} × {model}, Linux {uname.release}, Python {python}, load {load:.1f} at the start"
