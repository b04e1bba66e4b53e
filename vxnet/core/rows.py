"""Rows on the wire: signed batches, and the messages by which two tables find out how they differ.

They travel as memberlist user messages, between vxnet nodes only. The first octet is above all of Serf's, so that an
agent that gets one by mistake logs a warning and drops it.

A batch is signed by its owner and carries the owner's public key, so that anybody can tell whether it is whole before
knowing whose key that is; whether the key is the owner's is asked when rows are used (:mod:`vxnet.core.evidence`).
The certificate and the leases that answer this are rows themselves.

::

    Batch ── new rows, to everybody at once or by gossip
    Relay ── the same, with the part of the ring that it shall be passed on to
    Ids   ── "I have these", and Ask ── "I lack these"
    Digest ── one hash over all     ──> equal: done             (and one over the members)
    Buckets <── 128 hashes          ──
    Have  ── ledgers of the buckets that differ, each with its hash ──>   (and back)
    Want <── "of this ledger I hold these versions": Batches with the others come, by datagram or stream
"""

from __future__ import annotations

import hashlib
import zlib
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

import msgspec

from vxnet.core.oldpack import MalformedError
from vxnet.core.trust import ROWS_PURPOSE
from vxnet.model import codec
from vxnet.model.row import Row

MAGIC: Final = b"\x76\x01"
"""User message of vxnet's, version 1 of its format."""
BUCKETS: Final = 128
BATCH_LIMIT: Final = 256 << 10
"""Octets of one batch."""
BATCH_ROWS_LIMIT: Final = 4096
MESSAGE_LIMIT: Final = 4 << 20
PACKED_AT_BEST: Final = 64
"""A batch unpacks to this many times its length at most. Rows of one owner have much in common, but who sends 400
octets that become 250,000 means harm."""
_ZLIB = b"\x78"


class LedgerKey(NamedTuple):
    """All rows that one key signed in one owner's name. An owner has one; a liar may make others, which count for
    nothing."""

    owner: str
    key: bytes
    """Ed25519 public key, 32 octets."""


class BatchContent(msgspec.Struct, frozen=True, array_like=True):
    owner: str
    key: bytes
    incarnation: int
    """Of all rows in it."""
    rows: tuple[Row, ...] = ()
    floor: int = 0
    """Of the rows of this incarnation with ``seq`` ≤ floor only those in ``live`` exist, of earlier incarnations none.
    0: says nothing."""
    live: tuple[int, ...] = ()


class Batch(msgspec.Struct, frozen=True, array_like=True, tag="b", gc=False):
    """As its owner made it; relays pass on these very octets."""

    content: bytes
    """A :class:`BatchContent`, packed and perhaps compressed: see :func:`pack_content`."""
    signature: bytes


class Batches(msgspec.Struct, frozen=True, array_like=True, tag="B"):
    batches: tuple[Batch, ...]


class Relay(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    batch: Batch
    begin: int
    end: int
    """The :class:`~vxnet.core.roster.Span` of the ring that depends on the receiver."""


class Ids(msgspec.Struct, frozen=True, array_like=True, tag="i"):
    ids: bytes
    """The first 8 octets of each batch's signature."""


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="a"):
    ids: bytes
    source: str


class Digest(msgspec.Struct, frozen=True, array_like=True, tag="d"):
    root: bytes
    """8 octets: the XOR of the buckets."""
    members: bytes
    """8 octets over the names and incarnations of those that are here: who differs exchanges memberships too."""


class Buckets(msgspec.Struct, frozen=True, array_like=True, tag="k"):
    hashes: bytes
    """8 octets × :data:`BUCKETS`."""


class Held(msgspec.Struct, frozen=True, array_like=True):
    owner: str
    key: bytes
    hash: bytes


