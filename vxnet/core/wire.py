"""memberlist's messages, as stock agents of protocol 2 to 5 speak them: records here, maps on the wire.

::

    message  = type (1) │ map                       user     = 8 │ octets
    push/pull (in streams) = 6 │ {Nodes, UserStateLen, Join} │ node state × Nodes │ user state

Field names and numbers are memberlist's (net.go). :mod:`vxnet.core.frame` puts messages into packets and streams.
Nothing here raises anything but :class:`~vxnet.core.oldpack.MalformedError`, caught in :mod:`vxnet.core.swim`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

from vxnet.core.keyring import OVERHEAD
from vxnet.core.oldpack import MalformedError, Packable, Unpacked, pack

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
_Fields: TypeAlias = tuple[tuple[str, Callable[[Unpacked], object]], ...]

_ACCUSATION: _Fields = (("Incarnation", to_u32), ("Node", to_text), ("From", to_text))
_NODE_STATE: _Fields = (
    ("Name", to_text),
    ("Addr", to_octets(16)),
    ("Port", to_u16),
    ("Meta", to_octets(META_LIMIT)),
    ("Incarnation", to_u32),
    ("State", to_u8),
    ("Vsn", to_octets(8)),
)
_MAPPED: dict[type[Any], tuple[Type, _Fields]] = {
    Ping: (Type.PING, (("SeqNo", to_u32), ("Node", to_text))),
    IndirectPing: (
        Type.INDIRECT_PING,
        (("SeqNo", to_u32), ("Target", to_octets(16)), ("Port", to_u16), ("Node", to_text), ("Nack", to_flag)),
    ),
    Ack: (Type.ACK, (("SeqNo", to_u32), ("Payload", to_octets(1024)))),
    Nack: (Type.NACK, (("SeqNo", to_u32),)),
    Suspect: (Type.SUSPECT, _ACCUSATION),
    Alive: (
        Type.ALIVE,
        (
            ("Incarnation", to_u32),
            ("Node", to_text),
            ("Addr", to_octets(16)),
            ("Port", to_u16),
            ("Meta", to_octets(META_LIMIT)),
            ("Vsn", to_octets(8)),
        ),
    ),
    Dead: (Type.DEAD, _ACCUSATION),
    Error: (Type.ERROR, (("Error", lambda value: to_octets(1024)(value).decode(errors="replace")),)),
}
_BY_TYPE: dict[int, type[Any]] = {number: kind for kind, (number, _) in _MAPPED.items()}


def _to_map(fields: _Fields, record: tuple[Packable, ...]) -> dict[str, Packable]:
    return {name: value for (name, _), value in zip(fields, record, strict=True)}


def _from_map(kind: Callable[..., Any], fields: _Fields, value: Unpacked) -> Any:
    if not isinstance(value, dict):
        raise MalformedError("not a map")
    found = []
    for name, convert in fields:
        raw = value.get(name.encode())
        # As in Go, a missing field is its zero value.
        found.append(convert(_ZERO[convert] if raw is None and convert in _ZERO else raw))
    return kind(*found)


_ZERO: dict[Callable[[Unpacked], object], Unpacked] = {to_u32: 0, to_u16: 0, to_u8: 0, to_flag: False}


def encode(message: Message) -> bytes:
    """One message, type octet first. A push/pull is for streams only."""
    if isinstance(message, User):
        return bytes((Type.USER,)) + message.payload
    if isinstance(message, PushPull):
        head = {"Nodes": len(message.nodes), "UserStateLen": len(message.user_state), "Join": message.join}
        parts = [bytes((Type.PUSH_PULL,)), pack(head)]
        parts += (pack(_to_map(_NODE_STATE, node)) for node in message.nodes)
        return b"".join(parts) + message.user_state
    number, fields = _MAPPED[type(message)]
    return bytes((number,)) + pack(_to_map(fields, message))


def encode_user_stream(payload: bytes) -> bytes:
    """A user message as it looks in a stream: with its length in front."""
    return bytes((Type.USER,)) + pack({"UserMsgLen": len(payload)}) + payload


def decode(kind: int, value: Unpacked) -> Message:
    """The message of type ``kind`` whose map is ``value``. Raises :class:`MalformedError`."""
    record = _BY_TYPE.get(kind)
    if record is None:
        raise MalformedError("unknown message type")
    found: Message = _from_map(record, _MAPPED[record][1], value)
    return found


def decode_node_state(value: Unpacked) -> NodeState:
    found: NodeState = _from_map(NodeState, _NODE_STATE, value)
    return found
