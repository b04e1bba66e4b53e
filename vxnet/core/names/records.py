"""Resource records of one name, packed: what the tables hold.

They begin with a pointer to the question's name (``c0 0c``), so that they are the same octets for every query,
whatever its spelling.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from vxnet.core.names.message import AAAA, IN, PTR, SRV, A
from vxnet.model.row import Endpoint

TTL_S = 5
"""How long a client may go on with what it knows, and so how long it may knock at a place where nobody lives any more.
Docker's 600 s were complaint 4 of its users; less than 5 s buys little, as most of libc's resolvers keep nothing."""

_HEADS = {kind: struct.pack(">HHHI", 0xC00C, kind, IN, TTL_S) for kind in (A, AAAA, PTR, SRV)}
"""Owner, type, class, TTL; the owner is a pointer to octet 12, where the question's name stands."""


class RRset(NamedTuple):
    """Answers of one name and type."""

    number: int
    stride: int
    """Octets of each record, so that they can be turned and cut; 0: as a whole or not at all."""
    body: bytes


Answers = dict[int, RRset]
"""By type. Empty: the name exists, and no address may be told yet."""


def serving(endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """Those that are ready. Draining ones count only where nobody is ready: they still serve, and a name without an
    address makes a client give up where it would have got through. Starting ones never do: nobody listens, perhaps not
    even the path is there.
    """
    by_state: dict[str, list[Endpoint]] = {"starting": [], "draining": [], "ready": []}
    for endpoint in endpoints:
        by_state[endpoint.state].append(endpoint)
    return by_state["ready"] or by_state["draining"]


def pack_addresses(endpoints: Iterable[Endpoint]) -> Answers:
    """A and AAAA of those that serve."""
    return split_addresses(address.packed for endpoint in serving(endpoints) for address in endpoint.addresses)


def split_addresses(packed: Iterable[bytes]) -> Answers:
    # Once each: one endpoint may claim a name twice over, and two hosts may claim one address for a moment.
    there = sorted(set(packed))
    answers: Answers = {}
    for kind, size in ((A, 4), (AAAA, 16)):
        records = [record(kind, address) for address in there if len(address) == size]
        if records:
            answers[kind] = RRset(len(records), len(records[0]), b"".join(records))
    return answers


def all_of(answers: Answers) -> RRset:
    sets = list(answers.values())
    if len(sets) == 1:
        return sets[0]
    return RRset(sum(rrset.number for rrset in sets), 0, b"".join(rrset.body for rrset in sets))


def pack_names(kind: int, data: Iterable[bytes]) -> RRset:
    """Records that hold names (PTR, SRV), once each, in an order that depends on nothing else."""
    records = sorted({record(kind, one) for one in data})
    lengths = {len(one) for one in records}
    return RRset(len(records), lengths.pop() if len(lengths) == 1 else 0, b"".join(records))


def record(kind: int, data: bytes) -> bytes:
    return _HEADS[kind] + len(data).to_bytes(2, "big") + data
