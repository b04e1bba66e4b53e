"""``vxnet cp`` in and out of containers that run, that have ended, and that mean no good."""

from __future__ import annotations

import subprocess

import pytest

from tests.system.operator import Session, eventually

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(autouse=True)
def box(session: Session) -> None:
    session.say("h2", "vxnet run -d --name box -- sleep infinity")
    session.adopt("h2", "box")


def test_both_ways_and_of_an_ended_container(session: Session) -> None:
    say = session.say
    try:
        say(
            "h2",
            "mkdir -p /run/cp/www/inner && cd /run/cp/www && echo hello >index && echo deep >inner/file",
        )
        say("h2", "vxnet cp /run/cp/www box:/root && vxnet cp /run/cp/www/. box:/root/content-of-nothing")
        assert (
            session.inside("h2", "box", "cat /root/www/inner/file /root/content-of-nothing/index").stdout
            == "deep\nhello\n"
        )
        assert session.inside("h2", "box", "stat -c %U /root/www/index").stdout == "root\n"
        say("h2", "vxnet cp box:/root/www /run/cp/back && diff -r /run/cp/www /run/cp/back")
        say("h2", "vxnet cp box:/root/www - | tar -t | sort >/run/cp/list")
        assert say("h2", "cat /run/cp/list") == "www/\nwww/index\nwww/inner/\nwww/inner/file\n"
        say("h2", "tar -C /run/cp -c www | vxnet cp - box:/tmp && vxnet exec box diff -r /tmp/www /root/www")
        say("h2", "vxnet stop -t 0 box")
        say("h2", "vxnet cp box:/root/www/index /run/cp/of-ended && diff /run/cp/of-ended /run/cp/www/index")
        say("h2", "echo late >/run/cp/late && vxnet cp /run/cp/late box:/root/late")
        # Its sandbox was for the copy alone.
        eventually(lambda: say("h2", "ls /run/vxnet/c; pgrep -c vxnet-shim || true") == "0\n")
        say("h2", "vxnet start box")
        assert session.inside("h2", "box", "cat /root/late").stdout == "late\n"
    finally:
        say("h2", "rm -rf /run/cp")


def test_refusals(session: Session) -> None:
    assert "box:/no/such" not in session.refusal("h2", "vxnet cp box:/no/such /run/x")
    assert "no directory" in session.refusal("h2", "vxnet cp /etc/hostname box:/no/such/place")
    assert "no container" in session.refusal("h2", "vxnet cp nobody:/etc/hostname /run/x")
    assert "must be in a container" in session.refusal("h2", "vxnet cp /etc/hostname /run/x")
    assert "between containers" in session.refusal("h2", "vxnet cp box:/etc/hostname box:/tmp")
    assert "No such file" in session.refusal("h2", "vxnet cp /no/such box:/tmp")


def test_links_of_a_container_lead_nowhere_else(session: Session) -> None:
    session.say("h2", "echo theirs >/run/secret")
    try:
        session.inside(
            "h2", "box", "ln -s /run/secret /root/a; ln -s /run /root/d; mkdir -p /run && echo own >/run/secret"
        )
        assert session.say("h2", "vxnet cp -L box:/root/a - | tar -xO") == "own\n"
        assert session.say("h2", "vxnet cp box:/root/d/secret - | tar -xO") == "own\n"
        session.say("h2", "echo x >/run/new && vxnet cp /run/new box:/root/d/secret && rm /run/new")
        assert session.say("h2", "cat /run/secret") == "theirs\n"
        assert session.inside("h2", "box", "cat /run/secret").stdout == "x\n"
        for secret in ("/var/lib/vxnet/node.key", "/run/vxnet/vxnet.sock"):
            session.refusal("h2", f"vxnet cp box:{secret} /run/x")
    finally:
        session.say("h2", "rm -f /run/secret")


def test_a_daemon_that_dies_while_it_copies_of_an_ended_one(session: Session) -> None:
    """The sandbox that was for the copy alone is not left over."""
    session.say("h2", "vxnet stop -t 0 box")
    copying = session.lab.popen("h2", ["sh", "-c", "sleep 5 | vxnet cp - box:/root"], stderr=subprocess.DEVNULL)
    eventually(lambda: session.say("h2", "ls /run/vxnet/c"))
    session.lab.kill("h2", daemon=True)
    assert copying.wait(timeout=30) == 1
    session.lab.start("h2")
    eventually(lambda: not session.say("h2", "ls /run/vxnet/c"))
    session.say("h2", "vxnet start box")
