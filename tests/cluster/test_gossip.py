"""The gossip over real sockets: 127.x.y.z addresses of this machine, no namespace, no root."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import os
import random
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest

from tests.gossip_cluster import VTEP, Cluster, Papers, endpoint
from vxnet.cluster.gossip import Gossip
from vxnet.core import wire
from vxnet.model.errors import HostError
from vxnet.model.row import Endpoint

PORT = 17946
_numbers = itertools.count(1)


def next_address() -> str:
    """Of this process and this test alone."""
    number = next(_numbers)
    return f"127.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 250}.{number}"


class Field:
    """Nodes that run, by number."""

    def __init__(self, rng: random.Random, group: asyncio.TaskGroup, *, encrypted: bool = True) -> None:
        self.cluster = Cluster(rng, time.time())
        self.keys: tuple[bytes, ...] = (rng.randbytes(16),) if encrypted else ()
        self.label = ""
        self.nodes: dict[int, Gossip] = {}
        self.papers: dict[int, Papers] = {}
        self.addresses: dict[int, str] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._group = group

    def make(self, number: int, *, incarnation: int = 1, address: str = "") -> Gossip:
        papers = self.papers.setdefault(number, self.cluster.papers(f"id{number}"))
        address = address or self.addresses.get(number) or next_address()
        self.addresses[number] = address
        node = Gossip(
            node_id=papers.id,
            name=f"h{number}",
            address=ipaddress.ip_address(address),
            port=PORT,
            tags={"role": "worker", "vtep": address},
            keys=self.keys,
            key=papers.key,
            certificate=papers.certificate,
            roots=self.cluster.roots,
            leases=self.cluster.leases(papers.id, f"10.0.{number}.0/24"),
            incarnation=incarnation,
            label=self.label,
        )
        self.nodes[number] = node
        self._tasks[number] = self._group.create_task(node.run())
        return node

    def start(self, count: int) -> list[Gossip]:
        nodes = [self.make(number) for number in range(1, count + 1)]
        for node in nodes[1:]:
            node.join([(self.addresses[1], PORT)])
        return nodes

    async def kill(self, number: int) -> None:
        self._tasks[number].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._tasks[number]

    async def stop(self) -> None:
        for number in self._tasks:
            await self.kill(number)


@pytest.fixture
async def field(rng: random.Random) -> AsyncIterator[Field]:
    async with asyncio.TaskGroup() as group:
        made = Field(rng, group)
        yield made
        await made.stop()


async def wait(condition: Callable[[], object], what: str, timeout_s: float = 10.0) -> float:
    """How long it took."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > timeout_s:
            pytest.fail(f"not within {timeout_s} s: {what}")
        await asyncio.sleep(0.005)
    return time.monotonic() - begun


def names(node: Gossip) -> set[str]:
    return {value.name for _, _, value in node.rows() if hasattr(value, "name")}


def statuses(node: Gossip) -> dict[str, str]:
    return {member.name: member.status for member in node.members()}


async def test_three_nodes_share_members_and_rows(field: Field) -> None:
    nodes = field.start(3)
    for number, node in field.nodes.items():
        node.put("endpoint", "e1", endpoint(f"10.0.{number}.5", f"web{number}"))
    took = await wait(lambda: all(names(node) == {"web1", "web2", "web3"} for node in nodes), "all rows everywhere")
    print(f"settled in {took * 1000:.0f} ms")
    assert all(statuses(node) == dict.fromkeys(("h1", "h2", "h3"), "alive") for node in nodes)
    assert nodes[0].members()[0].tags["vtep"]
    assert not any(node.refused() for node in nodes)
    nodes[1].changed.clear()
    nodes[0].delete("endpoint", "e1")
    took = await wait(lambda: all(names(node) == {"web2", "web3"} for node in nodes), "a deleted row goes")
    print(f"deleted in {took * 1000:.0f} ms")
    assert nodes[1].changed.is_set()


async def test_late_joiner_learns_all_at_once(field: Field) -> None:
    nodes = field.start(3)
    for number, node in field.nodes.items():
        for host in range(5, 45):
            node.put("endpoint", f"e{host}", endpoint(f"10.0.{number}.{host}", f"c{number}-{host}"))
    await wait(lambda: all(len(names(node)) == 120 for node in nodes), "all rows everywhere")
    late = field.make(4)
    late.join([(field.addresses[1], PORT)])
    took = await wait(lambda: len(names(late)) == 120, "all rows at the late joiner")
    print(f"late joiner after {took * 1000:.0f} ms")
    assert took < 2


@pytest.mark.slow
async def test_killed_node_loses_its_names_and_keeps_its_paths(field: Field) -> None:
    nodes = field.start(3)
    for number, node in field.nodes.items():
        node.put("endpoint", "e1", endpoint(f"10.0.{number}.5", f"web{number}"))
    await wait(lambda: all(len(names(node)) == 3 for node in nodes), "all rows everywhere")
    await field.kill(3)
    took = await wait(lambda: names(nodes[0]) == {"web1", "web2"}, "the dead node's names go")
    print(f"detected after {took:.2f} s")
    assert statuses(nodes[0])["h3"] == "dead"
    assert len([key for key, _, value in nodes[0].paths() if key.kind == "endpoint"]) == 3


