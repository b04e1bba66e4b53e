"""What one gossiping node costs: memory beside 1,000 others, and packets that one core takes from a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import multiprocessing
import os
import random
import socket
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path

from tests.gossip_cluster import Cluster, endpoint
from tests.perf.measure import table
from vxnet.cluster.gossip import Gossip
from vxnet.core import frame, rows, wire
from vxnet.core.author import Author
from vxnet.core.gossip import GossipNode
from vxnet.core.keyring import KeyRing
from vxnet.core.serf import encode_tags
from vxnet.model.row import Certificate, Leases

KEY = bytes(16)
ADDRESS = "127.93.0.1"
PORT = 17946
OTHERS = 1000
ROWS = 10
ROUNDS = 5
PACKETS = 20_000
SENDERS = 200
"""As many packets are under way: fewer than the socket holds, so that none is lost."""


def main() -> None:
    spawn = multiprocessing.get_context("spawn")
    before, after, count = _child(spawn, _memory)
    pings = [_child(spawn, _packets, False) for _ in range(ROUNDS)]
    batches = [_child(spawn, _packets, True) for _ in range(ROUNDS)]
    table(
        "One node's gossip",
        ["", "bound", "measured"],
        [
            [
                f"RSS that {OTHERS} nodes × {ROWS} rows add ({count:.0f} rows count, from {before:.1f} MB on)",
                "30 MB",
                f"{after - before:.1f} MB",
            ],
            ["pings taken and answered, sealed, a second of processor time", "10,000", _rate(pings, 1)],
            ["… with a new row each: until the last one is answered", "10,000", _rate(batches, 1)],
            ["… until the last row is verified, merged and on its way", "–", _rate(batches, 2)],
        ],
    )


def _rate(found: list[tuple[float, ...]], which: int) -> str:
    rates = [one[0] / one[which] for one in found]
    return f"{statistics.median(rates):,.0f} [{min(rates):,.0f}–{max(rates):,.0f}] (n={len(rates)})"


def _child(spawn: multiprocessing.context.SpawnContext, work: object, *arguments: object) -> tuple[float, ...]:
    here, there = spawn.Pipe()
    process = spawn.Process(target=work, args=(there, *arguments))
    process.start()
    try:
        if work is _packets:
            _load(here, *arguments)
        found: tuple[float, ...] = here.recv()
        return found
    finally:
        process.join(30)
        process.kill()


# Memory


def _memory(pipe: Connection) -> None:
    cluster = Cluster(random.Random(1), time.time())
    node = _node(cluster)
    packets = _crowd(cluster)
    gc.collect()
    before = _rss()
    wall = time.time()
    for number in range(OTHERS):
        # As they come: nothing of the packet may stay but what is kept.
        for payload in packets.pop():
            node.swim.receive_datagram(_seal(payload), ("127.93.1.1", PORT), float(number))
        node.datagrams_to_send(float(number))
    node.handle_timer(float(OTHERS))
    shown = len(node.rows(wall))
    assert len(node.paths(wall)) == shown == OTHERS * ROWS, node.dropped()
    gc.collect()
    pipe.send((before, _rss(), shown))


def _crowd(cluster: Cluster) -> list[list[bytes]]:
    """Of each node its introduction and its rows, as packed messages; not counted: it is there before."""
    packets = []
    for number in range(OTHERS):
        papers = cluster.papers(cluster.rng.randbytes(8).hex())
        address = ipaddress.ip_address(f"127.93.{1 + number // 250}.{number % 250}")
        meta = encode_tags({"id": papers.id, "vxnet": "1", "vtep": str(address), "role": "worker"})
        author = Author(papers.id, papers.key, 1)
        signed = cluster.leases(papers.id, f"10.{number // 250}.{number % 250}.0/24")
        author.put("certificate", "", Certificate(papers.certificate))
        author.put("leases", "", Leases(signed.content, signed.signature, signed.certificate))
        for host in range(ROWS):
            id_ = f"{cluster.rng.randbytes(6).hex()}.net1"
            author.put("endpoint", id_, endpoint(f"10.{number // 250}.{number % 250}.{host + 1}", f"web.{id_[:8]}"))
        alive = wire.Alive(1, papers.id, address.packed, PORT, meta, wire.VERSIONS)
        packets.append([wire.encode(alive), *(wire.encode(wire.User(rows.encode(b))) for b in author.flush())])
    return packets


def _rss() -> float:
    """MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1000


# Packets


def _packets(pipe: Connection, with_rows: bool) -> None:
    """A whole node with its sockets and its event loop; tells its processor time when asked, and when all is done."""
    rows_in = int(with_rows)
    cluster = Cluster(random.Random(1), time.time())
    papers = cluster.papers("id0")
    node = Gossip(
        node_id=papers.id,
        name="h0",
        address=ipaddress.ip_address(ADDRESS),
        port=PORT,
        tags={},
        keys=[KEY],
        key=papers.key,
        certificate=papers.certificate,
        roots=cluster.roots,
        incarnation=1,
    )

    async def serve() -> None:
        running = asyncio.ensure_future(node.run())
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0.2)
        pipe.send("ready")
        begun = time.process_time()
        count = await loop.run_in_executor(None, pipe.recv)
        answered = time.process_time() - begun
        while node.statistics()["rows_unchecked"]:
            await asyncio.sleep(0.01)
        assert node.statistics()["rows"] == 1 + rows_in * count, node.dropped()
        pipe.send((count, answered, time.process_time() - begun))
        running.cancel()

    asyncio.run(serve())


def _load(pipe: Connection, with_rows: bool) -> None:
    """Pings, each answered before too many more are sent; with a row that is new in each packet."""
    count = PACKETS // 2 if with_rows else PACKETS
    papers = Cluster(random.Random(2), time.time()).papers("id9")
    author = Author("id9", papers.key, 1)
    packets = []
    for seq in range(count):
        messages = [wire.encode(wire.Ping(seq, "h0"))]
        if with_rows:
            author.put("endpoint", f"e{seq}", endpoint("10.0.9.1", f"web.{seq}"))
            messages += [wire.encode(wire.User(rows.encode(batch))) for batch in author.flush()]
        packets += [_seal(packet) for packet in frame.compound(messages)]
    assert len(packets) == count and pipe.recv() == "ready"
    with contextlib.ExitStack() as stack:
        # Each from an address of its own: acks to one would share packets.
        senders = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(SENDERS)]
        for number, udp in enumerate(senders):
            udp.bind((f"127.93.0.{2 + number}", PORT))
            udp.settimeout(5)
        for udp, packet in zip(senders, packets, strict=False):
            udp.sendto(packet, (ADDRESS, PORT))
        for number in range(SENDERS, count + SENDERS):
            udp = senders[number % SENDERS]
            udp.recv(2048)
            if number < count:
                udp.sendto(packets[number], (ADDRESS, PORT))
    pipe.send(count)


def _node(cluster: Cluster) -> GossipNode:
    settings = {"port": PORT, "keys": [KEY], "rng": random.Random(1), "now": 0.0, "wall": time.time()}
    return cluster.node(cluster.papers("id0"), "h0", ipaddress.ip_address(ADDRESS), **settings)


def _seal(message: bytes) -> bytes:
    return frame.seal_packet(message, KeyRing([KEY]), "", os.urandom(12), crc=False)
