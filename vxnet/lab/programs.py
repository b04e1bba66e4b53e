"""Runs programs in a host: what ``lab exec`` types, and the daemon."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from typing import Any, Final

from vxnet.lab import boot, cgroups, namespaces
from vxnet.lab.process import Process
from vxnet.model.errors import CallerError, NotFoundError

# The process joins the host's cgroup before it enters the cgroup namespace: from within, what comes from outside may
# not be moved (nsdelegate).
_ENTER: Final = f"""
if [ -d /sys/fs/cgroup/{cgroups.LEAF} ]; then
    echo 0 >/sys/fs/cgroup/{cgroups.LEAF}/cgroup.procs && exec nsenter --cgroup=/proc/1/ns/cgroup -- "$@"
fi
exec "$@"
"""

_NOT_PASSED_ON: Final = (
    "VXNET_SOCKET",
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
    "NOTIFY_SOCKET",
    "TMPDIR",
    "HOSTNAME",
)
"""Variables that speak of the machine, not of the host."""


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """``inherited`` for use in a host: ``vxnet`` is in PATH also when only a virtual environment has it."""
    own = dict.fromkeys((os.path.dirname(sys.executable), sysconfig.get_path("scripts")))
    found = [path for path in inherited.get("PATH", "").split(":") if path and path not in own]
    system = [path for path in boot.SYSTEM_PATH.split(":") if path not in own and path not in found]
    kept = {name: value for name, value in inherited.items() if name not in _NOT_PASSED_ON}
    return {"HOME": "/root", **kept, "PATH": ":".join((*own, *found, *system))}


def popen(
    init: Process | None,
    host: str,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    **options: Any,
) -> subprocess.Popen[Any]:
    """A :class:`subprocess.Popen` whose process lives in ``host``, in all its namespaces and its cgroup.

    ``env`` adds to the caller's, ``cwd`` is the caller's where the host has it. ``options`` are Popen's.
    """
    if not argv:
        raise CallerError("nothing to run", hint="say what, as in `vxnet lab exec h1 -- ip address`")
    variables = environment({**os.environ, **(env or {})})
    wanted_cwd = cwd or _cwd()

    def start() -> subprocess.Popen[Any]:
        there = wanted_cwd if cwd or os.path.isdir(wanted_cwd) else "/"
        program = os.path.join(there, argv[0]) if "/" in argv[0] else argv[0]
        if not shutil.which(program, path=variables["PATH"]):
            raise NotFoundError(f"no such program on {host}: {argv[0]}")
        return subprocess.Popen(["sh", "-c", _ENTER, "sh", *argv], env=variables, cwd=there, **options)

    return namespaces.in_host(init, host, start)


def _cwd() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed under the caller
        return "/"
