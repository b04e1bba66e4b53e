"""Records from many threads at once."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import pytest

from vxnet.model import codec
from vxnet.model.published import PublishedPort

THREADS = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from vxnet.model import codec
from vxnet.model.container import Container, ContainerSpec, NetworkWish
sys.setswitchinterval(1e-6)
codec.get_ready()
spec = ContainerSpec(name="a", argv=("true",), networks=(NetworkWish(network="n"),))
container = Container(id="a", spec=spec, created_at=0.0)
packed, together = codec.to_json(container), threading.Barrier(100)
def read(_):
    together.wait()
    return codec.from_json(packed, Container)
with ThreadPoolExecutor(100) as pool:
    assert list(pool.map(read, range(100))) == [container] * 100
"""
TIMES = 4
"""Without ``get_ready`` one process of three ends by SIGSEGV."""


def test_records_are_read_for_the_first_time_by_many_threads() -> None:
    running = [subprocess.Popen([sys.executable, "-c", THREADS]) for _ in range(TIMES)]
    assert [one.wait() for one in running] == [0] * TIMES


@pytest.mark.parametrize("text", ["fe80::1%eth0", "fe80::1%x\nflush ruleset", "fe80::%x; flush/64"])
def test_no_zone_is_taken_for_a_part_of_an_address(text: str) -> None:
    """Addresses stand in rules, and :mod:`ipaddress` takes any text for a zone."""
    name = "sources" if "/" in text else "addresses"
    with pytest.raises(msgspec.ValidationError, match="without a zone"):
        codec.from_json(json.dumps({"target": 80, name: [text]}).encode(), PublishedPort)
