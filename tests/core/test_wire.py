"""The octets: memberlist's messages, packets and streams there and back, and what happens to garbage."""

from __future__ import annotations

import random
import struct
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vxnet.core import frame, rows, serf, wire
from vxnet.core.keyring import KeyRing
from vxnet.core.lzw import decompress
from vxnet.core.oldpack import IncompleteError, MalformedError, pack, unpack, unpack_all
from vxnet.model.errors import CallerError

RING = KeyRing([b"k" * 16])
NONCE = bytes(12)

MESSAGES: list[wire.Message] = [
    wire.Ping(7, "h1"),
    wire.IndirectPing(1, b"\x0a\x00\x00\x01", 7946, "h2", True),
    wire.Ack(2**32 - 1, b"\xff\xfe not text"),
    wire.Nack(5),
    wire.Suspect(3, "h1", "h2"),
    wire.Alive(4, "knoten-ä", b"\x0a\x00\x00\x01", 7946, b"\xff\x00\x80", bytes((1, 5, 2, 2, 5, 5))),
    wire.Dead(9, "h1", "h1"),
    wire.User(b"\x76 anything \xff"),
]


def lzw_compress(data: bytes) -> bytes:
    """What Go's compress/lzw writes (LSB, 8): the other half, for tests only."""
    out, bits, held = bytearray(), 0, 0
    table: dict[bytes, int] = {}
    width, following = 9, 257

    def write(code: int) -> None:
        nonlocal bits, held
        bits |= code << held
        held += width
        while held >= 8:
            out.append(bits & 0xFF)
            bits >>= 8
            held -= 8

    write(256)
    prefix = b""
    for octet in data:
        longer = prefix + bytes((octet,))
        if len(longer) == 1 or longer in table:
            prefix = longer
            continue
        write(table[prefix] if len(prefix) > 1 else prefix[0])
        following += 1
        if following == 1 << width:
            width += 1
        if width > 12:
            # Go clears the table with the old width once 4095 is given.
            width = 12
            write(256)
            table, width, following = {}, 9, 257
        else:
            table[longer] = following
        prefix = bytes((octet,))
    if prefix:
        write(table[prefix] if len(prefix) > 1 else prefix[0])
        following += 1
        if following == 1 << width and width < 12:
            width += 1
    write(257)
    if held:
        out.append(bits & 0xFF)
    return bytes(out)


# The old MessagePack


@pytest.mark.parametrize(
    "value, octets",
    [
        ({"SeqNo": 1}, "81a55365714e6f01"),
        (b"\xff" * 40, "da0028" + "ff" * 40),
        (300, "cd012c"),
        (-1, "ff"),
        (2**32, "cf0000000100000000"),
        (True, "c3"),
        ([], "90"),
        (None, "c0"),
    ],
)
def test_oldpack_has_one_raw_type(value: object, octets: str) -> None:
    assert pack(value).hex() == octets  # type: ignore[arg-type]


def test_oldpack_takes_the_newer_types_too() -> None:
    assert unpack_all(b"\xc4\x02ab") == unpack_all(b"\xd9\x02ab") == b"ab"


