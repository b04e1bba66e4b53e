"""memberlist's messages and their octets, as stock agents of protocol 2 to 5 speak them.

::

    packet = [label] seal( [CRC] message )          message = type (1) │ map
    stream = [label] seal( message )                compound = 7 │ count (1) │ length (2) × count │ messages
                                                    compress = 9 │ {Algo: 0, Buf: LZW}
                                                    user     = 8 │ octets

Field names and numbers are memberlist's (net.go, label.go). Nothing here raises anything but
:class:`~vxnet.core.oldpack.MalformedError` and :class:`~vxnet.core.oldpack.IncompleteError`, both caught in
:mod:`vxnet.core.swim`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

from vxnet.core.keyring import OVERHEAD, KeyRing
from vxnet.core.lzw import decompress
from vxnet.core.oldpack import IncompleteError, MalformedError, Packable, Unpacked, pack, unpack, unpack_all

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
_MAX_WRAPS = 4
_MAX_MESSAGES = 2048
_COMPOUND_PARTS = 255

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


def _number(bits: int) -> Callable[[Unpacked], int]:
    def convert(value: Unpacked) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << bits:
            raise MalformedError("not a number in range")
        return value

    return convert


def _octets(limit: int) -> Callable[[Unpacked], bytes]:
    def convert(value: Unpacked) -> bytes:
        if value is None:
            return b""
        if not isinstance(value, bytes) or len(value) > limit:
            raise MalformedError(f"not octets, or more than {limit}")
        return value

    return convert


def _text(value: Unpacked) -> str:
    try:
        return _octets(NAME_LIMIT)(value).decode()
    except UnicodeDecodeError as error:
        raise MalformedError("text that is not UTF-8") from error


def _flag(value: Unpacked) -> bool:
    if not isinstance(value, bool):
        raise MalformedError("not a flag")
    return value


_u32, _u16, _u8 = _number(32), _number(16), _number(8)
_Fields: TypeAlias = tuple[tuple[str, Callable[[Unpacked], object]], ...]

_ACCUSATION: _Fields = (("Incarnation", _u32), ("Node", _text), ("From", _text))
_NODE_STATE: _Fields = (
    ("Name", _text),
    ("Addr", _octets(16)),
    ("Port", _u16),
    ("Meta", _octets(META_LIMIT)),
    ("Incarnation", _u32),
    ("State", _u8),
    ("Vsn", _octets(8)),
)
_MAPPED: dict[type[Any], tuple[Type, _Fields]] = {
    Ping: (Type.PING, (("SeqNo", _u32), ("Node", _text))),
    IndirectPing: (
        Type.INDIRECT_PING,
        (("SeqNo", _u32), ("Target", _octets(16)), ("Port", _u16), ("Node", _text), ("Nack", _flag)),
    ),
    Ack: (Type.ACK, (("SeqNo", _u32), ("Payload", _octets(1024)))),
    Nack: (Type.NACK, (("SeqNo", _u32),)),
    Suspect: (Type.SUSPECT, _ACCUSATION),
    Alive: (
        Type.ALIVE,
        (
            ("Incarnation", _u32),
            ("Node", _text),
            ("Addr", _octets(16)),
            ("Port", _u16),
            ("Meta", _octets(META_LIMIT)),
            ("Vsn", _octets(8)),
        ),
    ),
    Dead: (Type.DEAD, _ACCUSATION),
    Error: (Type.ERROR, (("Error", lambda value: _octets(1024)(value).decode(errors="replace")),)),
}
_BY_TYPE = {number: kind for kind, (number, _) in _MAPPED.items()}


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


_ZERO: dict[Callable[[Unpacked], object], Unpacked] = {_u32: 0, _u16: 0, _u8: 0, _flag: False}


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


def compound(messages: Iterable[bytes], room: int = PACKET_CONTENT) -> Iterator[bytes]:
    """Packs encoded messages, in order, into as few packets of ``room`` octets as that takes. A message that is
    larger travels alone."""
    held: list[bytes] = []
    size = 2
    for message in messages:
        if held and (size + 2 + len(message) > room or len(held) == _COMPOUND_PARTS):
            yield _join(held)
            held, size = [], 2
        held.append(message)
        size += 2 + len(message)
    if held:
        yield _join(held)


def _join(messages: Sequence[bytes]) -> bytes:
    if len(messages) == 1:
        return messages[0]
    lengths = struct.pack(f">{len(messages)}H", *map(len, messages))
    return bytes((Type.COMPOUND, len(messages))) + lengths + b"".join(messages)


def seal_packet(message: bytes, ring: KeyRing | None, label: str, nonce: bytes, *, crc: bool) -> bytes:
    """What goes into a datagram. ``crc`` where the receiver understands it (protocol 5); with a key it adds nothing."""
    if ring is not None:
        message = ring.seal(message, label.encode(), nonce)
    elif crc:
        message = struct.pack(">BI", Type.CRC, zlib.crc32(message)) + message
    return _labelled(message, label)


def open_packet(data: bytes, ring: KeyRing | None, label: str) -> list[Message | MalformedError]:
    """The messages in a datagram; a bad one among good ones stands in its place as what is wrong with it. Raises
    :class:`MalformedError` if nothing of it can be read."""
    data = _unlabelled(data, label)
    if ring is not None:
        data = ring.open(data, label.encode())
    if len(data) >= 5 and data[0] == Type.CRC:
        if struct.unpack_from(">I", data, 1)[0] != zlib.crc32(data[5:]):
            raise MalformedError("wrong checksum")
        data = data[5:]
    opening = _Opening()
    opening.message(data, 0)
    return opening.found


class _Opening:
    """One packet's messages, with what they may cost: wraps within wraps must not multiply."""

    def __init__(self) -> None:
        self.found: list[Message | MalformedError] = []
        self._inflated = 0

    def message(self, data: bytes, wraps: int) -> None:
        if len(self.found) >= _MAX_MESSAGES:
            return
        try:
            if not data:
                raise MalformedError("empty")
            if wraps > _MAX_WRAPS:
                raise MalformedError("wrapped too often")
            kind, body = data[0], data[1:]
            if kind == Type.COMPOUND:
                for part in _split(body):
                    self.message(part, wraps + 1)
            elif kind == Type.COMPRESS:
                inflated = _inflate(unpack_all(body), RECEIVE_LIMIT - self._inflated)
                self._inflated += len(inflated)
                self.message(inflated, wraps + 1)
            elif kind == Type.USER:
                self.found.append(User(body))
            elif kind in _BY_TYPE:
                record = _BY_TYPE[Type(kind)]
                self.found.append(_from_map(record, _MAPPED[record][1], unpack_all(body)))
            else:
                raise MalformedError("unknown message type")
        except MalformedError as error:
            self.found.append(error)


