"""Commands as a person types them on the hosts of a lab, and networks that a whole file of tests uses."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from tests.system.operator import eventually
from vxnet.lab import Lab
from vxnet.model.api import NetworkCreate
from vxnet.model.errors import ConflictError


def run(lab: Lab, host: str, script: str) -> subprocess.CompletedProcess[str]:
    return lab.run(host, ["sh", "-c", script])


def typed(lab: Lab, host: str, script: str, status: int = 0) -> str:
    """What a shell script prints; it must end with ``status``."""
    done = run(lab, host, script)
    said = f"{host}# {script}\nstatus {done.returncode}, not {status}\n{done.stdout}{done.stderr}"
    assert done.returncode == status, said
    return done.stdout


def refused(lab: Lab, host: str, script: str, status: int = 1) -> str:
    """The one line on standard error of a command that must fail so."""
    done = run(lab, host, script)
    said = f"{host}# {script}\nstatus {done.returncode}, said {done.stdout!r} {done.stderr!r}"
    assert done.returncode == status, said
    assert done.stderr.startswith("vxnet: ") and done.stderr.count("\n") == 1, said
    return done.stderr.strip()


@contextlib.contextmanager
def networks(lab: Lab, *requests: NetworkCreate) -> Iterator[None]:
    """Made, and known to every host."""
    manager = lab.client("h1")
    names = {request.name for request in requests}
    try:
        for request in requests:
            manager.create_network(request)
        for host in lab.hosts:
            eventually(lambda host=host: names <= {network.name for network in lab.client(host).networks()})  # type: ignore[misc]
        yield
    finally:
        left = {network.name for network in manager.networks()} & names
        eventually(lambda: all(_removed(lab, name) for name in sorted(left)))


def _removed(lab: Lab, name: str) -> bool:
    """Refused until the manager has heard that the last container is gone."""
    manager = lab.client("h1")
    if all(network.name != name for network in manager.networks()):
        return True
    try:
        manager.remove_network(name)
    except ConflictError:
        return False
    return True
