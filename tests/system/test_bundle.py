"""`vxnet bundle`: what is in it, and that no secret is."""

from __future__ import annotations

import json
import tarfile

import pytest

from tests.system.operator import Session

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_it_tells_much_and_no_secret(session: Session) -> None:
    session.network("blue")
    session.adopt("h1", "a")
    session.say("h1", "vxnet run -d --name a --network blue -e PASSWORD=hunter2secret -- sleep infinity")
    session.service("s", "--network blue --replicas 1 --env API_KEY=hunter3secret")
    token = session.say("h1", "vxnet join-token worker -q").strip()
    keys = [one["key"] for one in session.table("h1", "vxnet gossip keys")]
    private = session.say("h1", "cat /var/lib/vxnet/node.key").split("\n")[1]
    said = session.say("h1", "cd /run && vxnet bundle -o b.tar.gz")
    assert said.startswith("b.tar.gz: ")
    path = session.lab["h1"].root / "run/b.tar.gz"
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as tar:
        files = {one.name.partition("/")[2]: tar.extractfile(one).read() for one in tar.getmembers()}  # type: ignore[union-attr]
    everything = b"\n".join(files.values())
    secret = token.rpartition("-")[2]
    for word in (token, secret, private, "hunter2secret", "hunter3secret", *keys):
        assert word.encode() not in everything, word
    assert b"PASSWORD=(left out)" in everything and b"API_KEY=(left out)" in everything
    assert {one["name"] for one in (node["node"] for node in json.loads(files["nodes.json"]))} == {"h1", "h2", "h3"}
    assert b"table inet vxnet" in files["nft.txt"] and b"vx6" in files["datapath-links.txt"]
    assert any(one["check"] == "data port" for one in json.loads(files["doctor.json"]))
    assert "is there already" in session.refusal("h1", "cd /run && vxnet bundle -o b.tar.gz")
    session.say("h1", "rm /run/b.tar.gz")


def test_without_a_daemon_it_is_made_all_the_same(session: Session) -> None:
    session.lab.kill("h3", daemon=True)
    try:
        session.say("h3", "cd /run && vxnet bundle -o b.tar.gz")
        assert "error" in session.say("h3", "tar -xOzf /run/b.tar.gz --wildcards '*/info.json'; rm /run/b.tar.gz")
    finally:
        session.lab.start("h3")
