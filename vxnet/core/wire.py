"""memberlist's messages, as stock agents of protocol 2 to 5 speak them: records here, maps on the wire.

::

    message  = type (1) │ map                       user     = 8 │ octets
    push/pull (in streams) = 6 │ {Nodes, UserStateLen, Join} │ node state × Nodes │ user state

Field names and numbers are memberlist's (net.go). :mod:`vxnet.core.frame` puts messages into packets and streams.
Nothing here raises anything but :class:`~vxnet.core.oldpack.MalformedError`, caught in :mod:`vxnet.core.swim`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

from vxnet.core.keyring import OVERHEAD
from vxnet.core.oldpack import MalformedError, Packable, Unpacked, pack, pack_into, unpack

PACKET_LIMIT = 1400
"""Octets of a UDP payload that vxnet sends: fits every path that an Ethernet frame does."""
PACKET_CONTENT = PACKET_LIMIT - OVERHEAD - 5
"""… of which messages: the rest is encryption or CRC."""
RECEIVE_LIMIT = 65536
META_LIMIT = 512
NAME_LIMIT = 255
STREAM_LIMIT = 16 << 20
"""Octets of one stream, compressed or not (memberlist: 10 or 20 MiB)."""
NODES_LIMIT = 20_000
LABEL_LIMIT = 255

VERSIONS = bytes((1, 5, 2, 2, 5, 5))
"""Protocol: least, most, spoken; the same of Serf's above it. 2 is what stock agents speak; 5 understands CRCs."""


class Type(IntEnum):
    PING = 0
    INDIRECT_PING = 1
    ACK = 2
    SUSPECT = 3
    ALIVE = 4
    DEAD = 5
    PUSH_PULL = 6
    COMPOUND = 7
    USER = 8
    COMPRESS = 9
    ENCRYPT = 10
    NACK = 11
    CRC = 12
    ERROR = 13
    LABEL = 244


