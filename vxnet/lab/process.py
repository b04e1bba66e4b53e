"""A process of this machine, named so that it is never mistaken for another that got its pid later."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

from vxnet.model.cluster import Record


class Process(Record, frozen=True, kw_only=True):
    pid: int
    started: int
    """Clock ticks since boot; field 22 of /proc/PID/stat."""

    @property
    def alive(self) -> bool:
        """A zombie is not: it holds neither namespaces nor files."""
        found = _stat(self.pid)
        return found is not None and found[1] == self.started and found[0] not in "ZX"


def process(pid: int) -> Process | None:
    """The process that has ``pid`` now; None if there is none."""
    found = _stat(pid)
    return Process(pid=pid, started=found[1]) if found else None


def open_pidfd(wanted: Process) -> int | None:
    """A pidfd of this very process, or None if it has ended. The caller closes it."""
    try:
        descriptor = os.pidfd_open(wanted.pid)
    except ProcessLookupError:
        return None
    if wanted.alive:  # asked after the open: the descriptor cannot change its process any more
        return descriptor
    os.close(descriptor)
    return None


def kill(wanted: Process | None, *, timeout_s: float = 10.0) -> bool:
    """SIGKILL, and wait until it is gone. False: it still is there after ``timeout_s``."""
    descriptor = open_pidfd(wanted) if wanted else None
    if descriptor is None:
        return True
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)  # readable: it is a zombie, or reaped
        return bool(poll.poll(timeout_s * 1000))
    except ProcessLookupError:
        return True
    finally:
        os.close(descriptor)


def inside(init: Process, inner_pid: int) -> Process | None:
    """The process that has ``inner_pid`` in the pid namespace of ``init``; not one that only waits to be reaped."""
    try:
        namespace = os.readlink(f"/proc/{init.pid}/ns/pid")
    except OSError:
        return None
    for path in Path("/proc").glob("[0-9]*"):
        try:
            inner = next(line for line in (path / "status").read_text().splitlines() if line.startswith("NSpid:"))
            if inner.split()[-1] == str(inner_pid) and os.readlink(path / "ns/pid") == namespace:
                found = process(int(path.name))
                return found if found is not None and found.alive else None
        except (OSError, StopIteration):  # it ended meanwhile
            continue
    return None


def _stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return fields[0], int(fields[19])
