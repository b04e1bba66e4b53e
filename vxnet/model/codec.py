"""Records to bytes and back: JSON for people, the API and the store; msgpack for the gossip.

Both forms check types while decoding and raise :class:`msgspec.ValidationError` (a :class:`ValueError`) on anything
that does not fit, and nothing else: the caller decides whose fault that is.
"""

from __future__ import annotations

import functools
import ipaddress
from typing import Any, TypeVar

import msgspec

from vxnet.model.address import IPAddress, IPInterface, IPNetwork

T = TypeVar("T")

_PARSE: dict[Any, Any] = {
    IPAddress: ipaddress.ip_address,
    IPNetwork: ipaddress.ip_network,
    IPInterface: ipaddress.ip_interface,
}


def _address_from_text(kind: Any, value: Any) -> Any:
    parse = _PARSE.get(kind)
    if parse is None:
        raise NotImplementedError(kind)  # by this word msgspec knows that a hook does not know a type, here and below
    if not isinstance(value, str):
        raise ValueError(f"expected an address as text, found {type(value).__name__}")
    if "%" in value:  # ipaddress takes anything for a zone, line ends too, and such text goes into rules
        raise ValueError(f"expected an address without a zone, found {value!r}")
    return parse(value)


def get_ready() -> None:
    """Find out now how each record is read, and not at its first use: there msgspec crashes the whole process if two
    threads do it at once. To be called before there are several."""
    waiting: list[type] = [msgspec.Struct]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__.startswith(_RECORDS):
            msgspec.json.Decoder(kind, dec_hook=_address_from_text)


_RECORDS = "vxnet.model."
_json = msgspec.json.Encoder(enc_hook=str)


def to_json(record: object) -> bytes:
    """One line of JSON, addresses as text."""
    return _json.encode(record)


def from_json(data: bytes | str, kind: type[T]) -> T:
    """The record of type ``kind`` in ``data``. Unknown fields are ignored, so that versions may differ."""
    return msgspec.json.decode(data, type=kind, dec_hook=_address_from_text)


def from_toml(text: str, kind: type[T]) -> T:
    """The record of type ``kind`` in a TOML document."""
    return msgspec.toml.decode(text, type=kind, dec_hook=_address_from_text)


def to_builtins(record: object) -> Any:
    """Dicts, lists, text and numbers, as ``json.dumps`` takes them."""
    return msgspec.to_builtins(record, enc_hook=str)


# Packed form: an address is 4 or 16 octets, a prefix or interface has its length behind them.


def _packed(value: Any) -> bytes:
    if isinstance(value, IPInterface):
        return value.packed + bytes((value.network.prefixlen,))
    if isinstance(value, IPAddress):
        return value.packed
    if isinstance(value, IPNetwork):
        return value.network_address.packed + bytes((value.prefixlen,))
    raise NotImplementedError(type(value))


def _address_from_packed(kind: Any, value: Any) -> Any:
    if not isinstance(value, bytes):
        raise ValueError(f"expected a packed address, found {type(value).__name__}")
    if kind is IPAddress:
        return _address(value)
    if len(value) not in (5, 17):
        raise ValueError(f"expected 5 or 17 octets, found {len(value)}")
    if kind is IPNetwork:
        return ipaddress.ip_network((value[:-1], value[-1]))
    if kind is IPInterface:
        return ipaddress.ip_interface((value[:-1], value[-1]))
    raise NotImplementedError(kind)


@functools.lru_cache(maxsize=4096)
def _address(packed: bytes) -> IPAddress:
    # Of ten thousand rows all name one of a few VTEPs: one object each, and parsed once.
    if len(packed) == 4:
        return ipaddress.IPv4Address(packed)
    return ipaddress.IPv6Address(packed)


_wire = msgspec.msgpack.Encoder(enc_hook=_packed)


def to_wire(record: object) -> bytes:
    """msgpack, addresses as their octets."""
    return _wire.encode(record)


def from_wire(data: bytes, kind: type[T]) -> T:
    """The record of type ``kind`` in the msgpack ``data``."""
    return msgspec.msgpack.decode(data, type=kind, dec_hook=_address_from_packed)
