"""The daemon's end of the user-space tunnel's control socket. What travels is in csrc/vxlan/command.h; it is packed by
hand, as an FDB may be 100,000 rows.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec

from vxnet.host.tap import Tap
from vxnet.model.errors import HostError

ANSWER_S: Final = 10.0
CURE: Final = "if it stays so, `pkill -KILL -f vxnet.host.uvxlan` ends it, and vxnet starts another"

_SEGMENT, _REMOVE, _PUT, _DROP, _STAGE, _COMMIT, _FLOOD, _PEERS = range(1, 9)
_SEGMENTS, _ROWS, _FLOODS, _PEERED, _COUNTERS, _STOP = range(9, 15)
_NOT_UNDERSTOOD = 0
_UDP_JOINS = 1

_HEAD = struct.Struct("=II")
_REPLY = struct.Struct("=Ii")
_PAIR = struct.Struct("=II")
_NUMBER = struct.Struct("=I")
_VIEW = struct.Struct("=IIII")
_COUNT = struct.Struct("=Q")
_ROW: Final = 24
_ADDRESS: Final = 16
_MESSAGE_MAX: Final = 65536
_ROWS_A_MESSAGE: Final = 2700
_MAPPED: Final = bytes(10) + b"\xff\xff"

Rows = dict[bytes, bytes]
"""MAC → VTEP, packed."""


class Counters(msgspec.Struct, frozen=True):
    """csrc/vxlan/vxlan.h says what each is."""

    sent_frames: int
    sent_octets: int
    received_frames: int
    received_octets: int
    joined_frames: int
    unknown_destination: int
    bad_frame: int
    too_big: int
    not_sent: int
    unreachable: int
    unknown_source: int
    truncated: int
    bad_header: int
    unknown_vni: int
    bad_checksum: int
    not_written: int
    congested: int = 0
    """0, too, if the forwarder is an older version's."""


class SegmentView(NamedTuple):
    mtu: int
    udp_joins: bool
    rows: int


class Forwarder:
    """A connection to the forwarder. Everything raises HostError when it is gone or refuses. One that did not answer in
    time is closed, as its answer may still come and would be taken for the next one's.
    """

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(ANSWER_S)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise HostError(f"no user-space tunnel answers at {path}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """The forwarder goes on."""
        self._socket.close()

    def add(self, vni: int, mtu: int, tap: Tap) -> None:
        """A segment and its TAP; of one that is there, the TAP is taken in the other's place and the rows stay. If the
        TAP is refused, there is no such segment.
        """
        self._ask(_SEGMENT, vni, _PAIR.pack(mtu, _UDP_JOINS if tap.udp_joins else 0), tap.descriptors)

    def set_mtu(self, vni: int, mtu: int, *, udp_joins: bool) -> None:
        """Of a segment that is there."""
        self._ask(_SEGMENT, vni, _PAIR.pack(mtu, _UDP_JOINS if udp_joins else 0))

    def remove(self, vni: int) -> None:
        self._ask(_REMOVE, vni)

    def segments(self) -> dict[int, SegmentView]:
        found: dict[int, SegmentView] = {}
        while body := self._ask(_SEGMENTS, 0, _NUMBER.pack(len(found))):
            for vni, mtu, flags, rows in _VIEW.iter_unpack(body):
                found[vni] = SegmentView(mtu, bool(flags & _UDP_JOINS), rows)
        return found

    def put(self, vni: int, rows: Rows) -> None:
        """Add or replace."""
        for part in _parts(rows):
            self._ask(_PUT, vni, part)

    def drop(self, vni: int, macs: Iterable[bytes]) -> None:
        for part in _parts(dict.fromkeys(macs, bytes(_ADDRESS))):
            self._ask(_DROP, vni, part)

    def replace(self, vni: int, rows: Rows) -> None:
        """The whole FDB at once: no frame sees half of it. Any failure closes the connection."""
        try:
            for part in _parts(rows):
                self._ask(_STAGE, vni, part)
            self._ask(_COMMIT, vni)
        except BaseException:
            self.close()  # with it goes what was staged
            raise

    def rows(self, vni: int) -> Rows:
        found: Rows = {}
        place = 0
        while True:
            body = self._ask(_ROWS, vni, _NUMBER.pack(place))
            (place,) = _NUMBER.unpack_from(body)
            for at in range(_NUMBER.size, len(body), _ROW):
                found[body[at : at + 6]] = _address_of(body[at + 8 : at + _ROW])
            if not place:
                return found

    def set_flood(self, vni: int, vteps: Iterable[bytes]) -> None:
        """All that get broadcast and multicast."""
        self._ask(_FLOOD, vni, _addresses(vteps))

    def flood(self, vni: int) -> frozenset[bytes]:
        return _addresses_of(self._ask(_FLOODS, vni))

    def set_peers(self, vteps: Iterable[bytes]) -> None:
        """All that may send."""
        self._ask(_PEERS, 0, _addresses(vteps))

    def peers(self) -> frozenset[bytes]:
        return _addresses_of(self._ask(_PEERED, 0))

    def counters(self) -> Counters:
        told = [count for (count,) in _COUNT.iter_unpack(self._ask(_COUNTERS, 0))]
        return Counters(*told[: len(Counters.__struct_fields__)])

    def stop(self) -> None:
        """End the forwarder, and with it its TAPs. Returns when it has given up the port, and raises if it does not.
        One that is late will still end.
        """
        self._ask(_STOP, 0)
        try:
            self._socket.recv(1)
        except ConnectionError:
            pass  # an end like any other
        except OSError as error:
            raise HostError(f"the user-space tunnel was told to end, and goes on: {error}", hint=CURE) from error

    def _ask(self, operation: int, vni: int, body: bytes = b"", descriptors: Sequence[int] = ()) -> bytes:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self._socket.sendmsg([_HEAD.pack(operation, vni), body], rights)
            reply = self._socket.recv(_MESSAGE_MAX)
        except OSError as error:
            self.close()
            raise HostError(f"the user-space tunnel does not answer: {error}", hint=CURE) from error
        if len(reply) < _REPLY.size:
            self.close()
            raise HostError("the user-space tunnel has ended")
        answered, result = _REPLY.unpack_from(reply)
        if answered not in (operation, _NOT_UNDERSTOOD):
            self.close()
            raise HostError(f"the user-space tunnel answers another question: {answered} instead of {operation}")
        if result:
            raise HostError(f"the user-space tunnel refused: {os.strerror(-result)}")
        return reply[_REPLY.size :]


def _mapped(packed: bytes) -> bytes:
    return packed if len(packed) == _ADDRESS else _MAPPED + packed


def _address_of(octets: bytes) -> bytes:
    return octets[12:] if octets.startswith(_MAPPED) else octets


def _addresses(vteps: Iterable[bytes]) -> bytes:
    return b"".join(map(_mapped, vteps))


def _addresses_of(body: bytes) -> frozenset[bytes]:
    return frozenset(_address_of(body[at : at + _ADDRESS]) for at in range(0, len(body), _ADDRESS))


def _parts(rows: Rows) -> Iterator[bytes]:
    items = list(rows.items())
    for at in range(0, len(items), _ROWS_A_MESSAGE):
        yield b"".join([mac + b"\0\0" + _mapped(vtep) for mac, vtep in items[at : at + _ROWS_A_MESSAGE]])
