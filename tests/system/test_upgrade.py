"""Packets, names and sessions while daemons are killed, replaced by another version, or away.

``VXNET_AWAY_S=120`` is the long form of the last: how long a daemon is away, seconds.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import vxnet
from tests.system.flow import Flows
from tests.system.operator import Session, eventually, watching
from vxnet.lab import daemons

pytestmark = [pytest.mark.lab, pytest.mark.slow]

AWAY_S = float(os.environ.get("VXNET_AWAY_S", "8"))
"""More than it takes the others to find it dead."""
OTHER = "9.9.9"


@pytest.fixture
def flows(session: Session) -> Iterator[Flows]:
    """They run."""
    made = Flows(session)
    yield made
    made.kill()


def upgrade(session: Session, host: str, signal: str) -> None:
    """As a package does: the old daemon is stopped, the new one started."""
    source = Path(vxnet.__file__).parent
    session.say(host, f"rm -rf /run/other && mkdir /run/other && cp -a {source} /run/other/vxnet")
    session.say(host, f"sed -i s/{vxnet.__version__}/{OTHER}/ /run/other/vxnet/__init__.py")
    session.say(host, f"kill -{signal} $(cat /run/vxnet/vxnetd.pid)")
    eventually(lambda: not session.lab[host].daemon_pid)
    record = session.lab[host].record
    daemons.launch(session.lab.name, record, ["env", "PYTHONPATH=/run/other", *daemons.ARGV])
    daemons.wait_answering(session.lab.name, record)


def test_sigkill_and_restart_of_both_daemons(session: Session, flows: Flows) -> None:
    for host in ("h2", "h3"):
        session.lab.kill(host, daemon=True)
    for host in ("h2", "h3"):
        session.lab.start(host)
    eventually(lambda: session.inside("h2", "a", "getent hosts b").returncode == 0)
    flows.lose_nothing()


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
def test_another_version_takes_over(session: Session, flows: Flows, signal: str) -> None:
    """And the old one again, as after a change of mind. Sessions and logs go on, and nothing is touched."""
    session.container("h2", "writer", "flow", "sh -c 'while sleep 0.1; do echo on; done'")
    follower = session.lab.popen("h2", ["vxnet", "attach", "--no-stdin", "writer"], stdout=subprocess.PIPE, text=True)
    typing = session.lab.popen(
        "h2", ["vxnet", "exec", "-i", "a", "sh", "-c", "read line; echo got $line; exit 7"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    eventually(lambda: session.inside("h2", "a", "getent hosts writer").returncode == 0)
    tables = {host: session.tables(host) for host in ("h2", "h3")}
    with watching(session, "h2", ["a", "writer"]) as seen:
        for host in ("h2", "h3"):
            upgrade(session, host, signal)
            assert OTHER in session.say(host, "vxnet info --format json")
        eventually(lambda: session.inside("h2", "a", "getent hosts b").returncode == 0)
    assert seen == {}
    assert {host: session.tables(host) for host in tables} == tables
    assert "mended: 0" in session.say("h2", "vxnet info")
    assert typing.communicate("this", timeout=20)[0] == "got this\n" and typing.returncode == 7
    length = len(session.say("h2", "vxnet logs writer"))
    eventually(lambda: len(session.say("h2", "vxnet logs writer")) > length)
    session.say("h2", "vxnet kill writer")
    assert set(follower.communicate(timeout=20)[0].split()) == {"on"} and follower.returncode == 137
    for host in ("h2", "h3"):
        session.lab.kill(host, daemon=True)
        session.lab.start(host)
        session.say(host, "rm -r /run/other")
    flows.lose_nothing()


@pytest.mark.timeout(AWAY_S + 120)
def test_a_daemon_that_is_away(session: Session, flows: Flows) -> None:
    """Its containers stay reachable, both ways, although the others count it as dead and tell its names no more."""
    session.lab.kill("h3", daemon=True)
    time.sleep(AWAY_S)
    assert session.inside("h2", "a", "getent hosts b").returncode != 0
    session.lab.start("h3")
    eventually(lambda: session.inside("h2", "a", "getent hosts b").returncode == 0)
    assert session.inside("h3", "b", "getent hosts a").returncode == 0
    flows.lose_nothing()


def test_names_asked_for_while_the_daemon_is_dead_are_answered(session: Session) -> None:
    session.network("flow")
    session.container("h2", "a", "flow")
    for number in range(3):
        session.container("h3", f"n{number}", "flow")
    for number in range(3):
        eventually(lambda number=number: session.inside("h2", "a", f"getent hosts n{number}").returncode == 0)  # type: ignore[misc]
    pid = session.pid("h2", "a")
    session.lab.kill("h2", daemon=True)
    script = f"nsenter -t {pid} -a getent hosts "
    asking = [
        session.lab.popen("h2", ["sh", "-c", script + f"n{number % 3}"], stdout=subprocess.PIPE, text=True)
        for number in range(30)
    ]
    session.lab.start("h2")
    failed = [number for number, child in enumerate(asking) if f"n{number % 3}" not in child.communicate(timeout=30)[0]]
    assert failed == []
