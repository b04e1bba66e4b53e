"""What runs in a container, read from this host's /proc."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from vxnet.model.api import ProcessView

_STAT = re.compile(r"\d+ \((.*)\) (.*)", re.DOTALL)
_ESTABLISHED, _SYN_RECV, _LISTEN = "01", "03", "0A"
"""States in /proc/net/tcp: the kernel's include/net/tcp_states.h."""
_LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
"""As /proc/net/tcp has them on little endian machines; elsewhere a connection to oneself is waited for, too."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def processes_beside(pid: int, proc: Path = Path("/proc")) -> tuple[ProcessView, ...]:
    """All in the pid namespace of ``pid``, oldest first; none if that has ended. Blocks."""
    found = []
    for other in pids_beside(pid, proc):
        with contextlib.suppress(OSError):  # it has just ended
            found.append(_read(proc / str(other)))
    return tuple(found)


def pids_beside(pid: int, proc: Path = Path("/proc")) -> list[int]:
    """As :func:`processes_beside`, their numbers alone."""
    found = []
    with contextlib.suppress(OSError):
        namespace = os.readlink(proc / str(pid) / "ns" / "pid")
        for entry in proc.iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and os.readlink(entry / "ns" / "pid") == namespace:
                    found.append(int(entry.name))
    return sorted(found)


def open_connections(pid: int, proc: Path = Path("/proc")) -> int:
    """TCP connections that others have open to servers in the network namespace of ``pid``, or are just opening; 0 if
    that has ended. Blocks.
    """
    ports: list[str] = []
    listening: set[str] = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / str(pid) / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, remote, state = line.split()[:4]
            if state == _LISTEN:
                listening.add(local.rpartition(":")[2])
            elif state in (_ESTABLISHED, _SYN_RECV) and remote.partition(":")[0] not in _LOOPBACK:
                ports.append(local.rpartition(":")[2])
    return sum(port in listening for port in ports)


def _read(entry: Path) -> ProcessView:
    """proc(5), ``stat``: pid (name) state ppid … with the name in whatever characters it likes."""
    parts = _STAT.match((entry / "stat").read_text(errors="replace"))
    assert parts
    numbers = parts[2].split()
    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ProcessView(
        pid=int(entry.name),
        ppid=int(numbers[1]),
        uid=entry.stat().st_uid,
        state=numbers[0],
        cpu_s=(int(numbers[11]) + int(numbers[12])) / _TICKS_PER_S,
        rss=int(numbers[21]) * os.sysconf("SC_PAGE_SIZE"),
        command=command or f"[{parts[1]}]",
    )
