"""A stock `serf agent` as the oracle: it joins us, we join it, and its word on who is here agrees with ours."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.serf_agents import PORT, Agent, Agents, agents, until, wait_here
from tests.cluster.test_gossip import Field, field, names, next_address
from tests.gossip_cluster import endpoint
from vxnet.cluster.gossip import Gossip
from vxnet.core import frame
from vxnet.host import netns

__all__ = ["agents", "field"]

pytestmark = pytest.mark.slow


@pytest.fixture
def compressed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many compressed packets and streams our nodes have read."""
    count: Counter[str] = Counter()
    inflate = frame.decompress

    def counted(data: bytes, limit: int) -> bytes:
        found = inflate(data, limit)
        count["read"] += 1
        return found

    monkeypatch.setattr(frame, "decompress", counted)
    return count


def start(agents: Agents, field: Field, name: str, **options: object):  # type: ignore[no-untyped-def]
    return agents.start(name, next_address(), keys=field.keys, **options)  # type: ignore[arg-type]


def harmless(nodes: list[Gossip], agents: list[Agent]) -> None:
    """Nothing that either said was lost on the other, and rows went to nodes only."""
    assert not [node.dropped() for node in nodes if node.dropped()]
    assert not [agent.complaints() for agent in agents if agent.complaints()]


@pytest.mark.parametrize("compression", [True, False], ids=["compressed", "uncompressed"])
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
async def test_agents_and_nodes_are_one_cluster(
    field: Field, agents: Agents, encrypted: bool, compression: bool, compressed: Counter[str]
) -> None:
    if not encrypted:
        field.keys = ()
    flags = () if compression else ("-disable-compression",)
    first = await start(agents, field, "s1", flags=flags)
    # We join an agent; one of us joins the other; an agent joins us.
    one, two = field.make(1), field.make(2)
    one.join([(first.address, PORT)])
    two.join([(field.addresses[1], PORT)])
    one.put("endpoint", "e", endpoint("10.0.1.5", "web"))
    second = await start(agents, field, "s2", join=field.addresses[2], flags=flags)
    everybody = dict.fromkeys(("h1", "h2", "s1", "s2"), "alive")
    for agent in (first, second):
        await agent.wait_statuses(everybody)
    for node in (one, two):
        await wait_here(node, everybody)
    seen = await first.members()
    assert seen["h2"][1] == {"id": "id2", "role": "worker", "vtep": field.addresses[2], "vxnet": "1"}
    assert {member.name: member.tags for member in two.members()}["s2"] == {"role": "agent"}
    assert bool(compressed["read"]) == compression

    # A goodbye is understood both ways, a death is noticed both ways.
    await two.leave()
    await field.kill(2)
    await first.wait_statuses({**everybody, "h2": "left"})
    await second.command("leave")
    await wait_here(one, {**everybody, "h2": "left", "s2": "left"})
    await first.kill()
    await wait_here(one, {"h1": "alive", "h2": "left", "s1": "dead", "s2": "left"})
    harmless([one, two], [first, second])


async def test_events_and_queries_of_serfs_pass(field: Field, agents: Agents) -> None:
    """Also more of them than fit into a packet, and answers that go by way of a node of ours."""
    first = await start(agents, field, "s1")
    nodes = [field.make(number) for number in (1, 2)]
    for node in nodes:
        node.join([(first.address, PORT)])
    second = await start(agents, field, "s2", join=field.addresses[1])
    everybody = dict.fromkeys(("h1", "h2", "s1", "s2"), "alive")
    await second.wait_statuses(everybody)
    for number in range(20):
        await first.command("event", "-coalesce=false", f"deploy-{number}", "x" * 400)
    for number in range(20):
        await second.wait_log(f"Received event: user-event: deploy-{number}\n")
    answer = await second.command("query", "-timeout=3s", "load", "now")
    assert "Ack from 's1'" in answer
    assert "Ack from 's1'" in await second.command("query", "-timeout=3s", "-relay-factor=2", "load", "again")
    # Its coordinates travel in acks; ours have none, and it goes on.
    assert (await first.command("rtt", "s2")).startswith("Estimated")
    nodes[0].put("endpoint", "e", endpoint("10.0.1.5", "web"))
    await until(lambda: names(nodes[1]) == {"web"})
    assert names(nodes[1]) == {"web"}
    await first.wait_statuses(everybody)
    harmless(nodes, [first, second])