async def test_restart_with_a_new_address_brings_new_rows_and_drops_old_ones(field: Field) -> None:
    nodes = field.start(3)
    field.nodes[3].put("endpoint", "old", endpoint("10.0.3.5", "old"))
    field.nodes[3].put("endpoint", "same", endpoint("10.0.3.6", "same"))
    await wait(lambda: names(nodes[0]) == {"old", "same"}, "rows of the first life")
    await field.kill(3)
    again = field.make(3, incarnation=2, address=next_address())
    again.join([(field.addresses[1], PORT)])
    await wait(lambda: any(m.endpoint[0] == field.addresses[3] for m in nodes[0].members()), "the new address")
    # Old rows stay until the new life has put its own.
    await wait(lambda: names(nodes[0]) == {"old", "same"}, "rows of the first life, kept")
    again.put("endpoint", "same", endpoint("10.0.3.6", "same"))
    again.republished()
    await wait(lambda: names(nodes[0]) == {"same"}, "rows of the second life")


async def test_leaving_is_told_and_coming_back_works(field: Field) -> None:
    nodes = field.start(3)
    field.nodes[3].put("endpoint", "e1", endpoint("10.0.3.5", "web3"))
    await wait(lambda: all(names(node) == {"web3"} for node in nodes), "all rows everywhere")
    begun = time.monotonic()
    field.nodes[3].delete("endpoint", "e1")
    await field.nodes[3].leave()
    assert time.monotonic() - begun < 3  # three steps of 0.25 s, and a loop that others keep waiting
    await field.kill(3)
    await wait(lambda: statuses(nodes[0])["h3"] == statuses(nodes[1])["h3"] == "left", "it has left")
    assert names(nodes[0]) == set()
    assert not [key for key, _, value in nodes[0].paths() if key.kind == "endpoint"]
    again = field.make(3, incarnation=2)
    again.join([(field.addresses[2], PORT)])
    again.put("endpoint", "e1", endpoint("10.0.3.7", "back"))
    await wait(lambda: all(names(node) == {"back"} for node in (nodes[0], nodes[1], again)), "it is back")


@pytest.mark.slow
async def test_a_planned_restart_keeps_everything(field: Field) -> None:
    nodes = field.start(3)
    field.nodes[3].put("endpoint", "e1", endpoint("10.0.3.5", "web3"))
    await wait(lambda: all(names(node) == {"web3"} for node in nodes), "all rows everywhere")
    await field.nodes[3].restarting(30)
    await field.kill(3)
    await wait(lambda: statuses(nodes[0])["h3"] == "dead", "its silence is noticed")
    assert names(nodes[0]) == {"web3"}


async def test_a_node_with_another_key_is_not_heard(field: Field) -> None:
    nodes = field.start(2)
    await wait(lambda: len(nodes[0].members()) == 2, "two meet")
    field.keys = (b"another key 16 o",)
    stranger = field.make(3)
    stranger.join([(field.addresses[1], PORT)])
    await wait(lambda: nodes[0].dropped()["no key opens it"], "the stranger is refused")
    assert len(nodes[0].members()) == 2 and len(stranger.members()) == 1


async def test_clusters_with_other_labels_do_not_hear_each_other(field: Field) -> None:
    """With the very same key: the label is authenticated beside it, and looked at before it."""
    field.label = "blue"
    nodes = field.start(2)
    nodes[1].put("endpoint", "e", endpoint("10.0.2.5", "web"))
    await wait(lambda: names(nodes[0]) == {"web"}, "two of one label meet")
    for number, label in ((3, ""), (4, "green")):
        field.label = label
        field.make(number).join([(field.addresses[1], PORT)])
    await wait(lambda: nodes[0].dropped()["no label"], "the one without is refused")
    await wait(lambda: nodes[0].dropped()["another cluster's label"], "the other one is refused")
    assert len(nodes[0].members()) == 2 and len(field.nodes[3].members()) == len(field.nodes[4].members()) == 1


async def test_keys_rotate_without_a_loss(field: Field) -> None:
    nodes = field.start(3)
    await wait(lambda: all(len(node.members()) == 3 for node in nodes), "three meet")
    old, new = field.keys[0], b"n" * 32
    for keys in ((old, new), (new, old), (new,)):
        for node in nodes:
            node.update(keys=keys)
            await asyncio.sleep(0.05)
    nodes[0].put("endpoint", "e1", endpoint("10.0.1.5", "web1"))
    await wait(lambda: all(names(node) == {"web1"} for node in nodes), "rows under the new key")
    assert not any(node.dropped()["no key opens it"] for node in nodes)


