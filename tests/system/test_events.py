"""`vxnet events` beside what makes them."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from tests.system.operator import Session, eventually

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_what_happens_is_told_as_it_happens(session: Session) -> None:
    began = time.time()
    listener = session.lab.popen(
        "h1", ["vxnet", "events", "--format", "json", "--since", f"{began}"], stdout=subprocess.PIPE, text=True
    )
    try:
        session.network("blue")
        session.say("h1", "vxnet run --rm --name short --network blue -- true")
        session.lab.kill("h3")
        eventually(lambda: session.table("h1", "vxnet node ls --filter name=h3")[0]["status"] == "down")
        session.lab.start("h3")
        eventually(lambda: session.table("h1", "vxnet node ls --filter name=h3")[0]["status"] == "ready")
    finally:
        time.sleep(0.1)
        listener.terminate()
        out, _ = listener.communicate(timeout=20)
    heard = [json.loads(line) for line in out.splitlines()]
    told = [(one["type"], one["action"], one["name"]) for one in heard]
    container = [action for type, action, name in told if (type, name) == ("container", "short")]
    assert container == ["create", "start", "die", "destroy"], told
    assert ("network", "create", "blue") in told and told.count(("network", "connect", "blue")) == 1
    states = [one["attributes"].get("state.new") for one in heard if one["name"] == "h3" and one["type"] == "node"]
    assert "down" in states and states[-1] == "ready"
    # The same afterwards, for who asks.
    later = session.say("h1", f"vxnet events --since {began} --until 0s -f container=short -f type=container")
    assert [line.split()[2] for line in later.splitlines()] == container