async def test_a_killed_node_fails_and_a_restarted_one_is_back(field: Field, agents: Agents) -> None:
    agent = await start(agents, field, "s1")
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
    assert (await agent.members())["h2"][1]["vtep"] == field.addresses[2] == await agent.address_of("h2")


async def test_an_agent_comes_back_after_a_death_and_after_a_leave_also_elsewhere(field: Field, agents: Agents) -> None:
    one = field.make(1)
    agent = await start(agents, field, "s1", join=field.addresses[1])
    await wait_here(one, {"h1": "alive", "s1": "alive"})
    await agent.kill()
    await wait_here(one, {"h1": "alive", "s1": "dead"})
    again = await agents.start("s1", agent.address, keys=field.keys, join=field.addresses[1])
    await wait_here(one, {"h1": "alive", "s1": "alive"})
    await again.wait_statuses({"h1": "alive", "s1": "alive"})
    await again.command("leave")
    await wait_here(one, {"h1": "alive", "s1": "left"})
    # Where it left from, and under another address, after a leave and after a death.
    await again.kill()
    third = await start(agents, field, "s1", join=field.addresses[1])
    await wait_here(one, {"h1": "alive", "s1": "alive"})
    await third.kill()
    await wait_here(one, {"h1": "alive", "s1": "dead"})
    fourth = await start(agents, field, "s1", join=field.addresses[1])
    await wait_here(one, {"h1": "alive", "s1": "alive"})
    await fourth.wait_statuses({"h1": "alive", "s1": "alive"})
    assert {member.name: str(member.address) for member in one.members()}["s1"] == fourth.address


async def test_tags_follow_their_changes(field: Field, agents: Agents) -> None:
    one = field.make(1)
    agent = await start(agents, field, "s1", join=field.addresses[1])
    await wait_here(one, {"h1": "alive", "s1": "alive"})
    tags = {"role": "manager", "vtep": "192.0.2.7", "version": "9.9", "datapath": "userspace"}
    one.update(tags=tags)
    await agent.command("tags", "-set=colour=red")
    await agent.wait_tags("h1", tags)
    await until(lambda: {m.name: m.tags for m in one.members()}["s1"].get("colour") == "red")
    assert {m.name: m.tags for m in one.members()}["s1"] == {"role": "agent", "colour": "red"}
    # By someone who joins later, too.
    late = await start(agents, field, "s2", join=field.addresses[1])
    await late.wait_tags("h1", tags)


async def test_a_second_key_in_both_rings(field: Field, agents: Agents) -> None:
    """Serf's `keys` commands on its agents and our rings on our nodes walk the same three steps. At every point
    somebody uses the one key and somebody the other, in two sizes."""
    old, new = field.keys[0], b"n" * 24
    first = await start(agents, field, "s1", keyring=True)
    second = await start(agents, field, "s2", join=first.address, keyring=True)
    one, two = nodes = [field.make(number) for number in (1, 2)]
    one.join([(first.address, PORT)])
    two.join([(field.addresses[1], PORT)])
    everybody = dict.fromkeys(("h1", "h2", "s1", "s2"), "alive")
    await first.wait_statuses(everybody)
    encoded = base64.b64encode(new).decode()
    for step, ring in (("install", (old, new)), ("use", (new, old)), ("remove", (new,))):
        one.update(keys=ring)
        one.put("endpoint", step, endpoint("10.0.1.5", step))
        # An agent waits in vain for the word of nodes that are not Serf's, and says so.
        key = base64.b64encode(old).decode() if step == "remove" else encoded
        await first.command("keys", f"-{step}={key}", check=False)
        two.update(keys=ring)
        await until(lambda step=step: step in names(two))  # type: ignore[misc]
        assert step in names(two)
        for agent in (first, second):
            await agent.wait_statuses(everybody)
        assert [agent.keys() for agent in (first, second)] == [list(ring)] * 2
    # Everybody has been probed since, by everybody.
    await asyncio.sleep(3)
    for agent in (first, second):
        assert await agent.statuses() == everybody
    for node in nodes:
        await wait_here(node, everybody)
    harmless(nodes, [first, second])


