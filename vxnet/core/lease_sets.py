"""A node's leases as octets that are signed: JSON, compressed where a row would be too long for them.

A lease is 125 octets of JSON, and 25 compressed: what is left are the network's id and numbers. A set of 520 would fill
a row (:data:`vxnet.core.author.ROW_OCTETS`), so long sets are compressed, and 2,600 leases fit. Short ones stay as they
are, which earlier versions can read.
"""

from __future__ import annotations

import zlib
from typing import Final

from vxnet.model.cluster import LeaseSet
from vxnet.model.codec import from_json, to_json

PLAIN_OCTETS: Final = 16 << 10
"""Up to here a set is left as it is."""
LIMIT_OCTETS: Final = 4 << 20
"""Of JSON: 33,000 leases."""
_ZLIB: Final = b"\x78"
"""First octet of its header (RFC 1950, 32 kB window); JSON begins with a brace."""


def pack(leases: LeaseSet) -> bytes:
    plain = to_json(leases)
    return zlib.compress(plain) if len(plain) > PLAIN_OCTETS else plain


def unpack(content: bytes) -> LeaseSet:
    """Raises :class:`ValueError` or :class:`RecursionError`."""
    if content[:1] == _ZLIB:
        try:
            content = zlib.decompressobj().decompress(content, LIMIT_OCTETS + 1)
        except zlib.error as error:
            raise ValueError(f"leases that are no zlib data ({error})") from error
        if len(content) > LIMIT_OCTETS:
            raise ValueError("leases that are too long")
    return from_json(content, LeaseSet)
