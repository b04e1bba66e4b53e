"""Stock `serf agent` processes (Debian's package serf), as tests start, ask and stop them.

They are asked by Serf's own command, so what is asserted is what a person would read. Every wait has a deadline that
only a failure ever reaches: a loaded machine takes long, and its agents are no worse for it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import pytest

from vxnet.cluster.gossip import Gossip

SERF = shutil.which("serf", path="/usr/bin:/usr/sbin:/usr/local/bin") or "serf"
PORT = 17946
RPC = 17373
DEADLINE_S = 90.0
POLL_S = 0.15
Tags = Mapping[str, str]


class Agent:
    """One `serf agent`."""

    def __init__(self, name: str, log: Path, process: asyncio.subprocess.Process, address: str, keyring: Path) -> None:
        self.name = name
        self.address = address
        self.log = log
        self.process = process
        self._keyring = keyring

    def keys(self) -> list[bytes]:
        """What it keeps in its key ring file, if it has one; the one in use first."""
        return [base64.b64decode(key) for key in json.loads(self._keyring.read_text())]

    async def command(self, *words: str, check: bool = True) -> str:
        """What Serf's command says; it must succeed."""
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
        assert not check or run.returncode == 0, f"{self.name}: serf {' '.join(words)}: {output.decode()}"
        return output.decode()

    async def members(self) -> dict[str, tuple[str, dict[str, str]]]:
        """name → (status, tags); empty while it does not answer."""
        try:
            found = json.loads(await self.command("members", "-format=json", check=False))
        except ValueError:
            return {}
        return {member["name"]: (member["status"], member["tags"]) for member in found["members"]}

    async def statuses(self) -> dict[str, str]:
        return {name: status for name, (status, _) in (await self.members()).items()}

    async def address_of(self, name: str) -> str:
        found = json.loads(await self.command("members", "-format=json"))
        return next(str(member["addr"]).split(":")[0] for member in found["members"] if member["name"] == name)

    async def wait_statuses(self, expected: Mapping[str, str], deadline_s: float = DEADLINE_S) -> None:
        found: dict[str, str] = {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while (found := await self.statuses()) != expected:
                    await asyncio.sleep(POLL_S)
        assert found == expected, self.log.read_text()[-20_000:]

    async def wait_tags(self, name: str, expected: Tags) -> None:
        found: Tags = {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE_S):
                while not expected.items() <= (found := (await self.members()).get(name, ("", {}))[1]).items():
                    await asyncio.sleep(POLL_S)
        assert expected.items() <= found.items(), found

    async def wait_log(self, words: str, times: int = 1) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE_S):
                while self.log.read_text().count(words) < times:
                    await asyncio.sleep(POLL_S)
        assert self.log.read_text().count(words) >= times, f"{self.name} has not logged {words!r} {times} times"

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    def complaints(self) -> list[str]:
        """What it could not read of what came. That a peer is gone is no complaint, nor that one refutes."""
        unread = ("unknown type", "not supported", "decode", "decrypt", "Unknown message", "Invalid", "corrupt")
        lines = self.log.read_text().splitlines()
        return [line for line in lines if ("[ERR]" in line or "[WARN]" in line) and any(w in line for w in unread)]


class Agents:
    """Those of one test; :meth:`stop` ends them all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.running: list[Agent] = []

    async def start(
        self,
        name: str,
        address: str,
        *,
        keys: Sequence[bytes] = (),
        join: str = "",
        flags: Sequence[str] = (),
        keyring: bool = False,
    ) -> Agent:
        """Up, and answering. ``keys``: the first is used, the others are accepted. ``keyring``: kept in a file."""
        words = [f"-node={name}", f"-bind={address}:{PORT}", f"-rpc-addr={address}:{RPC}", "-tag=role=agent"]
        ring = self._directory / f"{name}.keyring"
        if len(keys) == 1 and not keyring:
            words.append(f"-encrypt={base64.b64encode(keys[0]).decode()}")
        elif keys:
            ring.write_text(json.dumps([base64.b64encode(key).decode() for key in keys]))
            words.append(f"-keyring-file={ring}")
        # Not -join: an agent whose join fails ends.
        words += [f"-retry-join={join}:{PORT}", "-retry-interval=1s"] if join else []
        log = self._directory / f"{name}-{len(self.running)}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                SERF, "agent", "-log-level=debug", *words, *flags, stdout=output, stderr=asyncio.subprocess.STDOUT
            )
        agent = Agent(name, log, process, address, ring)
        self.running.append(agent)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE_S):
                while process.returncode is None and not await agent.members():
                    await asyncio.sleep(POLL_S)
        assert process.returncode is None and await agent.members(), f"serf did not start: {log.read_text()}"
        return agent

    async def stop(self) -> None:
        for agent in self.running:
            await agent.kill()


@pytest.fixture
async def agents(tmp_path: Path) -> AsyncIterator[Agents]:
    made = Agents(tmp_path)
    yield made
    await made.stop()


async def wait_here(node: Gossip, expected: Mapping[str, str], deadline_s: float = DEADLINE_S) -> None:
    """Until a node of ours has these statuses."""
    await until(lambda: {member.name: member.status for member in node.members()} == expected, deadline_s)
    assert {member.name: member.status for member in node.members()} == expected


async def until(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(deadline_s):
            while not condition():
                await asyncio.sleep(0.02)
