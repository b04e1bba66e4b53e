"""DNS messages as far as a resolver needs them: a query checked and taken apart, a reply put together.
RFC 1035 section 4, RFC 6891 (EDNS0).

All checks come before any further reading: one question, nothing in the answer and authority sections, no compression
pointer in the question, at most two additional records. A general parser lets 3.8 kB of pointers cost 152 ms (dnslib
0.9.26), so none is used here. Nothing in this file raises on what it is given.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import NamedTuple

from vxnet.model.address import IPAddress, IPNetwork

A, PTR, AAAA, SRV, OPT, ANY = 1, 12, 28, 33, 41, 255
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16

UDP_QUERY_MAX = 1232
"""Octets of a query; also the largest reply that goes out by UDP, offered in EDNS0 (DNS flag day 2020: 1280, the least
IPv6 MTU, less 48 of headers)."""
UDP_REPLY_MIN = 512
"""Octets that everybody takes (RFC 1035 2.3.4)."""
TCP_QUERY_MAX = 4096
TCP_REPLY_MAX = 65535

HEADER = struct.Struct(">HHHHHH")
_OPT_FIELDS = struct.Struct(">HHIH")
QR, _AA, TC, _RD, _RA, _CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0010
OPCODE, RCODE = 0x7800, 0x000F
_DO = 0x8000
_ASKED = _RD | _CD
"""Flags that a reply copies from its query."""
_IN = IN.to_bytes(2, "big")
_IN_ADDR, _IP6 = b"\x07in-addr\x04arpa\0", b"\x03ip6\x04arpa\0"


class Query(NamedTuple):
    packet: bytes
    """As it came, but that its EDNS0 size is at most ``limit``: ready to be asked upstream."""
    flags: int
    question: bytes
    """Name, type and class as asked, upper and lower case kept (it is a nonce to some: draft-vixie-dnsext-dns0x20)."""
    name: bytes
    """On the wire, in lower case."""
    type: int
    limit: int
    """Octets of a reply by UDP."""
    opt: bytes
    """The OPT record that a reply carries: empty if the query had none."""


class Rejected(NamedTuple):
    """A datagram that is no question for us. ``reply`` is empty where silence is the answer."""

    reason: str
    reply: bytes = b""


def encode_name(text: str) -> bytes | None:
    """``a.b`` as labels in lower case; None for what DNS cannot carry (an empty label, > 63 or in all > 255 octets)."""
    raw = text.encode("utf-8", "surrogateescape").lower()
    if b"." not in raw:  # nearly all of them
        return bytes((len(raw),)) + raw + b"\0" if 0 < len(raw) < 64 else None
    labels = raw.split(b".")
    if not all(0 < len(label) < 64 for label in labels):
        return None
    name = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    return name if len(name) <= 255 else None


_OCTETS = tuple(bytes((len(str(octet)),)) + str(octet).encode() for octet in range(256))
_NIBBLES = tuple(b"\x01" + f"{nibble:x}".encode() for nibble in range(16))


def encode_reverse(address: IPAddress) -> bytes:
    """``4.3.2.1.in-addr.arpa`` and its like for IPv6, as labels (RFC 1035 section 3.5, RFC 3596 section 2.5)."""
    backwards = reversed(address.packed)
    if address.version == 4:
        return b"".join(_OCTETS[octet] for octet in backwards) + _IN_ADDR
    return b"".join(_NIBBLES[octet & 15] + _NIBBLES[octet >> 4] for octet in backwards) + _IP6


def parse_query(data: bytes, *, tcp: bool = False) -> Query | Rejected:
    size = len(data)
    if size < 12:
        return Rejected("short")
    if size > (TCP_QUERY_MAX if tcp else UDP_QUERY_MAX):
        return Rejected("long")
    _, flags, questions, answers, authorities, additionals = HEADER.unpack_from(data)
    if flags & QR:
        # Never answered: two resolvers would talk to each other for ever.
        return Rejected("response")
    if flags & OPCODE:
        return Rejected("opcode", _bare(data, flags, NOTIMP))
    if questions != 1 or answers or authorities or additionals > 2:
        return Rejected("counts", _bare(data, flags, FORMERR))
    end = 12
    while end < size and (length := data[end]):
        if length > 63:
            return Rejected("label", _bare(data, flags, FORMERR))
        end += length + 1
    end += 5
    if end > size or end - 16 > 255:
        return Rejected("question", _bare(data, flags, FORMERR))
    question = data[12:end]
    limit, opt = UDP_REPLY_MIN, b""
    if additionals or end != size:
        edns = _find_opt(data, end, additionals)
        if edns is None:
            return Rejected("additional", _bare(data, flags, FORMERR))
        if edns:
            _, offered, extended, _ = _OPT_FIELDS.unpack_from(data, edns)
            limit = min(max(offered, UDP_REPLY_MIN), UDP_QUERY_MAX)
            opt = _opt(extended & _DO)
            if extended >> 16 & 0xFF:
                refusal = _opt(extended & _DO | (BADVERS >> 4) << 24)
                return Rejected("edns version", _reply(data, flags | QR | _RA, question, 0, b"", refusal))
            # Upstream replies must not come in IP fragments, which anybody can forge.
            data = data[: edns + 2] + limit.to_bytes(2, "big") + data[edns + 4 :]
    if question[-2:] != _IN:
        return Rejected("class", _reply(data, flags & _ASKED | QR | _RA | REFUSED, question, 0, b"", opt))
    kind = question[-4] << 8 | question[-3]
    return Query(data, flags, question, question[:-4].lower(), kind, TCP_REPLY_MAX if tcp else limit, opt)


def pack_reply(query: Query, rcode: int, count: int = 0, body: bytes = b"", *, truncated: bool = False) -> bytes:
    """An authoritative reply; ``body`` holds ``count`` answers. Negative ones carry no SOA, so nobody caches them
    (RFC 2308 section 5): a container that starts is found at once.
    """
    flags = query.flags & _ASKED | QR | _AA | _RA | rcode | (TC if truncated else 0)
    return _reply(query.packet, flags, query.question, count, body, query.opt)


def pack_empty(query: Query, flags: int) -> bytes:
    """A reply with these flags and no answers, in nobody's authority."""
    return _reply(query.packet, query.flags & _ASKED | QR | _RA | flags, query.question, 0, b"", query.opt)


