"""The hosts' daemons: start one, know its pid, wait until it answers, make a cluster of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from vxnet.cluster.client import SOCKET_PATH, Client
from vxnet.lab import cgroups, programs, state
from vxnet.lab import process as processes
from vxnet.lab.process import Process
from vxnet.lab.state import LabHost
from vxnet.model import codec
from vxnet.model.api import InitRequest, JoinRequest
from vxnet.model.cluster import Role
from vxnet.model.errors import HostError, UnavailableError, VxnetError

T = TypeVar("T")
U = TypeVar("U")

ARGV: Final = (sys.executable, "-m", "vxnet", "daemon")
READY_S: Final = 30.0
"""Until a daemon answers, or a cluster of them is ready: python starts slowly on a loaded machine."""

ROLES: Final[tuple[Role, ...]] = ("worker", "manager")

_PID_FILE: Final = "/run/vxnet-lab.pid"
# A child of the host's own init, so that it ends and is reaped with the host, not with `lab up`.
_LAUNCH: Final = f"""
group=/sys/fs/cgroup/{cgroups.DAEMON}
[ ! -e /sys/fs/cgroup/cgroup.procs ] || {{ mkdir -p $group && echo 0 >$group/cgroup.procs; }}
echo $$ >{_PID_FILE}
exec "$@"
"""
_POLL_S: Final = 0.01


def client(host: LabHost, *, timeout_s: float = READY_S) -> Client:
    """For the host's own API, over its unix socket: good from anywhere on this machine."""
    if host.init is None or not host.init.alive:
        raise UnavailableError(f"host {host.name!r} is down", hint=f"start it with `vxnet lab start {host.name}`")
    return Client(f"/proc/{host.init.pid}/root{SOCKET_PATH}", timeout_s=timeout_s)


def launch(lab: str, host: LabHost, argv: Sequence[str]) -> None:
    """Starts the daemon; its output goes to the end of the host's log file."""
    assert host.init
    _inside(host, _PID_FILE).unlink(missing_ok=True)
    with open(state.log_file(lab, host.name), "ab") as log:
        launcher = programs.popen(
            host.init,
            host.name,
            ["setsid", "--fork", "sh", "-c", _LAUNCH, "sh", *argv],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        if launcher.wait() != 0:
            raise HostError(f"cannot start the daemon of {host.name}", hint=str(state.log_file(lab, host.name)))


def find(host: LabHost) -> Process | None:
    """The daemon that :func:`launch` started, if it lives."""
    if host.init is None or not host.init.alive:
        return None
    pid = _inner_pid(host)
    return processes.inside(host.init, pid) if pid else None


def wait_answering(lab: str, host: LabHost, *, timeout_s: float = READY_S) -> Process:
    """Waits until the daemon serves its API. Says what it wrote if it ends instead."""
    started = time.monotonic()
    while True:
        reached = client(host)  # raises when the host is down
        try:
            reached.info()
        except UnavailableError:
            pass
        else:
            if found := find(host):
                return found
        pid = _inner_pid(host)
        if pid and not _inside(host, f"/proc/{pid}/exe").is_symlink():
            raise HostError(f"the daemon of {host.name} ended at its start: {_last_words(lab, host)}")
        if time.monotonic() - started > timeout_s:
            raise UnavailableError(f"the daemon of {host.name} does not answer: {_last_words(lab, host)}")
        time.sleep(_POLL_S)


def make_cluster(lab: str, hosts: Sequence[LabHost], *, managers: int = 1, timeout_s: float = READY_S) -> None:
    """The first host becomes the manager, the others join it, and all are ready in its eyes. Several ``managers`` share
    an etcd, one after the other: it takes new members one at a time.
    """
    first, *others = hosts
    wait_answering(lab, first)
    manager = client(first)
    manager.init(InitRequest(advertise_addr=str(first.address), managed_etcd=managers > 1))
    tokens = {role: manager.join_token(role) for role in (ROLES if managers > 1 else ROLES[:1])}

    def join(host: LabHost) -> None:
        token = tokens["manager" if hosts.index(host) < managers else "worker"]
        wait_answering(lab, host)
        address = str(first.address)
        request = JoinRequest(token=token, manager=address, advertise_addr=str(host.address))
        client(host).join(request)

    in_parallel(join, others, give_up=partial(power_off, hosts))
    started = time.monotonic()
    while True:
        unready = {host.name for host in hosts} - {
            found.node.name for found in manager.nodes() if found.status == "ready"
        }
        if not unready and all(_answers_as_manager(host) for host in hosts[1:managers]):
            return
        if time.monotonic() - started > timeout_s:
            raise UnavailableError(f"not ready after {timeout_s:g} s: {', '.join(sorted(unready))}")
        time.sleep(_POLL_S)


def _answers_as_manager(host: LabHost) -> bool:
    try:
        return bool(client(host).nodes())
    except VxnetError:
        return False


def in_parallel(work: Callable[[T], U], items: Sequence[T], *, give_up: Callable[[], None] = lambda: None) -> list[U]:
    """Results in the order of ``items``. All have ended when the first failure, or Ctrl-C, is raised.

    ``give_up`` is called first then, and does what makes the others end soon.
    """
    if not items:
        return []
    codec.get_ready()
    with ThreadPoolExecutor(max_workers=min(len(items), 4 * (os.cpu_count() or 1))) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            give_up()
            raise


def power_off(hosts: Sequence[LabHost]) -> None:
    """Ends whatever waits for something on these hosts."""
    for host in hosts:
        processes.kill(host.init)


def _inside(host: LabHost, path: str) -> Path:
    assert host.init
    return Path(f"/proc/{host.init.pid}/root{path}")


def _inner_pid(host: LabHost) -> int:
    try:
        return int(_inside(host, _PID_FILE).read_text())
    except (OSError, ValueError):
        return 0


def _last_words(lab: str, host: LabHost) -> str:
    try:
        lines = state.log_file(lab, host.name).read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return " / ".join(lines[-3:]) or "it wrote nothing"
