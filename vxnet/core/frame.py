"""memberlist's packets and streams: messages joined, compressed, checked, encrypted, labelled, and back.

::

    packet = [label] seal( [CRC] message )          compound = 7 │ count (1) │ length (2) × count │ messages
    stream = [label] seal( message )                compress = 9 │ {Algo: 0, Buf: LZW}
    label  = 244 │ length (1) │ name                CRC      = 12 │ CRC-32 of what follows (4)
    sealed stream = 10 │ length (4) │ sealed

Source: memberlist's net.go, util.go, label.go. What a peer sends costs its length and at most
:data:`~vxnet.core.wire.RECEIVE_LIMIT` more.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from vxnet.core.keyring import OVERHEAD, KeyRing
from vxnet.core.lzw import decompress
from vxnet.core.oldpack import IncompleteError, MalformedError, Unpacked, unpack, unpack_all
from vxnet.core.wire import (
    NODES_LIMIT,
    PACKET_CONTENT,
    RECEIVE_LIMIT,
    STREAM_LIMIT,
    Message,
    NodeState,
    PushPull,
    Type,
    User,
    decode,
    decode_node_state,
    to_flag,
    to_octets,
    to_u32,
)

_MAX_WRAPS = 4
_MAX_MESSAGES = 2048
_COMPOUND_PARTS = 255


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
            else:
                self.found.append(decode(kind, data, 1))
        except MalformedError as error:
            self.found.append(error)
        except IncompleteError:
            self.found.append(MalformedError("ends in the middle"))


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
    return decompress(to_octets(STREAM_LIMIT)(value.get(b"Buf")), limit)


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
        return decode(kind, self._data, 1)

    def _user(self) -> Message:
        return User(self._rest(b"UserMsgLen"))

    def _states(self) -> Message:
        count = to_u32(self._head.get(b"Nodes", 0))
        if count > NODES_LIMIT:
            raise MalformedError("too many nodes")
        while len(self._nodes) < count:
            node, self._at = decode_node_state(self._data, self._at)
            self._nodes.append(node)
        join = to_flag(self._head.get(b"Join", False))
        return PushPull(join, tuple(self._nodes), self._rest(b"UserStateLen"))

    def _rest(self, name: bytes) -> bytes:
        length = to_u32(self._head.get(name, 0))
        if length > self._limit:
            raise MalformedError("a stream that is too long")
        if self._at + length > len(self._data):
            self._need = self._size + self._at + length - len(self._data)
            raise IncompleteError
        return self._data[self._at : self._at + length]