async def test_port_in_use_is_said(field: Field) -> None:
    nodes = field.start(1)
    await wait(lambda: nodes[0].core.get_timer() and nodes[0]._udp, "the first is up")
    other = Gossip(
        node_id="x",
        name="x",
        address=ipaddress.ip_address(field.addresses[1]),
        port=PORT,
        tags={},
        keys=(),
        key=field.papers[1].key,
        certificate=field.papers[1].certificate,
        roots=(),
        incarnation=1,
    )
    with pytest.raises(HostError, match=f"{field.addresses[1]}:{PORT}/tcp"):
        await other.run()


async def test_a_member_is_where_a_manager_has_certified_it_to_be(field: Field) -> None:
    """What its tags say is nothing: whoever has the key, a removed node too, can join under any name and id."""
    one, _ = field.start(2)
    await wait(lambda: one.places("id2") == {VTEP}, "two is proven")
    ghost = Papers("id3", field.papers[2].key, field.papers[2].certificate)
    field.papers[3] = ghost
    field.make(3).join([(field.addresses[1], PORT)])
    await wait(lambda: "h3" in [member.name for member in one.members() if member.present], "the ghost is a member")
    await wait(lambda: one.refused()["certificate is another's"] > 0, "its papers came")
    assert one.places("id3") == frozenset()
    one.update(revoked=["id2"])
    assert one.places("id2") == frozenset()


async def test_strangers_cannot_fill_the_memory(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encrypted stream is read whole before it can be checked. 128 of 16 MB each would be 2 GB, for anybody."""
    monkeypatch.setattr("vxnet.cluster.gossip.ARRIVING_LIMIT", 1 << 20)
    one, _ = field.start(2)
    await wait(lambda: len(one.members()) == 2, "a cluster of two")
    streams = [await asyncio.open_connection(field.addresses[1], PORT) for _ in range(8)]
    for _, writer in streams:
        writer.write(b"\x0a" + (16 << 20).to_bytes(4, "big") + bytes(400_000))
    cut = [asyncio.ensure_future(reader.read()) for reader, _ in streams]
    await wait(lambda: sum(one_cut.done() for one_cut in cut) >= 5, "those beyond the bound are cut off")
    assert not all(one_cut.done() for one_cut in cut)
    for _, writer in streams:
        writer.close()
    await asyncio.wait(cut)
    for _, outcome in zip(streams, cut, strict=True):
        outcome.exception()  # cut off in the middle of what it sent, mostly
    one.put("endpoint", "e1", endpoint("10.0.1.5", "web"))
    await wait(lambda: "web" in names(field.nodes[2]), "the cluster goes on")
    assert one._arriving == 0


async def test_addresses_that_do_not_answer_cannot_use_up_the_node(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that lies names an address that takes connections and reads nothing: each holds what is to be said."""
    monkeypatch.setattr("vxnet.cluster.gossip.DIALLED_AT_ONCE", 6)
    one, two = field.start(2)
    await wait(lambda: len(one.members()) == 2, "a cluster of two")
    with socket.create_server((next_address(), PORT), backlog=64) as deaf:
        # Each more than the sockets on both ends hold.
        for limit, opened in ((42 << 20, 5), (1 << 30, 6)):
            monkeypatch.setattr("vxnet.cluster.gossip.DIALLED_OCTETS", limit)
            for _ in range(20):
                one.core.swim.send_user_stream(deaf.getsockname(), bytes(8 << 20))
                one._transmit()
            await asyncio.sleep(0.1)
            assert one._dialled == opened
        assert one.statistics()["unsent"] == 15 + 19
    two.put("endpoint", "e1", endpoint("10.0.2.5", "web"))
    await wait(lambda: "web" in names(one), "the cluster goes on")
    await wait(lambda: one._dialled == one._dialled_octets == 0, "they were given up", 20)


async def test_a_node_without_a_descriptor_left_goes_on(field: Field) -> None:
    """It cannot dial; before, that ended the gossip."""
    one, two = field.start(2)
    await wait(lambda: len(one.members()) == 2, "a cluster of two")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        one.core.swim.send_user_stream((field.addresses[2], PORT), b"x")
        one._transmit()
        await wait(lambda: one.statistics()["unsent"] == 1, "it could not dial")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    two.put("endpoint", "e1", endpoint("10.0.2.5", "web"))
    await wait(lambda: "web" in names(one), "the cluster goes on")
    assert one._dialled == 0


async def test_a_false_word_that_a_node_has_left_cuts_no_path(field: Field) -> None:
    """Every member can say it of every other, again and again. Who really leaves deletes its rows."""
    one, two = field.start(2)
    two.put("endpoint", "e1", endpoint("10.0.2.5", "web"))
    await wait(lambda: "web" in names(one), "the row came")
    two_there = next(member for member in one.members() if member.name == "h2")
    one.core.swim.hear_accusation(wire.Dead(two_there.incarnation, "h2", "h2"))
    assert statuses(one)["h2"] == "left"
    assert "web" not in names(one)
    assert [value.name for _, _, value in one.paths() if isinstance(value, Endpoint)] == ["web"]
    await wait(lambda: "web" in names(one), "it speaks for itself")
    two.delete("endpoint", "e1")
    await two.leave()
    await wait(lambda: not one.paths(), "it has really left")
