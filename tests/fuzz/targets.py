"""What is fuzzed: a function of octets a target, its seeds, and what must hold of it.

A target raises only if vxnet is at fault: an exception that leaves the core, an answer out of all proportion, memory
that a peer can fill. :class:`MalformedError` is how decoders refuse, and is caught here.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from tests.gossip_cluster import Cluster, Papers, endpoint
from vxnet.core import checkup, frame, rows, serf, wire
from vxnet.core.author import Author
from vxnet.core.gossip import GossipNode
from vxnet.core.keyring import KeyRing
from vxnet.core.lzw import decompress
from vxnet.core.oldpack import IncompleteError, MalformedError, pack, unpack, unpack_all
from vxnet.core.rows import Batch, BatchContent, decode_content
from vxnet.core.trust import ROWS_PURPOSE
from vxnet.model import codec
from vxnet.model.row import Applied, Certificate, Leases, Row

WALL = 1_800_000_000.0
PEER = ("192.0.2.2", 7946)
RING = KeyRing([b"k" * 16, b"o" * 32])
NONCE = bytes(12)
LABEL = "blue"
GROWTH = 64
"""Octets of answers for one octet that came, at most: rows that are asked for are larger than the asking."""
ANSWER_FLOOR = 64 << 10

cluster = Cluster(random.Random(7), WALL)
papers: dict[str, Papers] = {name: cluster.papers(name) for name in ("id1", "id2", "id3")}


class Target(NamedTuple):
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


# Decoders


def packet(data: bytes) -> None:
    """The first octet says how it is wrapped, so that what is behind a cipher or a checksum is reached as well."""
    if not data:
        return
    how, message = data[0], data[1:]
    ring = RING if how & 1 else None
    label = LABEL if how & 2 else ""
    if how & 4:
        message = struct.pack(">BI", wire.Type.CRC, zlib.crc32(message)) + message
    if how & 8:
        message = frame.seal_packet(message, ring, label, NONCE, crc=False)
    try:
        found = frame.open_packet(message, ring, label)
    except MalformedError:
        return
    assert len(found) <= 2048 + 16
    for one in found:
        if not isinstance(one, (MalformedError, wire.User)):
            wire.encode(one)


def stream(data: bytes) -> None:
    """In pieces whose lengths the input chooses."""
    if not data:
        return
    how, message = data[0], data[1:]
    ring = RING if how & 1 else None
    label = LABEL if how & 2 else ""
    if how & 8:
        message = frame.seal_stream(message, ring, label, NONCE)
    reader = frame.StreamReader(ring, label, limit=1 << 20)
    step = 1 + (how >> 4) * 97
    try:
        for at in range(0, len(message), step):
            if reader.feed(message[at : at + step]) is not None:
                return
    except MalformedError:
        pass


def lzw(data: bytes) -> None:
    try:
        assert len(decompress(data, 10_000)) <= 10_000
    except MalformedError:
        pass


def oldpack(data: bytes) -> None:
    try:
        value, end = unpack(data)
        assert end <= len(data)
    except IncompleteError:
        return
    except MalformedError:
        return
    assert unpack_all(data) == value or value != value or "nan" in repr(value)


def serfs(data: bytes) -> None:
    tags = serf.decode_tags(data)
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in tags.items())
    clock = serf.Clock()
    clock.observe(data)
    clock.merge(data)
    serf.is_for_everybody(data)
    assert clock.next() <= serf.Clock.LIMIT + 1


def row_message(data: bytes) -> None:
    try:
        message = rows.decode(rows.MAGIC + data)
    except MalformedError:
        return
    assert isinstance(rows.encode(message), bytes)


def batch_content(data: bytes) -> None:
    for packed in (data, zlib.compress(data)):
        try:
            content = decode_content(packed)
        except MalformedError:
            continue
        assert content.owner and len(content.key) == 32


def word(data: bytes) -> None:
    """Of an examination: by 7946, and what is said in packets to the VXLAN port, which have no key."""
    checkup.read_content(data)
    try:
        said = checkup.decode(checkup.MAGIC + data)
    except MalformedError:
        return
    side = checkup.Side()
    for now in (1.0, 2.0):
        side.hear(said, WALL, now)
        checkup.encode(side.say(said.id, "h1", "udp", WALL, now, "", asked=False))


# Whole nodes


def node(keys: tuple[bytes, ...] = ()) -> GossipNode:
    """``h1`` that has met ``h2`` (a node) and ``s1`` (an agent), and has a row of each of both nodes."""
    made = cluster.node(
        papers["id1"],
        tags={"vtep": "192.0.2.1"},
        keys=keys,
        leases=LEASES["id1"],
        rng=random.Random(1),
        now=10.0,
        wall=WALL,
    )
    for name, address, tags in (("h2", 2, {"id": "id2", "vxnet": "1"}), ("s1", 9, {"role": "agent"})):
        alive = wire.Alive(1, name, bytes((192, 0, 2, address)), 7946, serf.encode_tags(tags), wire.VERSIONS)
        made.swim.hear_alive(alive, pass_on=False)
    made.table.receive(KNOWN)
    made.datagrams_to_send(10.0)
    return made


def _author(name: str) -> Author:
    author = Author(name, papers[name].key, 1)
    author.put("certificate", "", Certificate(papers[name].certificate))
    leases = LEASES[name]
    author.put("leases", "", Leases(leases.content, leases.signature, leases.certificate))
    author.put("endpoint", "e", endpoint("10.0.2.5", "web"))
    return author


LEASES = {name: cluster.leases(name, f"10.0.{name[2:]}.0/24") for name in papers}
KNOWN = next(iter(_author("id2").flush()))


def datagrams(data: bytes) -> None:
    """A whole node, and some time: what came in several packets, each behind its length."""
    made = node()
    now = 10.0
    for part in _parts(data):
        now += 0.05
        made.receive_datagram(part, PEER, now)
        _look(made, len(part), now)
    for _ in range(5):
        now += 0.4
        made.handle_timer(now)
        _look(made, len(data), now)


def streams(data: bytes) -> None:
    """Connections of others, each with what a part says; and answers to our own."""
    made = node()
    made.join([PEER], 10.0)
    opened = made.streams_to_open()
    now = 10.0
    for part in _parts(data):
        now += 0.05
        theirs = made.accept(PEER)
        _bounded(theirs.receive(part, now), len(part))
        theirs.receive(b"", now)
        if opened:
            ours = opened.pop()
            ours.receive(part, now)
            ours.fail(now)
        _look(made, len(part), now)


def user_messages(data: bytes) -> None:
    """Row messages past what memberlist wraps them in, so that more of them get through."""
    made = node()
    now = 10.0
    for part in _parts(data):
        now += 0.05
        made.receive_datagram(bytes((wire.Type.USER,)) + rows.MAGIC + part, PEER, now)
        _look(made, len(part), now)


def evidence(data: bytes) -> None:
    """Rows that their owner signed well: certificates, leases and endpoints with any octets in them."""
    made = node()
    parts = list(_parts(data))
    values = zip(("certificate", "leases", "endpoint", "applied", "gateway"), parts, strict=False)
    signed = tuple(Row(kind, "" if kind != "endpoint" else "e", 10 + number, value or None)
                   for number, (kind, value) in enumerate(values))  # fmt: skip
    for owner in ("id2", "id3"):
        public = papers[owner].key.public_key().public_bytes_raw()
        content = codec.to_wire(BatchContent(owner, public, 1, signed, 0))
        batch = Batch(content, papers[owner].key.sign(ROWS_PURPOSE.encode() + b"\0" + content))
        made.receive_datagram(bytes((wire.Type.USER,)) + rows.encode(batch), PEER, 11.0)
    _look(made, len(data), 11.1)
    made.rows(WALL + 1e6)
    for owner in ("id1", "id2", "id3"):
        made.places(owner, WALL)


def _look(made: GossipNode, came: int, now: float) -> None:
    """As the daemon does after everything that comes."""
    sent = sum(len(packet) for packet, _ in made.datagrams_to_send(now))
    opened = made.streams_to_open()
    sent += sum(len(one.to_send) for one in opened)
    assert sent <= ANSWER_FLOOR + GROWTH * came, f"{sent} octets out for {came} in"
    assert len(opened) <= 16
    made.rows(WALL)
    made.paths(WALL)
    made.members()
    made.refused(WALL)
    made.statistics()
    while made.next_event() is not None:
        pass
    assert len(made.dropped()) < 64, "reasons are counted, so there must be few"


def _bounded(answer: bytes, came: int) -> None:
    assert len(answer) <= ANSWER_FLOOR + GROWTH * came


def _parts(data: bytes) -> Iterator[bytes]:
    """Two octets of length before each."""
    at = 0
    while at + 2 <= len(data):
        (length,) = struct.unpack_from(">H", data, at)
        yield data[at + 2 : at + 2 + length]
        at += 2 + length


def joined(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">H", len(part)) + part for part in parts)


# Seeds

MESSAGES = (
    wire.Ping(7, "h1"),
    wire.IndirectPing(8, bytes((192, 0, 2, 2)), 7946, "h2", True),
    wire.Ack(9, b"payload"),
    wire.Nack(9),
    wire.Suspect(1, "h2", "h3"),
    wire.Suspect(3, "h1", "h3"),
    wire.Alive(2, "h3", bytes((192, 0, 2, 3)), 7946, serf.encode_tags({"id": "id3", "vxnet": "1"}), wire.VERSIONS),
    wire.Dead(1, "h2", "h2"),
    wire.Error("no"),
    wire.User(b"\x00" + pack({"LTime": 4, "Node": "s1", "Prune": False})),
    wire.User(b"\x03" + pack({"LTime": 4, "Name": "deploy", "Payload": b"x", "CC": True})),
)
PUSH_PULL = wire.PushPull(
    True,
    tuple(
        wire.NodeState(f"h{n}", bytes((192, 0, 2, n)), 7946, b"\xff\x80", n, n % 4, wire.VERSIONS) for n in range(2, 9)
    ),
    serf.Clock().user_state(),
)
ROW_MESSAGES = (
    KNOWN,
    rows.Batches((KNOWN,)),
    rows.Relay(KNOWN, 0, 1 << 32),
    rows.Ids(KNOWN.signature[:8] + bytes(8)),
    rows.Ask(KNOWN.signature[:8], "h2"),
    rows.Digest(bytes(8), bytes(8)),
    rows.Buckets(bytes(8 * rows.BUCKETS)),
    rows.Have((1, 2, 3), (rows.Held("id2", bytes(32), bytes(8)),), True, "h2"),
    rows.Roll(bytes(8 * rows.BUCKETS), "h2"),
    rows.Present((1, 2), bytes(16), "h2"),
    rows.States(wire.encode_node_state(PUSH_PULL.nodes[0]), bytes(8), "h2"),
    rows.Want("id1", papers["id1"].key.public_key().public_bytes_raw(), (0, 0), ((1, (1,)),), "h2"),
)
WORD = checkup.encode(checkup.Word(b"12345678", "h2", "udp", ("udp", "tcp"), WALL, WALL - 1, 0.5, "machine", True))
_encoded = tuple(wire.encode(message) for message in MESSAGES)
_compound = next(frame.compound(_encoded))
_stored = b"\x09" + pack({"Algo": 0, "Buf": b"\x00\x11\x00\x0c\x04"})
_values = (
    papers["id2"].certificate,
    codec.to_wire(Certificate(papers["id2"].certificate)),
    codec.to_wire(Leases(LEASES["id2"].content, LEASES["id2"].signature, LEASES["id2"].certificate)),
    codec.to_wire(endpoint("10.0.2.5", "web")),
    codec.to_wire(Applied(versions=(("id1", 1, 2),))),
)
_row_octets = tuple(msgspec.msgpack.encode(message) for message in ROW_MESSAGES)

_row_packets = tuple(bytes((wire.Type.USER,)) + rows.MAGIC + one for one in _row_octets)
_row_stream = wire.encode_user_stream(rows.MAGIC + _row_octets[1])

TARGETS: dict[str, Target] = {
    "packet": Target(packet, tuple(bytes((how,)) + one for how in (0, 6, 9, 11) for one in (_compound, _stored))),
    "stream": Target(stream, tuple(bytes((how,)) + wire.encode(PUSH_PULL) for how in (0, 0x19, 0xFB))),
    "lzw": Target(lzw, (b"\x00\x11\x00\x0c\x04", bytes(range(200)))),
    "oldpack": Target(oldpack, tuple(one[1:] for one in _encoded)),
    "serfs": Target(serfs, (serf.encode_tags({"a": "b"}), serf.Clock().user_state(), _encoded[-1][1:])),
    "row_message": Target(row_message, _row_octets),
    "batch_content": Target(batch_content, (KNOWN.content, zlib.decompress(KNOWN.content))),
    "word": Target(word, (WORD[len(checkup.MAGIC) :], checkup.content(checkup.Packet(b"12345678", True, "h2"), 99))),
    "datagrams": Target(datagrams, (joined(*_encoded), joined(_compound, *_row_packets, wire.encode(wire.User(WORD))))),
    "streams": Target(streams, (joined(wire.encode(PUSH_PULL), *_encoded[:3]), joined(_row_stream))),
    "user_messages": Target(user_messages, (joined(*_row_octets),)),
    "evidence": Target(evidence, (joined(*_values[1:]), joined(*_values))),
}
