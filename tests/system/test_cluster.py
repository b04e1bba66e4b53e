"""Nodes come and go, by the door and by the window; the manager is away."""

from __future__ import annotations

import re

import pytest

from tests.system.operator import Session, eventually

pytestmark = [pytest.mark.lab, pytest.mark.slow]

MANAGER = "192.168.56.11"


def token(session: Session, flags: str = "") -> str:
    return session.say("h1", f"vxnet join-token -q {flags} worker").strip()


def statuses(session: Session) -> dict[str, str]:
    return {row["node"]["name"]: row["status"] for row in session.table("h1", "vxnet node ls")}


def whole(session: Session) -> None:
    eventually(lambda: statuses(session) == dict.fromkeys(("h1", "h2", "h3"), "ready"))


def test_what_a_cluster_says_of_itself(session: Session) -> None:
    whole(session)
    table = session.say("h1", "vxnet node ls")
    assert re.search(r"h1 +Ready +Active +Leader", table) and re.search(r"h3 +Ready +Active +192\.168\.56\.13", table)
    inspected = session.json("h1", "vxnet node inspect h2")[0]
    assert (inspected["node"]["role"], inspected["node"]["advertise_addr"]) == ("worker", "192.168.56.12")
    for host, role in (("h1", "manager"), ("h2", "worker")):
        info = session.say(host, "vxnet info")
        assert f"Role: {role}" in info and "3 (3 alive)" in info and "Managers: h1" in info


@pytest.mark.parametrize(
    "command",
    ["node ls", "node inspect h1", "node rm h3", "network create x", "network rm x", "join-token worker",
     "join-token --rotate worker"],
)  # fmt: skip
def test_a_worker_says_who_the_managers_are(session: Session, command: str) -> None:
    line = session.refusal("h2", f"vxnet {command}")
    assert f"h1 ({MANAGER})" in line and "worker" in line


def test_a_rotated_token_opens_no_more(session: Session) -> None:
    old = token(session)
    session.say("h3", "vxnet leave")
    assert set(statuses(session)) == {"h1", "h2"}
    new = token(session, "--rotate")
    assert new != old and token(session) == new
    assert "token" in session.refusal("h3", f"vxnet join --token {old} {MANAGER}")
    assert "none" in session.say("h3", "vxnet info")
    session.say("h3", f"vxnet join --token {new} {MANAGER}")
    assert "already" in session.refusal("h3", f"vxnet join --token {new} {MANAGER}")
    whole(session)


def authorities(session: Session) -> list[tuple[int, str]]:
    found = session.json("h1", "vxnet ca --format json")
    return [(one["number"], one["use"]) for one in found["authorities"]]


def test_another_ca_takes_over(session: Session) -> None:
    """A node that is away holds it up; who joins meanwhile needs no other token; traffic and rows go on."""
    session.network("trusted")
    session.container("h1", "a", "trusted")
    session.container("h3", "b", "trusted")
    eventually(lambda: session.inside("h1", "a", "ping -c1 -W1 b").returncode == 0)
    ((number, _),) = authorities(session)
    old, pem = token(session), session.say("h1", "vxnet ca")
    session.lab.kill("h2", daemon=True)
    eventually(lambda: statuses(session)["h2"] == "down")
    ping = session.ping("h1", "a", "b", "-i0.05", "-c300")
    assert f"CA {number + 1} is on its way" in session.say("h1", "vxnet ca rotate --detach")
    assert authorities(session) == [(number, "signs"), (number + 1, "next")]
    assert eventually(lambda: session.json("h1", "vxnet ca --format json")["waiting"] == ["h2"])
    session.lab.start("h2")
    eventually(lambda: authorities(session) == [(number + 1, "signs"), (number, "old")])
    assert session.say("h1", "vxnet ca").count("BEGIN CERTIFICATE") == 2
    session.say("h2", "vxnet leave")
    session.say("h2", f"vxnet join --token {old} {MANAGER}")
    # The command waits for the rest of a change that is under way.
    assert f"CA {number + 1} is the only one now" in session.say("h1", "vxnet ca rotate")
    assert ping.unanswered(300) == []
    new = token(session)
    assert authorities(session) == [(number + 1, "signs")] and new != old and session.say("h1", "vxnet ca") != pem
    whole(session)
    session.say("h2", "vxnet leave")
    assert "its CA is another" in session.refusal("h2", f"vxnet join --token {old} {MANAGER}")
    session.say("h2", f"vxnet join --token {new} {MANAGER}")
    whole(session)
    # Rows, leases and their signatures are of the new one; so they are after a restart.
    session.lab.kill("h3", daemon=True)
    session.lab.start("h3")
    session.container("h2", "c", "trusted")
    eventually(lambda: session.inside("h1", "a", "ping -c1 -W1 c && ping -c1 -W1 b").returncode == 0)
    assert "`vxnet ca rotate` is a manager's" in session.refusal("h2", "vxnet ca rotate")


