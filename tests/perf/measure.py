"""What the benches share: a lab of their own, commands on its hosts, medians and tables.

All times are CLOCK_MONOTONIC, which the hosts of a lab share with this machine, so that an event on one host can be
timed from another.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

VXNET = [sys.executable, "-m", "vxnet"]
QUIET = subprocess.DEVNULL


@dataclass(frozen=True)
class BenchLab:
    name: str

    def argv(self, host: str, *command: str) -> list[str]:
        return [*VXNET, "lab", "exec", "--name", self.name, host, "--", *command]

    def run(self, host: str, *command: str, timeout_s: float = 120) -> str:
        """What ``command`` printed on ``host``; raises if it failed."""
        done = subprocess.run(
            self.argv(host, *command), stdin=QUIET, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{host}# {' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def sh(self, host: str, script: str, timeout_s: float = 120) -> str:
        return self.run(host, "sh", "-euc", script, timeout_s=timeout_s)

    def python(self, host: str, code: str, *argv: str, timeout_s: float = 120) -> str:
        """Run ``code`` on the host, so that entering it is not a part of what is timed."""
        return self.run(host, sys.executable, "-c", code, *argv, timeout_s=timeout_s)


@contextlib.contextmanager
def lab(*options: str) -> Iterator[BenchLab]:
    name = f"bench{os.getpid()}"
    try:
        subprocess.run([*VXNET, "lab", "up", "--name", name, *options], check=True, stdout=QUIET)
        yield BenchLab(name)
    finally:
        subprocess.run([*VXNET, "lab", "down", "--name", name], check=True, stdout=QUIET)


def wait_until(condition: str, lab: BenchLab, host: str, timeout_s: float = 20) -> None:
    """Until the shell command ``condition`` succeeds on ``host``."""
    deadline = time.monotonic() + timeout_s
    while subprocess.run(lab.argv(host, "sh", "-c", condition), stdin=QUIET, stdout=QUIET, stderr=QUIET).returncode:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{host}: not within {timeout_s:g} s: {condition}")
        time.sleep(0.05)


def ms(seconds: Sequence[float]) -> str:
    """``median [least–most]`` in milliseconds, and of how many."""
    values = [value * 1000 for value in seconds]
    return f"{statistics.median(values):.0f} [{min(values):.0f}–{max(values):.0f}] (n={len(values)})"


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