# Reverse names


def reverse_prefix(name: bytes) -> IPNetwork | None:
    """The prefix that a name under in-addr.arpa or ip6.arpa (wire form, lower case) stands for; None: not such a name.

    A name with all labels is one address; one with fewer is the prefix above.
    """
    if name.endswith(_IN_ADDR):
        return _prefix(name[: -len(_IN_ADDR)], width=32, bits=8, digits=3, radix=10)
    if name.endswith(_IP6):
        return _prefix(name[: -len(_IP6)], width=128, bits=4, digits=1, radix=16)
    return None


def _prefix(name: bytes, *, width: int, bits: int, digits: int, radix: int) -> IPNetwork | None:
    labels = _labels(name)
    length = len(labels) * bits
    if length > width:
        return None
    value = 0
    for label in reversed(labels):
        if not label.isalnum() or len(label) > digits or (len(label) > 1 and label.startswith(b"0")):
            return None
        try:
            part = int(label, radix)
        except ValueError:
            return None
        if part >> bits:
            return None
        value = value << bits | part
    packed = (value << width - length).to_bytes(width // 8, "big")
    return ipaddress.IPv4Network((packed, length)) if width == 32 else ipaddress.IPv6Network((packed, length))


def _labels(name: bytes) -> list[bytes]:
    labels = []
    at = 0
    while at < len(name):
        labels.append(name[at + 1 : at + 1 + name[at]])
        at += 1 + name[at]
    return labels


# Pieces


def _reply(packet: bytes, flags: int, question: bytes, count: int, body: bytes, opt: bytes) -> bytes:
    counts = HEADER.pack(0, flags, 1, count, 0, 1 if opt else 0)
    return packet[:2] + counts[2:] + question + body + opt


def _bare(packet: bytes, flags: int, rcode: int) -> bytes:
    """Without the question, which may be what is wrong."""
    return packet[:2] + HEADER.pack(0, flags & (OPCODE | _RD) | QR | _RA | rcode, 0, 0, 0, 0)[2:]


def _opt(extended: int) -> bytes:
    return b"\0" + _OPT_FIELDS.pack(OPT, UDP_QUERY_MAX, extended, 0)


def _find_opt(data: bytes, offset: int, count: int) -> int | None:
    """Where the fields of the OPT record begin, 0 if there is none. None: torn, two of them, or octets behind."""
    found = 0
    for _ in range(count):
        start = offset
        while offset < len(data) and 0 < data[offset] < 64:
            offset += data[offset] + 1
        if offset >= len(data) or 64 <= data[offset] < 192:
            return None
        offset += 2 if data[offset] >= 192 else 1
        if offset + 10 > len(data):
            return None
        kind, _, _, length = _OPT_FIELDS.unpack_from(data, offset)
        if kind == OPT:
            if found or data[start]:
                return None
            found = offset
        offset += 10 + length
    return found if offset == len(data) else None
