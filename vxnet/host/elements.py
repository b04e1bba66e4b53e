"""Elements of nftables' sets and maps, packed: what there is, and the difference in one transaction.

``nft`` takes 16 ms for one element; packed, a thousand take 2. Format: include/uapi/linux/netfilter/nf_tables.h and
nfnetlink.h of the kernel. All integers are of network order but the parts of keys, which are as registers hold them.
"""

from __future__ import annotations

import ipaddress
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Literal, NamedTuple

from vxnet.host import nf_tables
from vxnet.host.netlink import ATTRIBUTE, NLA_F_NESTED, NLM_F_CREATE, Failure, Netlink, attribute, attributes, message
from vxnet.model.host import NFT_TABLE

NETLINK_NETFILTER = 12
NFNL_BATCH_GENID = 1

_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_ELEMENT = 1
_KEY, _DATA, _EXPRESSION, _KEY_END, _EXPRESSIONS = 1, 2, 7, 10, 11
_VALUE, _VERDICT = 1, 2
_CODE, _CHAIN = 1, 2
_GOTO = struct.pack("!i", -4)

PORT_OCTETS = 2
ELEMENTS_MAX = 500
"""Of one message: its attributes' lengths have 16 bits."""

Elements = Mapping[bytes, bytes | str]
"""Key → data: an address or a port, the name of a chain to go to, or nothing (of a set)."""

_HEAD = nf_tables.head(nf_tables.INET)
_TABLE = attribute(_LIST_TABLE, NFT_TABLE.encode() + b"\0")


class Range(bytes):
    """A key of a set of intervals: the first and the last, one behind the other."""


Field = Literal["address4", "address6", "protocol", "port", "number", "mac"]


class Shape(NamedTuple):
    """Of what parts keys and data are put together, each filled up to 4 octets."""

    key: tuple[Field, ...]
    data: tuple[Field, ...] = ()

    def as_text(self, key: bytes, data: bytes | str) -> str:
        """In nft's grammar."""
        if isinstance(key, Range):
            half = len(key) // 2
            ends = zip(_parts(self.key, key[:half]), _parts(self.key, key[half:]), strict=True)
            text = " . ".join(first if first == last else f"{first}-{last}" for first, last in ends)
        else:
            text = " . ".join(_parts(self.key, key))
        if isinstance(data, str):
            return f"{text} : goto {data}"
        return f"{text} : {' . '.join(_parts(self.data, data))}" if data else text


def _parts(fields: tuple[Field, ...], packed: bytes) -> list[str]:
    found, at = [], 0
    for field in fields:
        size = _SIZES[field]
        found.append(_words(field, packed[at : at + size]))
        at += (size + 3) & ~3
    return found


_SIZES: dict[Field, int] = {"address4": 4, "address6": 16, "protocol": 1, "port": 2, "number": 4, "mac": 6}


def _words(field: Field, packed: bytes) -> str:
    if field in ("address4", "address6"):
        return str(ipaddress.ip_address(packed))
    if field == "mac":
        return packed.hex(":")
    return str(int.from_bytes(packed, sys.byteorder if field == "number" else "big"))


def as_text(key: bytes, data: bytes | str) -> str:
    """In nft's grammar: ports; or addresses, each with a number behind it or not."""
    if len(key) == PORT_OCTETS and isinstance(data, bytes):
        return f"{int.from_bytes(key, 'big')} : {int.from_bytes(data, 'big')}"
    size = 16 if len(key) >= 16 else 4
    text = str(ipaddress.ip_address(key[:size]))
    if size < len(key):
        text += f" . {struct.unpack('=I', key[size:])[0]}"
    if isinstance(data, str):
        return f"{text} : goto {data}"
    return f"{text} : {ipaddress.ip_address(data)}" if data else text


def dump(netlink: Netlink, name: str) -> dict[bytes, bytes | str]:
    """All elements of a set of vxnet's table, in the namespace of ``netlink``. Raises OSError if there is none."""
    found: dict[bytes, bytes | str] = {}
    for parts in _dump(netlink, name):
        key = attributes(parts[_KEY])[_VALUE]
        if _KEY_END in parts:
            key = Range(key + attributes(parts[_KEY_END])[_VALUE])
        found[key] = _data(parts.get(_DATA))
    return found


