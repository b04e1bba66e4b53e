"""Commands as a person types them on a lab's hosts, and patience with what takes a moment."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

from vxnet.lab import Lab

PATIENCE_S = 10.0
"""Far more than anything here takes: a slow machine is no failure."""


def run(lab: Lab, host: str, script: str) -> subprocess.CompletedProcess[str]:
    return lab.run(host, ["sh", "-c", script])


def typed(lab: Lab, host: str, script: str, status: int = 0) -> str:
    """What a shell script prints; it must end with ``status``."""
    done = run(lab, host, script)
    assert done.returncode == status, (
        f"{host}# {script}\nstatus {done.returncode}, not {status}\n{done.stdout}{done.stderr}"
    )
    return done.stdout


def refused(lab: Lab, host: str, script: str, status: int = 1) -> str:
    """The one line on standard error of a command that must fail."""
    done = run(lab, host, script)
    said = f"{host}# {script}\nstatus {done.returncode}, said {done.stdout!r} {done.stderr!r}"
    assert done.returncode == status, said
    assert done.stderr.startswith("vxnet: ") and done.stderr.count("\n") == 1, said
    return done.stderr.strip()


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.02)


def wait_for_network(lab: Lab, *names: str) -> None:
    """Until every host knows these networks."""
    for host in lab.hosts:
        wait_until(
            lambda host=host: {*names} <= {net.name for net in lab.client(host).networks()},  # type: ignore[misc]
            f"{host} knows {', '.join(names)}",
        )