@pytest.mark.parametrize("data", [b"", b"\x82\xa1a", b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xffx", b"\xce\x00"])
def test_oldpack_says_when_octets_are_missing(data: bytes) -> None:
    with pytest.raises(IncompleteError):
        unpack(data)


def test_oldpack_does_not_nest_for_ever() -> None:
    with pytest.raises(MalformedError):
        unpack(b"\x91" * 10_000)


@given(st.binary(max_size=200))
def test_oldpack_raises_nothing_else(data: bytes) -> None:
    try:
        unpack(data)
    except (IncompleteError, MalformedError):
        pass


# LZW


JOINING_AGENT = bytes.fromhex(
    "0982a4416c676f00a3427566da00d3000d0c22a5e44d1a37c34a397943a6cc9c00acaacc2923670a9d3074ca3029e3a69900258748052143460ea9"
    "3f0912085895c4cd983072dc604cf3c64d00524dca5c6cf52f1029396fd8942915e60c473aa49c84695346d49c18a4a0bc9143a799110da52c622c"
    "03609495396e4c052820404001b2865415b173940995344c03985a7b740e37010080e9ddcbb7afdfbf80030b1e4cb8b0e1c388132b5eccb8b1e3c7"
    "90234b9e4cb9b2e5cb884bb9855b26c0aa8d66e8e46c2386e21c48aaa2d4a19867735c565ae9d499e3da6120a731000404"
)
"""What Debian 12's `serf agent -node s1 -bind 127.9.9.2:17946 -tag role=agent -join …` sends first."""


def test_what_a_stock_agent_sends_is_read() -> None:
    message = frame.StreamReader(None, "").feed(JOINING_AGENT)
    assert isinstance(message, wire.PushPull) and message.join
    agent = wire.NodeState(
        "s1", b"\x7f\t\t\x02", 17946, b"\xff\x81\xa4role\xa5agent", 1, wire.State.ALIVE, bytes((1, 5, 2, 2, 5, 5))
    )
    assert message.nodes == (agent,)
    state = unpack_all(message.user_state[1:])
    assert isinstance(state, dict) and state[b"StatusLTimes"] == {b"s1": 0}


@given(st.binary(max_size=3000))
def test_lzw_there_and_back(data: bytes) -> None:
    assert decompress(lzw_compress(data), len(data)) == data


@pytest.mark.parametrize("size", [200, 5_000, 60_000])
def test_lzw_grows_and_clears_its_table(rng: random.Random, size: int) -> None:
    for data in (rng.randbytes(size), b"a" * size, b"serf agent " * (size // 11)):
        assert decompress(lzw_compress(data), size) == data


def test_lzw_is_no_bomb() -> None:
    with pytest.raises(MalformedError, match="grows beyond its limit"):
        decompress(lzw_compress(b"a" * 100_000), 1000)


@given(st.binary(max_size=300))
def test_lzw_raises_nothing_else(data: bytes) -> None:
    try:
        assert len(decompress(data, 10_000)) <= 10_000
    except MalformedError:
        pass


# Packets


@pytest.mark.parametrize("ring", [None, RING], ids=["plain", "encrypted"])
@pytest.mark.parametrize("label", ["", "blue"])
@pytest.mark.parametrize("crc", [False, True])
def test_packets_there_and_back(ring: KeyRing | None, label: str, crc: bool) -> None:
    packets = list(frame.compound([wire.encode(message) for message in MESSAGES]))
    assert len(packets) == 1
    sealed = frame.seal_packet(packets[0], ring, label, NONCE, crc=crc)
    assert frame.open_packet(sealed, ring, label) == MESSAGES


def test_compounds_respect_the_room_and_the_count() -> None:
    messages = [wire.encode(wire.Nack(number)) for number in range(600)]
    packets = list(frame.compound(messages, 400))
    assert max(map(len, packets)) <= 400
    found = [message for packet in packets for message in frame.open_packet(packet, None, "")]
    assert found == [wire.Nack(number) for number in range(600)]
    large = wire.encode(wire.User(bytes(5000)))
    assert list(frame.compound([large], 400)) == [large]
    assert len(list(frame.compound([b"\x08"] * 300, 10_000))) == 2


def test_compressed_packets_are_read() -> None:
    inner = next(frame.compound([wire.encode(message) for message in MESSAGES]))
    packet = bytes((wire.Type.COMPRESS,)) + pack({"Algo": 0, "Buf": lzw_compress(inner)})
    assert frame.open_packet(packet, None, "") == MESSAGES


def test_version_0_of_the_encryption_is_not_read() -> None:
    """It would let anybody cut off the end of a packet: the version is not authenticated, and it pads."""
    plain = wire.encode(wire.Ping(1, "h1\x02"))
    sealed = frame.seal_packet(plain, RING, "", NONCE, crc=False)
    assert frame.open_packet(sealed, RING, "") == [wire.Ping(1, "h1\x02")]
    with pytest.raises(MalformedError, match="unknown version of encryption"):
        frame.open_packet(b"\x00" + sealed[1:], RING, "")


def test_a_ring_opens_with_every_key_and_seals_with_the_first() -> None:
    old, new = b"o" * 16, b"n" * 32
    both = KeyRing([new, old])
    assert both.open(KeyRing([old]).seal(b"x", b"", NONCE), b"") == b"x"
    assert KeyRing([new]).open(both.seal(b"x", b"", NONCE), b"") == b"x"
    with pytest.raises(CallerError, match="16, 24 or 32"):
        KeyRing([b"short"])


def nested(depth: int) -> bytes:
    packet = wire.encode(wire.Ping(1))
    for _ in range(depth):
        packet = bytes((wire.Type.COMPOUND, 1)) + struct.pack(">H", len(packet)) + packet
    return packet


def bombs(count: int) -> bytes:
    bomb = bytes((wire.Type.COMPRESS,)) + pack({"Algo": 0, "Buf": lzw_compress(b"\x08" + bytes(20_000))})
    return bytes((wire.Type.COMPOUND, count)) + struct.pack(f">{count}H", *[len(bomb)] * count) + bomb * count


@pytest.mark.parametrize(
    "packet, reason",
    [
        (b"", "empty"),
        (b"\xc8\x80", "unknown message type"),
        (b"\x00\xff", "not a map"),
        (b"\x00\x81\xa5SeqNo\xff", "not a number in range"),
        (b"\x00\x81\xa5SeqNo", "ends in the middle"),
        (b"\x04" + pack({"Node": b"\xff\xff"}), "text that is not UTF-8"),
        (b"\x04" + pack({"Node": "a" * 300}), "not octets, or more than 255"),
        (b"\x04" + pack({"Meta": bytes(513)}), "not octets, or more than 512"),
        (b"\x07", "a compound without its lengths"),
        (b"\x07\x02\x00\x01\x00\x09\x08", "a compound that is cut off"),
        (nested(6), "wrapped too often"),
        (b"\x09" + pack({"Algo": 1, "Buf": b""}), "unknown compression"),
        (b"\x09" + pack({"Algo": 0, "Buf": b"\x00"}), "compressed data has no end"),
        (bombs(5), "compressed data grows beyond its limit"),
    ],
)
def test_what_is_wrong_with_a_message_is_said(packet: bytes, reason: str) -> None:
    found = frame.open_packet(packet, None, "")
    assert reason in [str(problem) for problem in found if isinstance(problem, MalformedError)]


@pytest.mark.parametrize(
    "packet, ring, label, reason",
    [
        (b"\x0c\x00\x00\x00\x00\x00", None, "", "wrong checksum"),
        (b"\xf4\x04blue\x00", None, "", "another cluster's label"),
        (b"\x00", None, "blue", "no label"),
        (b"\xf4\x09blue", None, "blue", "a cut-off label"),
        (b"\x00\x80", RING, "", "too short to be encrypted"),
        (b"\x01" + bytes(40), RING, "", "no key opens it"),
        (b"\x02" + bytes(40), RING, "", "unknown version of encryption"),
    ],
)
def test_what_is_wrong_with_a_packet_is_said(packet: bytes, ring: KeyRing | None, label: str, reason: str) -> None:
    with pytest.raises(MalformedError, match=reason):
        frame.open_packet(packet, ring, label)


def test_a_bad_message_does_not_take_the_good_ones_with_it() -> None:
    good = wire.encode(wire.Ping(1, "h1"))
    found = frame.open_packet(next(frame.compound([good, b"\xc8", good])), None, "")
    assert found[0] == found[2] == wire.Ping(1, "h1") and isinstance(found[1], MalformedError)


def test_a_label_is_authenticated() -> None:
    sealed = frame.seal_packet(wire.encode(wire.Ping(1)), RING, "blue", NONCE, crc=False)
    forged = sealed.replace(b"\x04blue", b"\x05green")
    with pytest.raises(MalformedError, match="no key opens it"):
        frame.open_packet(forged, RING, "green")


@given(st.binary(max_size=400))
def test_garbage_never_raises_anything_else(data: bytes) -> None:
    for packet in (data, struct.pack(">BI", 12, zlib.crc32(data)) + data):
        for ring in (None, RING):
            try:
                frame.open_packet(packet, ring, "")
            except MalformedError:
                pass
    for kind in (*range(16), 244):
        frame.open_packet(bytes((kind,)) + data, None, "") if kind not in (12, 244) else None


@given(st.sampled_from(MESSAGES), st.data())
def test_damaged_messages_never_raise(message: wire.Message, data: st.DataObject) -> None:
    packet = bytearray(wire.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    try:
        frame.open_packet(bytes(packet[: data.draw(st.integers(0, len(packet)))]), None, "")
    except MalformedError:
        pass


# Streams

PUSH_PULL = wire.PushPull(
    True,
    tuple(wire.NodeState(f"h{n}", bytes((10, 0, 0, n)), 7946, b"\xff\x80", n, n % 4, b"\1\5\2") for n in range(40)),
    b"\x02 state",
)
STREAMS = [
    (wire.encode(PUSH_PULL), PUSH_PULL),
    (wire.encode(wire.Ping(5, "h1")), wire.Ping(5, "h1")),
    (wire.encode_user_stream(bytes(70_000)), wire.User(bytes(70_000))),
    (wire.encode(wire.Error("no")), wire.Error("no")),
    (bytes((9,)) + pack({"Algo": 0, "Buf": lzw_compress(wire.encode(PUSH_PULL))}), PUSH_PULL),
]


@pytest.mark.parametrize("ring", [None, RING], ids=["plain", "encrypted"])
@pytest.mark.parametrize("label", ["", "blue"])
@pytest.mark.parametrize("plain, message", STREAMS)
def test_streams_come_in_any_pieces(
    rng: random.Random, ring: KeyRing | None, label: str, plain: bytes, message: wire.Message
) -> None:
    sealed = frame.seal_stream(plain, ring, label, NONCE)
    for most in (1 if len(sealed) < 5000 else 1000, 7000, len(sealed)):
        reader, at, found = frame.StreamReader(ring, label), 0, None
        while at < len(sealed):
            assert found is None
            size = rng.randrange(most) + 1
            found = reader.feed(sealed[at : at + size])
            at += size
        assert found == message


@pytest.mark.parametrize(
    "data, ring, reason",
    [
        (b"\x0a\x00\x00\x00\x10" + bytes(16), None, "encrypted without a key here"),
        (b"\x00\x80", RING, "not encrypted"),
        (b"\x0a\x7f\xff\xff\xff", RING, "too long"),
        (b"\x06" + pack({"Nodes": 10**9, "UserStateLen": 0, "Join": False}), None, "too many nodes"),
        (b"\x08" + pack({"UserMsgLen": 2**31}), None, "too long"),
        (b"\x63" + bytes(8), None, "unknown message type"),
    ],
)
def test_what_is_wrong_with_a_stream_is_said(data: bytes, ring: KeyRing | None, reason: str) -> None:
    with pytest.raises(MalformedError, match=reason):
        frame.StreamReader(ring, "").feed(data)


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_streams_of_garbage_raise_nothing_else(pieces: list[bytes]) -> None:
    for first in (b"", b"\x06", b"\x08", b"\x09", b"\xf4"):
        reader = frame.StreamReader(None, "")
        try:
            for piece in (first, *pieces):
                if reader.feed(piece) is not None:
                    break
        except MalformedError:
            pass


# Serf's layer, and ours


def test_tags_are_serfs() -> None:
    meta = serf.encode_tags({"role": "worker"})
    assert meta == b"\xff\x81\xa4role\xa6worker"
    assert serf.decode_tags(meta) == {"role": "worker"}
    assert serf.decode_tags(b"web") == {"role": "web"} and serf.decode_tags(b"\xff\xc1") == {}
    with pytest.raises(CallerError, match="512"):
        serf.encode_tags({"long": "x" * 600})


def test_the_clock_moves_past_what_it_hears_and_cannot_be_wound_to_its_end() -> None:
    clock = serf.Clock()
    clock.observe(b"\x00" + pack({"LTime": 41, "Node": "h1"}))
    assert unpack_all(clock.leave_intent("me")[1:]) == {b"LTime": 43, b"Node": b"me", b"Prune": False}
    clock.observe(b"\x01" + pack({"LTime": 2**63, "Node": "h1"}))
    clock.merge(b"\x02garbage")
    assert clock.next() == 44


@given(st.binary(max_size=300))
@example(b"\x92\xa1b\xa1\x8b")  # text that is not UTF-8: of msgspec's errors only this one is not its own
def test_row_messages_of_garbage_raise_nothing_else(data: bytes) -> None:
    for decode in (lambda: rows.decode(rows.MAGIC + data), lambda: rows.decode_content(data)):
        try:
            decode()
        except MalformedError:
            pass
