"""Address types that records carry: one name for both families.

A type checker sees the unions of :mod:`ipaddress`. At run time the names are abstract classes with the concrete ones
registered, because msgspec's decoder accepts only one custom type in a union and asks ``isinstance``.
"""

from __future__ import annotations

import abc
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    IPAddress = IPv4Address | IPv6Address
    IPNetwork = IPv4Network | IPv6Network
    IPInterface = IPv4Interface | IPv6Interface
else:
    IPAddress = abc.ABCMeta("IPAddress", (), {"__doc__": "An IPv4 or IPv6 address."})
    IPNetwork = abc.ABCMeta("IPNetwork", (), {"__doc__": "An IPv4 or IPv6 prefix."})
    IPInterface = abc.ABCMeta("IPInterface", (), {"__doc__": "An address with the length of its prefix."})
    for _name, _concrete in (
        (IPAddress, (IPv4Address, IPv6Address)),
        (IPNetwork, (IPv4Network, IPv6Network)),
        (IPInterface, (IPv4Interface, IPv6Interface)),
    ):
        for _class in _concrete:
            _name.register(_class)

MAC = str
"""A link-layer address in lower case, six octets with colons: ``02:42:0a:00:10:03``."""
