"""A stock `serf agent` as the oracle: it joins us, we join it, and its word on who is here agrees with ours."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cluster.test_gossip import PORT, Field, field, next_address, statuses
from tests.gossip_cluster import endpoint

__all__ = ["field"]

SERF = shutil.which("serf", path="/usr/bin:/usr/sbin:/usr/local/bin")
pytestmark = pytest.mark.skipif(SERF is None, reason="no serf here: install Debian's package serf")
RPC = 17373


class Agent:
    """One `serf agent`."""

    def __init__(self, name: str, log: Path, process: asyncio.subprocess.Process, address: str) -> None:
        self.name = name
        self.address = address
        self.log = log
        self.process = process

    async def command(self, *words: str) -> str:
        assert SERF is not None
        verb, *rest = words
        run = await asyncio.create_subprocess_exec(
            SERF,
            verb,
            f"-rpc-addr={self.address}:{RPC}",
            *rest,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await run.communicate()
        return output.decode()

    async def members(self) -> dict[str, tuple[str, dict[str, str]]]:
        """name → (status, tags)."""
        try:
            found = json.loads(await self.command("members", "-format=json"))
        except ValueError:
            return {}
        return {member["name"]: (member["status"], member["tags"]) for member in found["members"]}

    async def statuses(self) -> dict[str, str]:
        return {name: status for name, (status, _) in (await self.members()).items()}

    async def wait_statuses(self, expected: dict[str, str], timeout_s: float = 15) -> None:
        found: dict[str, str] = {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while (found := await self.statuses()) != expected:
                    await asyncio.sleep(0.1)
        assert found == expected, self.log.read_text()

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    def complaints(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if "[ERR]" in line or "[WARN]" in line]


class Agents:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.running: list[Agent] = []

    async def start(self, name: str, field: Field, *, join: str = "", address: str = "") -> Agent:
        assert SERF is not None
        address = address or next_address()
        words = [f"-node={name}", f"-bind={address}:{PORT}", f"-rpc-addr={address}:{RPC}", "-tag=role=agent"]
        words += [f"-encrypt={base64.b64encode(field.keys[0]).decode()}"] if field.keys else []
        words += [f"-join={join}:{PORT}"] if join else []
        log = self._directory / f"{name}-{len(self.running)}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                SERF, "agent", "-log-level=debug", *words, stdout=output, stderr=asyncio.subprocess.STDOUT
            )
        agent = Agent(name, log, process, address)
        self.running.append(agent)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(15):
                while not await agent.members():
                    await asyncio.sleep(0.05)
                return agent
        raise AssertionError(f"serf did not start: {log.read_text()}")


@pytest.fixture
async def agents(tmp_path: Path) -> AsyncIterator[Agents]:
    made = Agents(tmp_path)
    yield made
    for agent in made.running:
        await agent.kill()


async def wait_here(node: object, expected: dict[str, str], timeout_s: float = 15) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while statuses(node) != expected:  # type: ignore[arg-type]
                await asyncio.sleep(0.02)
    assert statuses(node) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
async def test_agents_and_nodes_are_one_cluster(field: Field, agents: Agents, encrypted: bool) -> None:
    if not encrypted:
        field.keys = ()
    first = await agents.start("s1", field)
    # We join an agent; one of us joins the other; an agent joins us.
    one, two = field.make(1), field.make(2)
    one.join([(first.address, PORT)])
    two.join([(field.addresses[1], PORT)])
    one.put("endpoint", "e", endpoint("10.0.1.5", "web"))
    second = await agents.start("s2", field, join=field.addresses[2])
    everybody = dict.fromkeys(("h1", "h2", "s1", "s2"), "alive")
    for agent in (first, second):
        await agent.wait_statuses(everybody)
    for node in (one, two):
        await wait_here(node, everybody)
    seen = await first.members()
    assert seen["h2"][1] == {"id": "id2", "role": "worker", "vtep": field.addresses[2], "vxnet": "1"}
    assert {member.name: member.tags for member in two.members()}["s2"] == {"role": "agent"}

    # Serf's own traffic passes.
    assert "dispatched" in await first.command("event", "deploy", "now")
    assert "Ack from 's2'" in await first.command("query", "-timeout=2s", "load")

    # A goodbye is understood both ways, a death is noticed both ways.
    await two.leave()
    await field.kill(2)
    await first.wait_statuses({**everybody, "h2": "left"})
    await second.command("leave")
    await wait_here(one, {**everybody, "h2": "left", "s2": "left"})
    await first.kill()
    await wait_here(one, {"h1": "alive", "h2": "left", "s1": "dead", "s2": "left"})

    # Nothing that either said was lost on the other: rows went to nodes only.
    assert not one.dropped() and not two.dropped()
    garbage = [line for line in first.complaints() if "unknown type" in line or "not supported" in line]
    assert not garbage
    assert not [line for line in first.complaints() if "decode" in line or "decrypt" in line]


async def test_a_killed_node_fails_and_a_restarted_one_is_back(field: Field, agents: Agents) -> None:
    agent = await agents.start("s1", field)
    for number in (1, 2):
        field.make(number).join([(agent.address, PORT)])
    await agent.wait_statuses({"s1": "alive", "h1": "alive", "h2": "alive"})
    await field.kill(2)
    await agent.wait_statuses({"s1": "alive", "h1": "alive", "h2": "failed"})
    field.make(2, incarnation=2).join([(agent.address, PORT)])
    await agent.wait_statuses({"s1": "alive", "h1": "alive", "h2": "alive"})
    # The same name on another address: an agent takes that only of one that has left.
    await field.nodes[2].leave()
    await field.kill(2)
    await agent.wait_statuses({"s1": "alive", "h1": "alive", "h2": "left"})
    field.make(2, incarnation=3, address=next_address()).join([(field.addresses[1], PORT)])
    await agent.wait_statuses({"s1": "alive", "h1": "alive", "h2": "alive"})
    assert (await agent.members())["h2"][1]["vtep"] == field.addresses[2]


async def test_an_agent_killed_and_started_again_is_back(field: Field, agents: Agents) -> None:
    one = field.make(1)
    agent = await agents.start("s1", field, join=field.addresses[1])
    await wait_here(one, {"h1": "alive", "s1": "alive"})
    await agent.kill()
    await wait_here(one, {"h1": "alive", "s1": "dead"})
    again = await agents.start("s1", field, join=field.addresses[1], address=agent.address)
    await wait_here(one, {"h1": "alive", "s1": "alive"})
    await again.wait_statuses({"h1": "alive", "s1": "alive"})


async def test_changed_tags_are_seen(field: Field, agents: Agents) -> None:
    one = field.make(1)
    agent = await agents.start("s1", field, join=field.addresses[1])
    await wait_here(one, {"h1": "alive", "s1": "alive"})
    one.update(tags={"role": "manager"})
    await agent.command("tags", "-set=colour=red")
    async with asyncio.timeout(10):
        while (await agent.members())["h1"][1].get("role") != "manager":
            await asyncio.sleep(0.05)
        while {member.name: member.tags for member in one.members()}["s1"].get("colour") != "red":
            await asyncio.sleep(0.02)
