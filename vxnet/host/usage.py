"""What a container uses of its host: processor, memory, network, disk, as the kernel counts them.

From its control groups where the host has the controller, else from its processes, which forget those that have ended
and count shared memory with each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vxnet.host.processes import pids_beside
from vxnet.model.api import UsageView
from vxnet.model.container import Container

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class _Process(NamedTuple):
    cpu_s: float
    memory: int
    threads: int
    read: int
    written: int


def usage_of(container: Container, groups: Sequence[Path], proc: Path = Path("/proc")) -> UsageView | None:
    """None: it has just ended. ``groups``: its own, of any version. Blocks."""
    unified = next((group for group in groups if (group / "cgroup.kill").exists()), None)
    pids = _members(unified) if unified is not None else pids_beside(container.pid, proc)
    processes = [found for pid in pids if (found := _process(proc / str(pid))) is not None]
    if not processes:
        return None
    received, sent = _network(_text(proc / str(container.pid) / "net" / "dev"))
    cpu = _field(groups, "cpu.stat", "usage_usec")
    disk = _disk(groups)
    memory = _memory(groups)
    return UsageView(
        id=container.id,
        name=container.spec.name,
        at_s=time.monotonic(),
        cpu_s=cpu / 1e6 if cpu is not None else sum(one.cpu_s for one in processes),
        memory=memory if memory is not None else sum(one.memory for one in processes),
        memory_limit=container.spec.memory or _total(proc),
        pids=sum(one.threads for one in processes),
        received=received,
        sent=sent,
        read=disk[0] if disk else sum(one.read for one in processes),
        written=disk[1] if disk else sum(one.written for one in processes),
    )


def _members(group: Path) -> list[int]:
    """Of a group and of those that the container has made below it."""
    return [int(pid) for place, _, _ in os.walk(group) for pid in _text(Path(place, "cgroup.procs")).split()]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _field(groups: Iterable[Path], file: str, field: str) -> int | None:
    for group in groups:
        for line in _text(group / file).splitlines():
            name, _, value = line.partition(" ")
            if name == field:
                return int(value)
    return None


def _memory(groups: Sequence[Path]) -> int | None:
    """As Docker: without the pages of files that nobody has asked for lately."""
    for used, field in (("memory.current", "inactive_file"), ("memory.usage_in_bytes", "total_inactive_file")):
        for group in groups:
            if text := _text(group / used):
                return max(0, int(text) - (_field((group,), "memory.stat", field) or 0))
    return None


def _disk(groups: Iterable[Path]) -> tuple[int, int] | None:
    """Octets read and written, where the tree counts them (``io.stat``: device, then name=number)."""
    for group in groups:
        if (group / "io.stat").exists():
            words = [word.partition("=") for word in _text(group / "io.stat").split()]
            read, written = (sum(int(n) for key, _, n in words if key == name) for name in ("rbytes", "wbytes"))
            return read, written
    return None


def _network(text: str) -> tuple[int, int]:
    """Octets in and out, of all interfaces but lo (proc(5), ``net/dev``)."""
    received = sent = 0
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        numbers = rest.split()
        if name.strip() != "lo" and len(numbers) > 8:
            received += int(numbers[0])
            sent += int(numbers[8])
    return received, sent


def _process(entry: Path) -> _Process | None:
    status = dict(line.split(":", 1) for line in _text(entry / "status").splitlines() if ":" in line)
    stat = _text(entry / "stat").rpartition(")")[2].split()
    if len(stat) < 13 or "Threads" not in status:
        return None
    own = sum(int(status.get(name, "0").split()[0]) for name in ("RssAnon", "RssShmem"))
    io = dict(line.split(": ", 1) for line in _text(entry / "io").splitlines() if ": " in line)
    return _Process(
        cpu_s=(int(stat[11]) + int(stat[12])) / _TICKS_PER_S,
        memory=own * 1024,
        threads=int(status["Threads"]),
        read=int(io.get("read_bytes", 0)),
        written=int(io.get("write_bytes", 0)),
    )


def _total(proc: Path) -> int:
    first = _text(proc / "meminfo").splitlines()[:1]
    return int(first[0].split()[1]) * 1024 if first else 0