def test_leave_takes_everything_along(session: Session) -> None:
    session.network("left")
    session.container("h2", "peer", "left")
    session.container("h3", "mine", "left")
    assert "mine" in session.refusal("h3", "vxnet leave")
    whole(session)
    session.say("h3", "vxnet leave --force")
    assert "mine" not in session.say("h3", "vxnet ps -a")
    assert session.say("h3", "ip -br link | grep -c vxnet_ || true").strip() == "0"
    assert "vxnet" not in session.say("h3", "nft list tables; ip netns")
    assert session.say("h3", "ls /var/lib/vxnet").split() == ["containers"]
    eventually(lambda: "192.168.56.13" not in session.datapath("h2", "bridge fdb"))
    eventually(lambda: session.inside("h2", "peer", "getent hosts mine").returncode != 0)
    session.say("h3", f"vxnet join --token {token(session)} {MANAGER}")
    whole(session)


def test_a_living_node_is_removed_by_force_alone(session: Session) -> None:
    session.network("gone")
    session.container("h2", "peer", "gone")
    session.container("h3", "mine", "gone")
    eventually(lambda: session.inside("h2", "peer", "ping -c1 -W1 mine").returncode == 0)
    line = session.refusal("h1", "vxnet node rm h3")
    assert "alive" in line and "--force" in line
    session.say("h1", "vxnet node rm --force h3")
    assert set(statuses(session)) == {"h1", "h2"}
    # It counts for nothing any more: neither name nor path.
    eventually(lambda: session.inside("h2", "peer", "getent hosts mine").returncode != 0)
    eventually(lambda: "192.168.56.13" not in session.datapath("h2", "bridge fdb"))
    eventually(lambda: "removed from the cluster" in session.say("h3", "vxnet info 2>&1"))
    session.say("h3", "vxnet rm -f mine")
    # Nobody has to be told: it needs no force.
    session.say("h3", "vxnet leave")
    session.say("h3", f"vxnet join --token {token(session)} {MANAGER}")
    whole(session)


def test_a_dead_node_is_removed(session: Session) -> None:
    session.network("gone")
    session.container("h2", "peer", "gone")
    session.container("h3", "mine", "gone")
    eventually(lambda: session.inside("h2", "peer", "getent hosts mine").returncode == 0)
    session.lab.kill("h3")
    eventually(lambda: statuses(session).get("h3") == "down")
    assert "mine on h3" in session.refusal("h1", "vxnet network rm gone")
    assert "192.168.56.13" in session.datapath("h2", "bridge fdb")
    session.say("h1", "vxnet node rm h3")
    eventually(lambda: "192.168.56.13" not in session.datapath("h2", "bridge fdb"))
    session.say("h2", "vxnet rm -f peer")
    eventually(lambda: session.run("h1", "vxnet network rm gone").returncode == 0)
    session.lab.start("h3")
    eventually(lambda: "removed from the cluster" in session.say("h3", "vxnet info 2>&1"))
    session.say("h3", "vxnet leave --force")
    session.say("h3", f"vxnet join --token {token(session)} {MANAGER}")
    whole(session)


def test_the_manager_is_away(session: Session) -> None:
    session.network("away")
    session.container("h2", "a", "away")
    session.container("h3", "b", "away")
    eventually(lambda: session.inside("h2", "a", "ping -c1 -W1 b").returncode == 0)
    session.lab.kill("h1", daemon=True)
    assert session.inside("h2", "a", "ping -c1 -W1 b").returncode == 0
    assert session.inside("h2", "a", f"ping -c1 -W1 {MANAGER}").returncode == 0
    assert session.run("h3", "vxnet run --rm --network away -- ping -c1 -W1 a").returncode == 0
    session.container("h3", "c", "away")
    eventually(lambda: session.inside("h2", "a", "ping -c1 -W1 c").returncode == 0)
    assert f"h1 ({MANAGER})" in session.refusal("h2", "vxnet network create x")
    line = session.refusal("h2", "vxnet run --rm --network away --ip 10.250.0.1 -- true")
    assert "manager h1" in line and "cannot be reached" in line
    eventually(lambda: "Manager reachable: no" in session.say("h2", "vxnet info"))
    assert "cannot reach the vxnet daemon" in session.refusal("h1", "vxnet node ls")
    session.lab.start("h1")
    whole(session)
    session.network("back")
    for host in ("h2", "h3"):
        eventually(lambda host=host: "back" in session.say(host, "vxnet network ls"))  # type: ignore[misc]
    assert "a on h2" in session.refusal("h1", "vxnet network rm away")
    eventually(lambda: "Manager reachable: yes" in session.say("h2", "vxnet info"))