class Have(msgspec.Struct, frozen=True, array_like=True, tag="h"):
    buckets: tuple[int, ...]
    """All ledgers of these buckets are listed."""
    ledgers: tuple[Held, ...]
    answer: bool
    """Whether to say what the other one lacks in turn."""
    source: str
    """Name of the member that speaks: an answer goes to where it lives, whichever way this came."""


class Roll(msgspec.Struct, frozen=True, array_like=True, tag="m"):
    """8 octets over the members in each bucket (:mod:`vxnet.core.muster`)."""

    hashes: bytes
    source: str


class Present(msgspec.Struct, frozen=True, array_like=True, tag="p"):
    buckets: tuple[int, ...]
    hashes: bytes
    """8 octets for each member that is here and in these buckets."""
    source: str


class States(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    states: bytes
    """memberlist's, one after the other."""
    lacking: bytes
    """8 octets for each member that the sender would like to hear of."""
    source: str


class Want(msgspec.Struct, frozen=True, array_like=True, tag="w"):
    owner: str
    key: bytes
    floor: tuple[int, int]
    """(incarnation, seq)."""
    versions: tuple[tuple[int, tuple[int, ...]], ...]
    """(incarnation, seqs) of the rows held."""
    source: str


SyncMessage: TypeAlias = Batch | Relay | Ids | Ask | Batches | Digest | Buckets | Have | Want | Roll | Present | States

_decoder: msgspec.msgpack.Decoder[SyncMessage] = msgspec.msgpack.Decoder(SyncMessage)
_encoder = msgspec.msgpack.Encoder()


def encode(message: SyncMessage) -> bytes:
    return MAGIC + _encoder.encode(message)


def decode(payload: bytes) -> SyncMessage:
    """Raises :class:`MalformedError`."""
    if payload[:2] != MAGIC:
        raise MalformedError("a user message that is not vxnet's")
    if len(payload) > MESSAGE_LIMIT:
        raise MalformedError("a row message that is too long")
    try:
        return _decoder.decode(payload[2:])
    except (ValueError, RecursionError) as error:
        raise MalformedError("not a row message") from error


def pack_content(content: BatchContent) -> bytes:
    """Compressed where that is shorter: rows of one owner have much in common."""
    plain = codec.to_wire(content)
    packed = zlib.compress(plain)
    return packed if len(packed) < len(plain) <= PACKED_AT_BEST * len(packed) else plain


def decode_content(content: bytes) -> BatchContent:
    """Raises :class:`MalformedError`."""
    limit = BATCH_LIMIT
    # A packed array never begins so.
    if content[:1] == _ZLIB:
        limit = min(limit, PACKED_AT_BEST * len(content))
        try:
            content = zlib.decompressobj().decompress(content, limit + 1)
        except zlib.error as error:
            raise MalformedError("not a batch") from error
    if len(content) > limit:
        raise MalformedError("a batch that is too long")
    try:
        found = codec.from_wire(content, BatchContent)
    except (ValueError, RecursionError) as error:
        raise MalformedError("not a batch") from error
    if len(found.key) != 32 or not found.owner or len(found.owner) > 64 or len(found.rows) > BATCH_ROWS_LIMIT:
        raise MalformedError("not a batch")
    if found.incarnation < 0 or found.floor < 0 or any(row.seq <= 0 for row in found.rows):
        raise MalformedError("a batch with impossible versions")
    return found


def to_be_signed(content: bytes) -> bytes:
    """As :mod:`vxnet.core.trust` does it: a signature for one purpose is worth nothing for another."""
    return ROWS_PURPOSE.encode() + b"\0" + content


def row_hash(key: LedgerKey, incarnation: int, row: Row) -> int:
    """64 bits over everything, the value too: an owner that gives two values one version is found out."""
    packed = _encoder.encode((key.owner, key.key, incarnation, row))
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "big")


@lru_cache(maxsize=1 << 15)
def bucket_of(owner: str) -> int:
    return hashlib.blake2b(owner.encode(), digest_size=1).digest()[0] % BUCKETS