class State(IntEnum):
    """Of a node in a push/pull."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


class Ping(NamedTuple):
    seq: int
    node: str = ""
    """Who is meant; empty (old agents): whoever has the address."""


class IndirectPing(NamedTuple):
    seq: int
    target: bytes = b""
    """4 or 16 octets."""
    port: int = 0
    node: str = ""
    nack: bool = False
    """Whether the asker wants to hear of a failure."""


class Ack(NamedTuple):
    seq: int
    payload: bytes = b""


class Nack(NamedTuple):
    seq: int


class Suspect(NamedTuple):
    incarnation: int
    node: str
    source: str = ""


class Alive(NamedTuple):
    incarnation: int
    node: str
    address: bytes
    port: int = 0
    meta: bytes = b""
    versions: bytes = b""


class Dead(NamedTuple):
    """``source`` = ``node``: it has left."""

    incarnation: int
    node: str
    source: str = ""


class User(NamedTuple):
    payload: bytes


class Error(NamedTuple):
    message: str


class NodeState(NamedTuple):
    name: str
    address: bytes
    port: int = 0
    meta: bytes = b""
    incarnation: int = 0
    state: int = State.ALIVE
    versions: bytes = b""


class PushPull(NamedTuple):
    join: bool
    nodes: tuple[NodeState, ...]
    user_state: bytes = b""


Message: TypeAlias = Ping | IndirectPing | Ack | Nack | Suspect | Alive | Dead | User | PushPull | Error


# Fields: (name on the wire, conversion of what arrives)


def to_number(bits: int) -> Callable[[Unpacked], int]:
    def convert(value: Unpacked) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << bits:
            raise MalformedError("not a number in range")
        return value

    return convert


def to_octets(limit: int) -> Callable[[Unpacked], bytes]:
    def convert(value: Unpacked) -> bytes:
        if value is None:
            return b""
        if not isinstance(value, bytes) or len(value) > limit:
            raise MalformedError(f"not octets, or more than {limit}")
        return value

    return convert


def to_text(value: Unpacked) -> str:
    try:
        return to_octets(NAME_LIMIT)(value).decode()
    except UnicodeDecodeError as error:
        raise MalformedError("text that is not UTF-8") from error


def to_flag(value: Unpacked) -> bool:
    if not isinstance(value, bool):
        raise MalformedError("not a flag")
    return value


to_u32, to_u16, to_u8 = to_number(32), to_number(16), to_number(8)
_Fields: TypeAlias = tuple[tuple[bytes, Callable[[Unpacked], object]], ...]

_ACCUSATION: _Fields = ((b"Incarnation", to_u32), (b"Node", to_text), (b"From", to_text))
_NODE_STATE: _Fields = (
    (b"Name", to_text),
    (b"Addr", to_octets(16)),
    (b"Port", to_u16),
    (b"Meta", to_octets(META_LIMIT)),
    (b"Incarnation", to_u32),
    (b"State", to_u8),
    (b"Vsn", to_octets(8)),
)
_MAPPED: dict[type[Any], tuple[Type, _Fields]] = {
    Ping: (Type.PING, ((b"SeqNo", to_u32), (b"Node", to_text))),
    IndirectPing: (
        Type.INDIRECT_PING,
        ((b"SeqNo", to_u32), (b"Target", to_octets(16)), (b"Port", to_u16), (b"Node", to_text), (b"Nack", to_flag)),
    ),
    Ack: (Type.ACK, ((b"SeqNo", to_u32), (b"Payload", to_octets(1024)))),
    Nack: (Type.NACK, ((b"SeqNo", to_u32),)),
    Suspect: (Type.SUSPECT, _ACCUSATION),
    Alive: (
        Type.ALIVE,
        (
            (b"Incarnation", to_u32),
            (b"Node", to_text),
            (b"Addr", to_octets(16)),
            (b"Port", to_u16),
            (b"Meta", to_octets(META_LIMIT)),
            (b"Vsn", to_octets(8)),
        ),
    ),
    Dead: (Type.DEAD, _ACCUSATION),
    Error: (Type.ERROR, ((b"Error", lambda value: to_octets(1024)(value).decode(errors="replace")),)),
}
_BY_TYPE: dict[int, type[Any]] = {number: kind for kind, (number, _) in _MAPPED.items()}


def _to_map(names: tuple[bytes, ...], record: tuple[Packable, ...]) -> bytes:
    out = bytearray((0x80 | len(names),))
    for name, value in zip(names, record, strict=True):
        out += name
        # A sequence number, as most are.
        if type(value) is int and 0x10000 <= value < 0x100000000:
            out += _U32.pack(0xCE, value)
        else:
            pack_into(out, value)
    return bytes(out)


_U32 = struct.Struct(">BI")


def _from_map(kind: Callable[..., Any], fields: _Fields, value: Unpacked) -> Any:
    if not isinstance(value, dict):
        raise MalformedError("not a map")
    found = []
    for name, convert in fields:
        raw = value.get(name)
        # As in Go, a missing field is its zero value.
        found.append(convert(_ZERO[convert] if raw is None and convert in _ZERO else raw))
    return kind(*found)


_ZERO: dict[Callable[[Unpacked], object], Unpacked] = {to_u32: 0, to_u16: 0, to_u8: 0, to_flag: False}
_NAMES: dict[type[Any], tuple[bytes, ...]] = {
    kind: tuple(pack(name) for name, _ in fields)
    for kind, fields in [(NodeState, _NODE_STATE), *((kind, fields) for kind, (_, fields) in _MAPPED.items())]
}
"""Packed: they are most of a message."""


def encode(message: Message) -> bytes:
    """One message, type octet first. A push/pull is for streams only."""
    if isinstance(message, User):
        return bytes((Type.USER,)) + message.payload
    if isinstance(message, PushPull):
        head = {"Nodes": len(message.nodes), "UserStateLen": len(message.user_state), "Join": message.join}
        parts = [bytes((Type.PUSH_PULL,)), pack(head)]
        parts += (encode_node_state(node) for node in message.nodes)
        return b"".join(parts) + message.user_state
    kind = type(message)
    return bytes((_MAPPED[kind][0],)) + _to_map(_NAMES[kind], message)


def encode_node_state(state: NodeState) -> bytes:
    return _to_map(_NAMES[NodeState], state)


def encode_user_stream(payload: bytes) -> bytes:
    """A user message as it looks in a stream: with its length in front."""
    return bytes((Type.USER,)) + pack({"UserMsgLen": len(payload)}) + payload


def decode(kind: int, data: bytes, at: int = 0) -> Message:
    """The message of type ``kind`` whose map begins at ``at``. Raises :class:`MalformedError`, and
    :class:`IncompleteError` if ``data`` just ends."""
    record = _BY_TYPE.get(kind)
    if record is None:
        raise MalformedError("unknown message type")
    found: Message = _read(record, _MAPPED[record][1], data, at)[0]
    return found


def decode_node_state(data: bytes, at: int) -> tuple[NodeState, int]:
    """(state, offset behind it). Raises as :func:`decode` does."""
    found: tuple[NodeState, int] = _read(NodeState, _NODE_STATE, data, at)
    return found


def _read(kind: Callable[..., Any], fields: _Fields, data: bytes, at: int) -> tuple[Any, int]:
    """A map as vxnet writes it, all fields in order, is read without making a dict of it; any other with."""
    begin = at
    names = _NAMES[kind]  # type: ignore[index]
    if data[at : at + 1] == bytes((0x80 | len(names),)):
        at += 1
        found = []
        for name, (_, convert) in zip(names, fields, strict=True):
            if not data.startswith(name, at):
                break
            at += len(name)
            head = data[at] if at < len(data) else -1
            value: Unpacked
            if 0 <= head < 0x80:
                value = head
                at += 1
            elif 0xA0 <= head < 0xC0 and at + (head & 0x1F) < len(data):
                value = data[at + 1 : at + 1 + (head & 0x1F)]
                at += 1 + (head & 0x1F)
            else:
                value, at = unpack(data, at)
                if value is None:
                    break
            found.append(convert(value))
        else:
            return kind(*found), at
    unpacked, at = unpack(data, begin)
    return _from_map(kind, fields, unpacked), at
