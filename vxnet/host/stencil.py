"""A table that nft has loaded once, taken down as messages that make the same anywhere else, without nft.

``nft`` is a process of 15 ms for each container; what the kernel tells of a table is, but for numbers of its own, what
it takes to make one. So nft's text stays the only language in which rules are written. Format: as
:mod:`vxnet.host.elements`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from vxnet.host import nf_tables
from vxnet.host.netlink import NLM_F_APPEND, NLM_F_CREATE, Netlink, attribute, attributes, message
from vxnet.model.host import NFT_TABLE

_HEAD = nf_tables.head(nf_tables.INET)
_NAME = NFT_TABLE.encode() + b"\0"
_OF_TABLE = attribute(1, _NAME)
"""NFTA_TABLE_NAME, and what names the table of a chain, a rule, a set or an object."""
_NESTED = 0x8000

OBJECT_DATA = 4
CHAIN_HOOK = 4
RULE_EXPRESSIONS = 4
SET_FLAGS, SET_DESC, SET_ID, SET_EXPR = 3, 9, 10, 17
SET_ANONYMOUS = 0x1

_KINDS = (
    # The order is that of a transaction: what is named comes before what names it. Of each kind the attributes that
    # tell what it is; the others are handles, places, counts.
    (nf_tables.GETOBJ, nf_tables.NEWOBJ, NLM_F_CREATE, (1, 2, 3), ()),
    (nf_tables.GETSET, nf_tables.NEWSET, NLM_F_CREATE, (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 15), (SET_DESC, SET_EXPR)),
    (nf_tables.GETCHAIN, nf_tables.NEWCHAIN, NLM_F_CREATE, (1, 3, 5, 7, 10, 12), (CHAIN_HOOK,)),
    (nf_tables.GETRULE, nf_tables.NEWRULE, NLM_F_CREATE | NLM_F_APPEND, (1, 2, 7), (RULE_EXPRESSIONS,)),
)

Stencil = tuple[bytes, ...]

DELETE = message(nf_tables.DELTABLE, 0, _HEAD + _OF_TABLE)


def take(netlink: Netlink) -> Stencil | None:
    """What makes vxnet's table as it is in the namespace of ``netlink``, without the elements of its sets; None: it has
    sets without a name, whose elements are a part of its rules. Raises OSError."""
    messages = [message(nf_tables.NEWTABLE, NLM_F_CREATE, _HEAD + _OF_TABLE)]
    for get, new, flags, plain, nested in _KINDS:
        for number, found in enumerate(_dump(netlink, get), start=1):
            body = _HEAD + b"".join(attribute(kind, found[kind]) for kind in plain if kind in found)
            body += b"".join(attribute(kind | _NESTED, found[kind]) for kind in nested if kind in found)
            if new == nf_tables.NEWOBJ:
                body += attribute(OBJECT_DATA | _NESTED, b"")  # it has counted nothing yet
            if new == nf_tables.NEWSET:
                if int.from_bytes(found.get(SET_FLAGS, b""), "big") & SET_ANONYMOUS:
                    return None
                body += attribute(SET_ID, struct.pack("!I", number))
            messages.append(message(new, flags, body))
    return tuple(messages)


def _dump(netlink: Netlink, kind: int) -> Iterable[dict[int, bytes]]:
    """Of chains the kernel tells those of all tables."""
    found = (attributes(body, 4) for body in netlink.dump(kind, _HEAD + _OF_TABLE))
    return [one for one in found if one.get(1) == _NAME]