def _split(body: bytes) -> list[bytes]:
    count = body[0] if body else 0
    at = 1 + 2 * count
    if not count or at > len(body):
        raise MalformedError("a compound without its lengths")
    parts = []
    for length in struct.unpack_from(f">{count}H", body, 1):
        if at + length > len(body):
            raise MalformedError("a compound that is cut off")
        parts.append(body[at : at + length])
        at += length
    return parts


def _inflate(value: Unpacked, limit: int) -> bytes:
    if not isinstance(value, dict) or value.get(b"Algo", 0) != 0:
        raise MalformedError("unknown compression")
    return decompress(_octets(STREAM_LIMIT)(value.get(b"Buf")), limit)


def _labelled(data: bytes, label: str) -> bytes:
    if not label:
        return data
    name = label.encode()
    return bytes((Type.LABEL, len(name))) + name + data


def _unlabelled(data: bytes, label: str) -> bytes:
    found = ""
    if data[:1] == bytes((Type.LABEL,)):
        if len(data) < 2 or not data[1] or len(data) < 2 + data[1]:
            raise MalformedError("a cut-off label")
        found = data[2 : 2 + data[1]].decode(errors="replace")
        data = data[2 + data[1] :]
    if found != label:
        raise MalformedError("another cluster's label" if found else "no label")
    return data


# Streams


def seal_stream(message: bytes, ring: KeyRing | None, label: str, nonce: bytes) -> bytes:
    if ring is not None:
        head = struct.pack(">BI", Type.ENCRYPT, OVERHEAD + len(message))
        message = head + ring.seal(message, head + label.encode(), nonce)
    return _labelled(message, label)