@pytest.mark.parametrize("protocol", [2, 3, 4])
async def test_agents_of_older_protocols(field: Field, agents: Agents, protocol: int) -> None:
    """They speak memberlist's protocol 2 and later: no CRC then, and an ack without coordinates."""
    field.keys = ()
    agent = await start(agents, field, "s1", flags=(f"-protocol={protocol}",))
    one, two = (field.make(number) for number in (1, 2))
    one.join([(agent.address, PORT)])
    two.join([(field.addresses[1], PORT)])
    everybody = dict.fromkeys(("h1", "h2", "s1"), "alive")
    await agent.wait_statuses(everybody)
    await wait_here(two, everybody)
    await agent.command("event", "deploy")
    await two.leave()
    await agent.wait_statuses({**everybody, "h2": "left"})
    harmless([one, two], [agent])


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """This thread, and what it starts, in a network namespace of its own."""
    before = netns.current()
    netns.unshare(netns.CLONE_NEWNET)
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        netns.setns(before)


def cut(side: list[str], other: list[str]) -> None:
    left, right = ", ".join(side), ", ".join(other)
    rules = f"""
        table inet cut {{ chain output {{
            type filter hook output priority 0;
            ip saddr {{ {left} }} ip daddr {{ {right} }} drop
            ip saddr {{ {right} }} ip daddr {{ {left} }} drop
        }}
        }}"""
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)


@pytest.mark.host
@pytest.mark.timeout(300)
async def test_five_and_five_live_through_a_partition(field: Field, agents: Agents, tmp_path: Path) -> None:
    """Nodes h1 … h5 and agents s1 … s5; h1–h3, s1 and s2 on one side, the others on the other."""
    with own_network():
        nodes = field.start(5)
        for number in range(1, 6):
            field.nodes[number].put("endpoint", "e", endpoint(f"10.0.{number}.5", f"web{number}"))
            await start(agents, field, f"s{number}", join=field.addresses[1 + number % 5])
        serfs = agents.running
        all_names = [f"{kind}{number}" for kind in "hs" for number in range(1, 6)]
        everybody = dict.fromkeys(all_names, "alive")
        sides = [["h1", "h2", "h3", "s1", "s2"], ["h4", "h5", "s3", "s4", "s5"]]
        for agent in serfs:
            await agent.wait_statuses(everybody)
        for node in nodes:
            await wait_here(node, everybody)
        addresses = {f"h{number}": address for number, address in field.addresses.items()}
        addresses |= {agent.name: agent.address for agent in serfs}

        cut([addresses[name] for name in sides[0]], [addresses[name] for name in sides[1]])
        seen = [
            {name: "alive" if name in side else word for name in all_names}
            for side in sides
            for word in ("dead", "failed")
        ]
        for number, node in field.nodes.items():
            await wait_here(node, seen[0 if number <= 3 else 2])
        for agent in serfs:
            await agent.wait_statuses(seen[1 if agent.name in sides[0] else 3])
        # Meanwhile both sides go on; also Serf's.
        field.nodes[1].delete("endpoint", "e")
        field.nodes[4].put("endpoint", "new", endpoint("10.0.4.6", "new"))
        await serfs[0].command("event", "left-side")
        await serfs[4].command("event", "right-side")
        await until(lambda: names(field.nodes[5]) == {"web4", "web5", "new"})

        subprocess.run(["nft", "delete", "table", "inet", "cut"], check=True)
        for node in nodes:
            await wait_here(node, everybody)
        for agent in serfs:
            await agent.wait_statuses(everybody)
        after = {"web2", "web3", "web4", "web5", "new"}
        await until(lambda: all(names(node) == after for node in nodes))
        assert [names(node) for node in nodes] == [after] * 5
        harmless([], serfs)
        reasons = {reason for node in nodes for reason in node.dropped()}
        # A connection that the cut tore is all that may have been lost.
        assert reasons <= {"a stream that ends in the middle"}, json.dumps(sorted(reasons))
