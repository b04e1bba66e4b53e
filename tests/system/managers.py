"""A cluster of several managers as tests ask it: whoever is asked may be away for a while."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TypeVar

from vxnet.cluster.client import Client
from vxnet.lab import Machine
from vxnet.model.api import NetworkCreate
from vxnet.model.errors import VxnetError

T = TypeVar("T")

DEADLINE_S = 60.0
POLL_S = 0.05


def client(host: Machine, timeout_s: float = 30.0) -> Client:
    return Client(str(host.root / "run/vxnet/vxnet.sock"), timeout_s=timeout_s)


def until(condition: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """What ``condition`` returns as soon as that is true; a refusal counts as not yet, and is told if it is the last
    word.
    """
    deadline = time.monotonic() + deadline_s
    why = ""
    while True:
        try:
            if found := condition():
                return found
        except (VxnetError, OSError) as error:
            why = str(error)
        assert time.monotonic() < deadline, f"not within {deadline_s} s: {what} {why}"
        time.sleep(POLL_S)


def members(host: Machine) -> set[str]:
    """Names of those of etcd that have a vote, as this manager knows them."""
    return set(json.loads((host.root / "var/lib/vxnet/store.json").read_text())["names"].values())


def make_network(host: Machine, name: str) -> None:
    """Attachable; also while the managers look for a new leader: whether a write that was not answered was done shows
    in what is there.
    """
    asked = client(host)
    wish = NetworkCreate(name=name, attachable=True)
    until(lambda: name in {net.name for net in asked.networks()} or asked.create_network(wish), f"{name} is made")
