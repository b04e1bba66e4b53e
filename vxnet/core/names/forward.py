"""Asking the host's resolvers: whom, with what, and whether a reply is one.

A query goes on as it came, with a fresh random id from a fresh source port, to one resolver after the other. The first
that knows something (that it does not exist is something too) is right. Nothing is cached: the host's resolver does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from vxnet.core.names.message import (
    FORMERR,
    HEADER,
    NOTIMP,
    NXDOMAIN,
    OPCODE,
    QR,
    RCODE,
    REFUSED,
    SERVFAIL,
    TC,
    Query,
    pack_empty,
)
from vxnet.model.address import IPAddress

UPSTREAMS_MAX = 3
"""As many as glibc reads of /etc/resolv.conf (MAXNS)."""
TIMEOUT_S = 2.0
"""For each. Two of them fit into the 5 s after which a client asks again."""
SILENT_S = 30.0
"""How long one that did not answer is asked last. Without it a dead first resolver costs every query TIMEOUT_S."""
IN_FLIGHT_MAX = 1024
"""On the host, as Docker; each is a socket."""
IN_FLIGHT_PER_CONTAINER_MAX = 64
"""So that one container cannot take all."""


def order(upstreams: Sequence[IPAddress], silent: Mapping[IPAddress, float], now: float) -> list[IPAddress]:
    """Who is asked, in order. ``silent`` says when each was last found silent; s on the clock of ``now``."""
    return sorted(upstreams[:UPSTREAMS_MAX], key=lambda upstream: now - silent.get(upstream, -SILENT_S) < SILENT_S)


def pack_query(query: Query, number: int) -> bytes:
    """What goes to a resolver. ``number`` is a fresh random id, 16 bits."""
    return number.to_bytes(2, "big") + query.packet[2:]


_ASK_ANOTHER = (SERVFAIL, NOTIMP, REFUSED)
"""As glibc does (res_send.c)."""

Verdict = Literal["good", "next", "stray"]


def judge(query: Query, number: int, reply: bytes) -> Verdict:
    """``stray``: not the reply to this query, go on listening. ``next``: it is, and says to ask somebody else."""
    if len(reply) < 12:
        return "stray"
    sent, flags, questions, _, _, _ = HEADER.unpack_from(reply)
    if sent != number or not flags & QR or flags & OPCODE or questions > 1:
        return "stray"
    rcode = flags & RCODE
    if questions == 0:
        # Servers that understand little send a bare header.
        return "next" if rcode in (FORMERR, SERVFAIL, NOTIMP, REFUSED) else "stray"
    name = len(query.name)
    # Of the letters alone the case is no matter: type 65 is no type 97.
    if reply[12 : 12 + name].lower() != query.name or reply[12 + name : 16 + name] != query.question[name:]:
        return "stray"
    return "next" if rcode in _ASK_ANOTHER else "good"


def relay(query: Query, reply: bytes) -> bytes:
    """A ``good`` reply as the client gets it: its own id and spelling; cut to nothing with TC if it is too long."""
    if len(reply) > query.limit:
        return pack_empty(query, TC)
    return query.packet[:2] + reply[2:12] + query.question + reply[12 + len(query.question) :]


def nobody(query: Query) -> bytes:
    """This host has no resolvers. As far as anybody here can tell the name does not exist; SERVFAIL would have every
    client wait and ask again."""
    return pack_empty(query, NXDOMAIN)


def failure(query: Query) -> bytes:
    """Nobody could be asked, or nobody answered."""
    return pack_empty(query, SERVFAIL)
