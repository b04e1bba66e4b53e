"""Numbers of nftables' messages: include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h of the kernel.

Those of attributes stand where they are read or written: each kind of object counts its own from 1.
"""

from __future__ import annotations

import struct

SUBSYSTEM = 10
"""NFNL_SUBSYS_NFTABLES, the upper octet of a message's type."""
_FIRST = SUBSYSTEM << 8
NEWTABLE, GETTABLE, DELTABLE = _FIRST, _FIRST | 1, _FIRST | 2
NEWCHAIN, GETCHAIN = _FIRST | 3, _FIRST | 4
NEWRULE, GETRULE = _FIRST | 6, _FIRST | 7
NEWSET, GETSET = _FIRST | 9, _FIRST | 10
NEWSETELEM, GETSETELEM, DELSETELEM = _FIRST | 12, _FIRST | 13, _FIRST | 14
NEWGEN, GETGEN = _FIRST | 15, _FIRST | 16
NEWOBJ, GETOBJ = _FIRST | 18, _FIRST | 19
BATCH_BEGIN, BATCH_END = 16, 17
"""NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END."""

UNSPEC, INET, NETDEV = 0, 1, 5
"""NFPROTO_…: families."""


def head(family: int) -> bytes:
    """``struct nfgenmsg``: family, version, resource."""
    return struct.pack("!BBH", family, 0, 0)