def _dump(netlink: Netlink, name: str) -> Iterator[dict[int, bytes]]:
    """Attributes of each element."""
    for body in netlink.dump(nf_tables.GETSETELEM, _HEAD + _TABLE + attribute(_LIST_SET, name.encode() + b"\0")):
        listed = attributes(body, 4).get(_LIST_ELEMENTS, b"")
        at = 0
        while at + 4 <= len(listed):
            length, _kind = ATTRIBUTE.unpack_from(listed, at)
            yield attributes(listed[at + 4 : at + length])
            at += (length + 3) & ~3


class Count(NamedTuple):
    packets: int
    octets: int


def counts(netlink: Netlink, name: str) -> dict[bytes, Count]:
    """What the counters of a set's elements have seen. Raises OSError if there is no such set."""
    found = {}
    for parts in _dump(netlink, name):
        expression = parts.get(_EXPRESSION) or attributes(parts.get(_EXPRESSIONS, b"")).get(1, b"")
        values = attributes(attributes(expression).get(2, b""))
        octets, packets = (int.from_bytes(values.get(kind, b""), "big") for kind in (1, 2))
        found[attributes(parts[_KEY])[_VALUE]] = Count(packets, octets)
    return found


def _data(packed: bytes | None) -> bytes | str:
    if packed is None:
        return b""
    parts = attributes(packed)
    if _VALUE in parts:
        return parts[_VALUE]
    verdict = attributes(parts[_VERDICT])
    if verdict[_CODE] != _GOTO:
        return f"verdict {verdict[_CODE].hex()}"  # none of vxnet's
    return verdict[_CHAIN].rstrip(b"\0").decode(errors="replace")


def counted(netlink: Netlink, name: str) -> int:
    """Packets that a counter of vxnet's table has seen; 0 if there is none."""
    named = attribute(2, name.encode() + b"\0") + struct.pack("=HHI", 8, 3, 1 << 24)  # of type 1, network order
    answer = netlink.ask([message(nf_tables.GETOBJ, 0, _HEAD + attribute(1, NFT_TABLE.encode() + b"\0") + named)])[0]
    if answer is None:
        return 0
    return int.from_bytes(attributes(attributes(answer, 4)[4])[2], "big")


def difference(name: str, wanted: Elements, there: Elements) -> list[bytes]:
    """What turns ``there`` into ``wanted``. What changes its data is deleted first."""
    less = [key for key, data in there.items() if wanted.get(key) != data]
    more = {key: data for key, data in wanted.items() if there.get(key) != data}
    return [
        *_messages(nf_tables.DELSETELEM, name, ((key, b"") for key in less)),
        *_messages(nf_tables.NEWSETELEM, name, more.items()),
    ]


def _messages(kind: int, name: str, elements: Iterable[tuple[bytes, bytes | str]]) -> Iterable[bytes]:
    head = _HEAD + _TABLE + attribute(_LIST_SET, name.encode() + b"\0")
    rest = iter(elements)
    while some := list(islice(rest, ELEMENTS_MAX)):
        packed = b"".join(_nested(_ELEMENT, _pack(key, data)) for key, data in some)
        yield message(kind, NLM_F_CREATE if kind == nf_tables.NEWSETELEM else 0, head + _nested(_LIST_ELEMENTS, packed))


def _pack(key: bytes, data: bytes | str) -> bytes:
    if isinstance(key, Range):
        half = len(key) // 2
        packed = _nested(_KEY, attribute(_VALUE, key[:half])) + _nested(_KEY_END, attribute(_VALUE, key[half:]))
    else:
        packed = _nested(_KEY, attribute(_VALUE, key))
    if isinstance(data, str):
        verdict = attribute(_CODE, _GOTO) + attribute(_CHAIN, data.encode() + b"\0")
        return packed + _nested(_DATA, _nested(_VERDICT, verdict))
    return packed + _nested(_DATA, attribute(_VALUE, data)) if data else packed


def _nested(kind: int, value: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, value)


def commit(netlink: Netlink, messages: list[bytes], generation: int) -> Failure | None:
    """All of it or nothing, and nothing if the rule set is not of this generation any more (ERESTART)."""
    head = struct.pack("!BBH", nf_tables.UNSPEC, 0, nf_tables.SUBSYSTEM)
    begin = message(nf_tables.BATCH_BEGIN, 0, head + attribute(NFNL_BATCH_GENID, struct.pack("!I", generation)))
    return netlink.transaction([begin, *messages, message(nf_tables.BATCH_END, 0, head)])
