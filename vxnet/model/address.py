"""Address types that records carry: one name for both families.

A type checker sees the unions of :mod:`ipaddress`. At run time the names are classes with the concrete ones
known to them, because msgspec's decoder accepts only one custom type in a union and asks ``isinstance``.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    IPAddress = IPv4Address | IPv6Address
    IPNetwork = IPv4Network | IPv6Network
    IPInterface = IPv4Interface | IPv6Interface
else:

    class _OneOf(type):
        """Asked for every address that is decoded: a look at its type. abc.ABCMeta takes three times as long."""

        def __instancecheck__(cls, value: object) -> bool:
            return type(value) in cls.concrete

    IPAddress = _OneOf("IPAddress", (), {"__doc__": "An IPv4 or IPv6 address.", "concrete": (IPv4Address, IPv6Address)})
    IPNetwork = _OneOf("IPNetwork", (), {"__doc__": "An IPv4 or IPv6 prefix.", "concrete": (IPv4Network, IPv6Network)})
    IPInterface = _OneOf(
        "IPInterface",
        (),
        {"__doc__": "An address with the length of its prefix.", "concrete": (IPv4Interface, IPv6Interface)},
    )

MAC = str
"""A link-layer address in lower case, six octets with colons: ``02:42:0a:00:10:03``."""
