"""Everything of a machine that a lab could leave behind, as JSON: run it before and after, and compare.

It is meant for a machine that nobody else uses: a lab's host is one.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

PLACES = ("/run", "/etc", "/var/lib/vxnet", "/var/lib/vxnet-lab", "/tmp", "/dev/shm")


def take() -> dict[str, list[str]]:
    own = {os.getpid(), os.getppid()}
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in own]
    return {
        "namespaces": sorted(
            {os.readlink(link) for pid in ["self", *pids] for link in Path(f"/proc/{pid}/ns").glob("*")}
        ),
        "processes": sorted(f"{pid} {_command(pid)}" for pid in pids),
        "named namespaces": _output("ip", "netns", "list"),
        "links": _output("ip", "-o", "link"),
        "addresses": _output("ip", "-o", "address"),
        "routes": _output("ip", "route", "show", "table", "all"),
        "nft": _output("nft", "list", "ruleset"),
        "mounts": sorted(line.split(" ", 2)[2] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        "cgroups": sorted(path for path, _, _ in os.walk("/sys/fs/cgroup")),
        "files": sorted(
            os.path.join(path, name)
            for place in PLACES
            for path, folders, files in os.walk(place)
            for name in [*folders, *files]
        ),
    }


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return "gone"


def _output(*argv: str) -> list[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()


if __name__ == "__main__":
    print(json.dumps(take()))
