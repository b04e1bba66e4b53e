"""Two hosts that hear each other out: which of their ways carry what, in which direction.

::

    one that examines                                          the others
      word ── 7946/udp, 7946/tcp ──────────────────────────>  heard: udp, tcp
      packets ── 4789/udp, small and large ────────────────>  heard: wire (at the card), data (behind the firewall)
      <────────────────────────────── word, packets, as many times: "of you I have heard …"

Both sides do the same, a few times within :data:`LENGTH_S`; whoever hears of an examination takes part in it. Nothing
is asked twice of a path to find out whether it was asked: what is heard is a set that grows, and each word tells the
whole of it. Words are memberlist user messages between vxnet's nodes; a version that does not know them drops them.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import msgspec

from vxnet.core.oldpack import MalformedError
from vxnet.model.checkup import Heard

MAGIC: Final = b"\x76\x63"
"""Above all of Serf's, as that of row messages."""
LIMIT: Final = 1024
"""Octets of a word."""
ROUNDS_S: Final = (0.0, 0.15, 0.4, 0.8, 1.3)
"""When words and packets are sent, from the beginning: what is lost by accident comes with the next."""
LENGTH_S: Final = 1.7
AT_ONCE: Final = 8
"""Examinations by others under way; further ones wait for nobody and are not answered."""
PROBE_VNI: Final = 0xFFFFFF
"""Nobody's network: what comes with it is seen by the examiner's sockets and dropped by the tunnel. The last of the
range, which no network gets (the allocator begins at the other end, 16 million networks away)."""
SMALL: Final = 64
"""Octets of a small packet's content."""
_CONTENT: Final = struct.Struct("!4s8s1sB")
_SIGN: Final = b"vxck"


class Word(msgspec.Struct, frozen=True, array_like=True):
    id: bytes
    """Of the examination: 8 octets of chance."""
    source: str
    """Name of the member that speaks: the answer goes to where it lives."""
    by: str
    """``udp`` or ``tcp``: which way this one went."""
    heard: tuple[str, ...]
    """What has come from the one that is spoken to."""
    wall: float
    """The speaker's clock."""
    echo: float = 0.0
    """``wall`` of the last word that came from there; 0: none came."""
    held_s: float = 0.0
    """How long ago that was."""
    machine: str = ""
    asked: bool = False
    """Whether the speaker examines, or answers."""


_decoder = msgspec.msgpack.Decoder(Word)
_encoder = msgspec.msgpack.Encoder()
_HEARD: Final = frozenset(Heard.__args__)  # type: ignore[attr-defined]


def encode(word: Word) -> bytes:
    return MAGIC + _encoder.encode(word)


def decode(payload: bytes) -> Word:
    """Raises :class:`MalformedError`."""
    if payload[: len(MAGIC)] != MAGIC or len(payload) > LIMIT:
        raise MalformedError("not a word of an examination")
    try:
        word = _decoder.decode(payload[len(MAGIC) :])
    except (ValueError, RecursionError) as error:
        raise MalformedError("not a word of an examination") from error
    if len(word.id) != 8 or word.by not in ("udp", "tcp") or not word.source:
        raise MalformedError("an impossible word of an examination")
    # A later version may listen for more.
    return msgspec.structs.replace(word, heard=tuple(one for one in word.heard if one in _HEARD))


class Packet(NamedTuple):
    """What a packet to the VXLAN port says of itself."""

    id: bytes
    large: bool
    source: str


def content(packet: Packet, octets: int) -> bytes:
    """Of the UDP datagram inside, filled up to ``octets``."""
    name = packet.source.encode()[:255]
    head = _CONTENT.pack(_SIGN, packet.id, b"L" if packet.large else b"s", len(name)) + name
    return head.ljust(octets, b"\x55")


def read_content(data: bytes) -> Packet | None:
    if len(data) < _CONTENT.size:
        return None
    sign, id_, size, length = _CONTENT.unpack_from(data)
    name = data[_CONTENT.size : _CONTENT.size + length]
    if sign != _SIGN or len(name) != length:
        return None
    try:
        return Packet(id_, size == b"L", name.decode())
    except UnicodeDecodeError:
        return None


class Side:
    """What one host knows of another one within an examination."""

    def __init__(self) -> None:
        self.here: set[Heard] = set()
        self.there: set[Heard] = set()
        self.answered = False
        self.machine = ""
        self.clock_ahead_s: float | None = None
        self._least_rtt_s = float("inf")
        self._last: tuple[float, float] | None = None

    def hear(self, word: Word, wall: float, now: float) -> None:
        self.answered = True
        self.here.add("udp" if word.by == "udp" else "tcp")
        self.there.update(word.heard)  # type: ignore[arg-type]
        self.machine = word.machine
        self._last = word.wall, now
        if word.echo:
            # As NTP does it (RFC 5905): the shortest round trip tells the difference best.
            rtt_s = wall - word.echo - word.held_s
            if 0 <= rtt_s < self._least_rtt_s:
                self._least_rtt_s = rtt_s
                self.clock_ahead_s = word.wall + rtt_s / 2 - wall

    def say(self, id_: bytes, source: str, by: str, wall: float, now: float, machine: str, *, asked: bool) -> Word:
        echo, at = self._last or (0.0, now)
        return Word(id_, source, by, tuple(sorted(self.here)), wall, echo, now - at, machine, asked)