class StreamReader:
    """The octets of one stream to its one message. Feed it what comes; nothing but a head is parsed twice."""

    def __init__(self, ring: KeyRing | None, label: str, limit: int = STREAM_LIMIT) -> None:
        self._ring = ring
        self._label = label
        self._limit = limit
        self._data = b""
        self._at = 0
        self._need = 1
        """Octets in all below which another look is useless."""
        self._size = 0
        self._step: Callable[[], Message] = self._start
        self._pending: list[bytes] = []
        self._nodes: list[NodeState] = []
        self._head: dict[bytes, Unpacked] = {}

    def feed(self, data: bytes) -> Message | None:
        """The message once it is whole, None before. Raises :class:`MalformedError`."""
        self._pending.append(data)
        self._size += len(data)
        if self._size > self._limit:
            raise MalformedError("a stream that is too long")
        if self._size < self._need:
            return None
        self._data = b"".join((self._data, *self._pending))
        self._pending = []
        try:
            return self._step()
        except IncompleteError:
            return None

    def _start(self) -> Message:
        data = self._data
        if data[:1] == bytes((Type.LABEL,)):
            if len(data) < 2 or len(data) < 2 + data[1]:
                raise IncompleteError
        elif not data:
            raise IncompleteError
        self._data = _unlabelled(data, self._label)
        self._step = self._unseal
        return self._unseal()

    def _unseal(self) -> Message:
        if not self._data:
            raise IncompleteError
        if (self._data[0] == Type.ENCRYPT) != (self._ring is not None):
            raise MalformedError("encrypted without a key here" if self._ring is None else "not encrypted")
        if self._ring is not None:
            if len(self._data) < 5:
                raise IncompleteError
            length = struct.unpack_from(">I", self._data, 1)[0]
            if length > self._limit:
                raise MalformedError("a stream that is too long")
            if len(self._data) < 5 + length:
                self._need = self._size + 5 + length - len(self._data)
                raise IncompleteError
            head = self._data[:5]
            self._data = self._ring.open(self._data[5 : 5 + length], head + self._label.encode())
            self._step = self._kind
            return self._whole(self._kind)
        self._step = self._kind
        return self._kind()

    def _whole(self, step: Callable[[], Message]) -> Message:
        try:
            return step()
        except IncompleteError as error:
            raise MalformedError("ends in the middle") from error

    def _kind(self, *, inflated: bool = False) -> Message:
        if not self._data:
            raise IncompleteError
        kind = self._data[0]
        if kind == Type.COMPRESS and not inflated:
            value, _ = unpack(self._data, 1)
            self._data = _inflate(value, self._limit)
            return self._whole(lambda: self._kind(inflated=True))
        if kind in (Type.PUSH_PULL, Type.USER):
            head, self._at = unpack(self._data, 1)
            if not isinstance(head, dict):
                raise MalformedError("not a map")
            self._head = head
            self._step = self._states if kind == Type.PUSH_PULL else self._user
            return self._step()
        if kind not in _BY_TYPE:
            raise MalformedError("unknown message type")
        record = _BY_TYPE[Type(kind)]
        value, _ = unpack(self._data, 1)
        found: Message = _from_map(record, _MAPPED[record][1], value)
        return found

    def _user(self) -> Message:
        return User(self._rest(b"UserMsgLen"))

    def _states(self) -> Message:
        count = _u32(self._head.get(b"Nodes", 0))
        if count > NODES_LIMIT:
            raise MalformedError("too many nodes")
        while len(self._nodes) < count:
            value, self._at = unpack(self._data, self._at)
            self._nodes.append(_from_map(NodeState, _NODE_STATE, value))
        join = _flag(self._head.get(b"Join", False))
        return PushPull(join, tuple(self._nodes), self._rest(b"UserStateLen"))

    def _rest(self, name: bytes) -> bytes:
        length = _u32(self._head.get(name, 0))
        if length > self._limit:
            raise MalformedError("a stream that is too long")
        if self._at + length > len(self._data):
            self._need = self._size + self._at + length - len(self._data)
            raise IncompleteError
        return self._data[self._at : self._at + length]
