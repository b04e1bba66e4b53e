"""The labs' control groups: ``<v2 root>/vxnet-lab-<lab>/<host>``, with the host's own processes in leaves of that.

The prefix keeps labs apart. A host sees its group as the root of /sys/fs/cgroup; as a group with controllers switched
on must hold no processes itself, init and what is typed live in the leaf ``init``, and the daemon, as systemd has it,
alone in ``vxnetd.service``, below which its containers' groups are. A machine without cgroup v2 has labs without
cgroups: the pid namespace alone sees to it that nothing escapes.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

LEAF: Final = "init"
DAEMON: Final = "vxnetd.service"


def root() -> Path | None:
    """Where this machine has mounted cgroup v2: the whole of /sys/fs/cgroup, or a folder of it beside v1."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] == "cgroup2":
            return Path(before.split()[4])
    return None


def create(lab: str, host: str) -> Path | None:
    """The host's group, made with its leaf."""
    top = root()
    if top is None:
        return None
    group = top / f"vxnet-lab-{lab}"
    try:
        group.mkdir(exist_ok=True)
    except OSError:  # read-only, in a container that may not manage its groups
        return None
    for controller in (group / "cgroup.controllers").read_text().split():
        with contextlib.suppress(OSError):  # some refuse while realtime tasks or the machine's settings are in the way
            (group / "cgroup.subtree_control").write_text(f"+{controller}")
    (group / host / LEAF).mkdir(parents=True, exist_ok=True)
    return group / host


def kill(lab: str) -> None:
    """SIGKILL for everything in a lab's groups (Linux 5.14; before that only pids 1 are killed, and all with them)."""
    top = root()
    if top and (top / f"vxnet-lab-{lab}" / "cgroup.kill").exists():
        (top / f"vxnet-lab-{lab}" / "cgroup.kill").write_text("1")


def remove(lab: str, host: str = "", *, timeout_s: float = 10.0) -> None:
    """Removes the group of a lab, or of one host, with all below. Their processes are dead or dying."""
    top = root()
    if top is None:
        return
    group = top / f"vxnet-lab-{lab}" / host
    deadline = time.monotonic() + timeout_s
    while group.exists():
        try:
            for path, _, _ in os.walk(group, topdown=False):
                os.rmdir(path)
        except OSError:  # busy until the last process has let go
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
