"""Containers that start again: because somebody says so, by policy, after their daemon's and their host's death."""

from __future__ import annotations

import pytest

from tests.system.operator import Session, eventually

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(autouse=True)
def network(session: Session) -> None:
    session.network("again")


def state(session: Session, name: str) -> str:
    found = session.json("h2", f"vxnet inspect {name}")[0]
    return str(found["state"])


def started(session: Session, name: str, flags: str, command: str) -> None:
    session.say("h2", f"vxnet run -d --name {name} --network again {flags} -- {command}")
    session.adopt("h2", name)


def reached(session: Session, name: str) -> bool:
    """By name, from a container on another host."""
    return session.inside("h3", "peer", f"ping -c1 -W1 {name}").returncode == 0


def test_start_and_restart(session: Session) -> None:
    session.container("h3", "peer", "again")
    started(session, "web", "", "sh -c 'date +%N >>/root/starts; echo $(wc -l </root/starts) starts; sleep infinity'")
    eventually(lambda: reached(session, "web"))
    address = session.json("h2", "vxnet inspect web")[0]["attachments"][0]["addresses"]
    session.say("h2", "vxnet stop -t 0 web")
    eventually(lambda: session.inside("h3", "peer", "getent hosts web").returncode != 0)
    assert session.say("h2", "vxnet start web") == "web\n"
    eventually(lambda: reached(session, "web"))
    assert session.json("h2", "vxnet inspect web")[0]["attachments"][0]["addresses"] == address
    pid = session.pid("h2", "web")
    assert session.say("h2", "vxnet start web") == "web\n", "harmless where it runs"
    assert session.pid("h2", "web") == pid
    assert session.say("h2", "vxnet restart -t 0 web") == "web\n"
    eventually(lambda: session.say("h2", "vxnet logs web") == "1 starts\n2 starts\n3 starts\n")
    session.say("h2", "vxnet rename web www")
    eventually(lambda: reached(session, "www"))
    eventually(lambda: session.inside("h3", "peer", "getent hosts web").returncode != 0)
    session.say("h2", "vxnet rm -f www")


def test_start_attached_has_its_output_and_status(session: Session) -> None:
    started(session, "talker", "", "sh -c 'echo said; exit 3'")
    eventually(lambda: state(session, "talker") == "exited")
    done = session.run("h2", "vxnet start -a talker")
    assert (done.returncode, done.stdout) == (3, "said\n")


def test_policies(session: Session) -> None:
    started(session, "thrice", "--restart on-failure:2", "sh -c 'echo tried; exit 9'")
    started(session, "content", "--restart on-failure", "true")
    eventually(lambda: state(session, "thrice") == "exited")
    assert session.say("h2", "vxnet logs thrice") == "tried\n" * 3
    thrice = session.json("h2", "vxnet inspect thrice")[0]
    assert (thrice["exit_status"], thrice["restarts"]) == (9, 2)
    assert session.say("h2", "vxnet wait thrice") == "9\n"
    content = session.json("h2", "vxnet inspect content")[0]
    assert (content["state"], content["restarts"]) == ("exited", 0)


def test_killed_command_comes_back_and_a_stopped_one_does_not(session: Session) -> None:
    session.container("h3", "peer", "again")
    started(session, "web", "--restart unless-stopped", "sleep infinity")
    eventually(lambda: reached(session, "web"))
    pid = session.pid("h2", "web")
    session.say("h2", f"kill -9 {pid}")
    eventually(lambda: session.pid("h2", "web") not in (0, pid))
    eventually(lambda: reached(session, "web"))
    session.say("h2", "vxnet stop -t 0 web")
    assert state(session, "web") == "exited"
    session.lab.kill("h2", daemon=True)
    session.lab.start("h2")
    assert state(session, "web") == "exited"


def test_what_ends_while_no_daemon_runs(session: Session) -> None:
    started(session, "web", "--restart always", "sleep infinity")
    started(session, "once", "", "sleep infinity")
    pids = [session.pid("h2", name) for name in ("web", "once")]
    session.lab.kill("h2", daemon=True)
    session.say("h2", f"kill -9 {pids[0]} {pids[1]}")
    session.lab.start("h2")
    eventually(lambda: state(session, "web") == "running")
    assert state(session, "once") == "exited"


def test_killed_shim_is_said_and_policy_holds(session: Session) -> None:
    started(session, "web", "--restart always", "sleep infinity")
    started(session, "once", "", "sleep infinity")
    for name in ("web", "once"):
        short = session.json("h2", f"vxnet inspect {name}")[0]["id"][:12]
        session.say("h2", f"kill -9 $(pgrep -f '^vxnet-shim {short}')")
    eventually(lambda: state(session, "once") == "dead")
    eventually(lambda: state(session, "web") == "running")
    assert "Dead" in session.say("h2", "vxnet ps -a")


def test_a_host_that_boots_starts_clean(session: Session) -> None:
    """Nothing of before is left but the records; who is to run does, and is reached."""
    session.container("h3", "peer", "again")
    for name, flags in {
        "always": "--restart always", "unless": "--restart unless-stopped", "failed": "--restart on-failure",
        "stopped": "--restart unless-stopped", "never": "", "gone": "--rm",
    }.items():  # fmt: skip
        started(session, name, flags, "sh -c 'date +%N >>/root/starts; sleep infinity'")
    session.say("h2", "vxnet stop -t 0 stopped")
    session.lab.kill("h2")
    session.lab.start("h2")
    for name in ("always", "unless", "failed"):
        eventually(lambda name=name: reached(session, name), 20)  # type: ignore[misc]
        assert session.say("h2", f"vxnet exec {name} wc -l /root/starts") == "2 /root/starts\n"
    states = {row["name"]: row["state"] for row in session.table("h2", "vxnet ps -a")}
    assert states == {
        "always": "running", "unless": "running", "failed": "running", "stopped": "exited", "never": "dead",
    }  # fmt: skip
    assert session.say("h2", "pgrep -c vxnet-shim").strip() == "3"
    assert session.say("h2", "ls /run/vxnet/c | wc -l").strip() == "3"
    assert "mended: 0" in session.say("h2", "vxnet info")
