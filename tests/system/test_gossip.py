"""The gossip as people see it, and its keys changed under running daemons."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.operator import Session, eventually

pytestmark = [pytest.mark.lab, pytest.mark.slow]

HOSTS = ("h1", "h2", "h3")


def gossip(session: Session, host: str) -> dict[str, Any]:
    found: dict[str, Any] = session.json(host, "vxnet gossip --format json")
    return found


def keys(session: Session, host: str) -> list[tuple[int, str]]:
    return [(row["epoch"], row["use"]) for row in session.table(host, "vxnet gossip keys")]


def unread(session: Session) -> int:
    """Packets that no key opened, on all hosts, since their daemons began."""
    return sum(gossip(session, host)["dropped"].get("no key opens it", 0) for host in HOSTS)


def test_members_rows_and_digests_are_shown_and_agree(session: Session) -> None:
    session.network("blue")
    session.network("green")
    session.container("h1", "web", "blue")
    session.container("h2", "db", "blue green")

    def agreed() -> dict[str, Any]:
        found = [gossip(session, host) for host in HOSTS]
        digests = [{one["network"]: (one["rows"], one["digest"]) for one in view["digests"]} for view in found]
        assert digests[0] == digests[1] == digests[2], digests
        # A node that was removed leaves rows behind for half an hour, of networks that are no more.
        counts = {network: rows for network, (rows, _) in digests[0].items() if network in ("blue", "green")}
        assert counts == {"blue": 2, "green": 1}
        assert {one["name"]: one["status"] for one in found[2]["members"]} == dict.fromkeys(HOSTS, "alive")
        return found[2]

    view = eventually(agreed)
    tags = next(member["tags"] for member in view["members"] if member["name"] == "h1")
    assert tags["role"] == "manager" and tags["datapath"] == "kernel" and tags["version"] and tags["vtep"]
    assert {
        (row["node"], row["network"]): row["rows"] for row in view["rows"] if row["network"] in ("blue", "green")
    } == {
        ("h1", "blue"): 1,
        ("h2", "blue"): 1,
        ("h2", "green"): 1,
    }
    before = {one["network"]: one["digest"] for one in view["digests"]}
    session.container("h3", "more", "green")
    after = eventually(
        lambda: {
            one["network"]: one["digest"]
            for one in gossip(session, "h1")["digests"]
            if one["network"] == "blue" or one["rows"] == 2
        }
    )
    assert after["blue"] == before["blue"]
    assert eventually(lambda: gossip(session, "h1")["digests"][1]["digest"] != before["green"])

    def healthy() -> dict[str, Any]:
        """A daemon that stood still for 0.2 s says that it is not, until its next probe is answered."""
        found: dict[str, Any] = session.json("h1", "vxnet info --format json")
        assert found["health"] == 0 and gossip(session, "h1")["health"] == 0
        return found

    info = eventually(healthy)
    assert info["queue"] >= 0 and info["key_epoch"] == view["key_epoch"]


def test_a_key_is_changed_and_no_packet_is_lost(session: Session) -> None:
    session.network("blue")
    before = session.table("h1", "vxnet gossip keys")
    lost = unread(session)
    assert all(session.table(host, "vxnet gossip keys") == before for host in ("h2", "h3"))
    epoch = before[0]["epoch"] + 1
    assert session.say("h1", "vxnet gossip rotate-keys --bits 192") == f"Key {epoch} is in use.\n"
    for host in HOSTS:
        eventually(lambda host=host: keys(session, host)[0] == (epoch, "in use"))  # type: ignore[misc]
    ring = session.table("h2", "vxnet gossip keys")
    assert len(base64.b64decode(ring[0]["key"])) == 24 and ring[0]["bits"] == 192
    # Rows and membership went on meanwhile, under both keys.
    session.container("h3", "web", "blue")
    eventually(lambda: [row["node"] for row in gossip(session, "h2")["rows"] if row["network"] == "blue"] == ["h3"])
    assert unread(session) == lost
    assert "down" not in {row["status"] for row in session.table("h1", "vxnet node ls")}
    eventually(lambda: {row["status"] for row in session.table("h1", "vxnet node ls")} == {"ready"})
    assert "`vxnet gossip rotate-keys` is a manager's" in session.refusal("h2", "vxnet gossip rotate-keys")


def test_a_node_that_was_away_is_told_the_new_key(session: Session) -> None:
    session.lab.kill("h3")
    eventually(lambda: session.table("h1", "vxnet node ls --filter name=h3")[0]["status"] == "down")
    epoch = keys(session, "h1")[0][0] + 1
    # Nobody waits for it.
    session.say("h1", "vxnet gossip rotate-keys")
    assert keys(session, "h1")[0] == (epoch, "in use")
    session.lab.start("h3")
    eventually(lambda: session.table("h1", "vxnet node ls --filter name=h3")[0]["status"] == "ready")
    assert eventually(lambda: keys(session, "h3")[0] == (epoch, "in use"))


@contextlib.contextmanager
def agent(session: Session, key: str) -> Iterator[None]:
    """A stock `serf agent` on the machine outside, that joins h1."""
    words = f"exec serf agent -node=x1 -bind=$(hostname -I | cut -d' ' -f1) -encrypt={key} -retry-join=192.168.56.11"
    child = session.lab.popen("x1", ["sh", "-c", words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        child.terminate()
        child.wait(timeout=20)


def test_a_stock_agent_joins_with_the_key_that_is_shown(session: Session) -> None:
    key = session.say("h1", "vxnet gossip keys -q").split()[0]

    def serf(status: str) -> dict[str, dict[str, str]]:
        done = session.run("x1", "serf members -format=json")
        members = json.loads(done.stdout)["members"] if not done.returncode else []
        return {one["name"]: one["tags"] for one in members if one["status"] == status}

    with agent(session, key):
        eventually(lambda: set(serf("alive")) == {"x1", *HOSTS}, 60)
        seen = serf("alive")
        assert {"role", "vtep", "version", "datapath", "id"} <= set(seen["h2"])
        assert (seen["h1"]["role"], seen["h2"]["role"]) == ("manager", "worker")
        assert eventually(lambda: "x1" in {member["name"] for member in gossip(session, "h3")["members"]})
        # It is no node, and has no part in networks.
        assert {row["node"]["name"] for row in session.table("h1", "vxnet node ls")} == set(HOSTS)
        assert session.run("x1", "serf event deploy now").returncode == 0
        session.lab.kill("h3")
        eventually(lambda: "h3" in serf("failed"), 60)
        session.lab.start("h3")
        eventually(lambda: "h3" in serf("alive"), 60)
        session.run("x1", "serf leave")
    eventually(lambda: {m["name"]: m["status"] for m in gossip(session, "h2")["members"]}["x1"] in ("left", "dead"))
    assert unread(session) == 0
