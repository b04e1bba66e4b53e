"""A manager's seat that cannot be left, or taken, at once."""

from __future__ import annotations

import asyncio
import ipaddress
from pathlib import Path

import pytest

from vxnet.daemon import seat as seats
from vxnet.daemon.seat import Seat
from vxnet.daemon.state import StateDirectory
from vxnet.model.cluster import Node
from vxnet.model.errors import HostError

ADDRESS = ipaddress.ip_address("192.0.2.1")
NODE = Node(id="n1", name="h1", role="worker", advertise_addr=ADDRESS, data_path_addr=ADDRESS, joined_at=0.0)


async def test_what_cannot_be_given_up_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon goes on: an etcd that cannot be stopped, a disk that became read-only."""
    monkeypatch.setattr(seats, "AGAIN_S", (0.01, 0.01))
    seat = Seat(StateDirectory(tmp_path), NODE)
    refusals = [HostError("etcd cannot be stopped")] * 3
    given_up = asyncio.Event()

    async def give_up() -> None:
        if refusals:
            raise refusals.pop()
        given_up.set()

    async def never(*arguments: object) -> object:
        raise AssertionError("nobody made it a manager")

    monkeypatch.setattr(seat, "give_up", give_up)
    seat.want(False)
    task = asyncio.create_task(seat.run(never, never, lambda manager: None))  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        await given_up.wait()
    assert not task.done() and not refusals
    task.cancel()
    await asyncio.wait([task])
