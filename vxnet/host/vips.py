"""Virtual IPs, in the namespace of each client.

::

    new connection to 10.0.16.100 ──vip4──> lb3: a number of 0, 1, 2 ──end4──> DNAT to 10.0.16.7, marked as ours
                                      │     sticky: a hash of the client's address
                                      └──> none: refused at once

Keyed by the address alone: any port and protocol, ``ping`` too. Nothing is done to the source, so the server sees its
client. Only the first packet of a connection comes by; so what is draining keeps its connections, and what is gone
loses them by TCP's own means (UDP: :mod:`vxnet.host.conntrack`). Chains go by the number of backends, not by service,
and the rest is elements: a change of one backend is a handful of them in one transaction.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Mapping

from vxnet.host.elements import Elements
from vxnet.model.address import IPAddress
from vxnet.model.host import STICKY_BUCKETS, VIP_MARK, Segment, VirtualService

CHAINS_MIN = 16
"""As many chains each namespace has from the beginning; a service with more backends makes them twice as many."""
BACKENDS_MAX = 4096
UDP_COUNTER = "udp_flows"
"""Of flows that began here: where there are none, conntrack need not be looked through."""


MAPS = f"""\
\tcounter {UDP_COUNTER} {{
\t}}

\tmap vip4 {{
\t\ttype ipv4_addr : verdict
\t}}

\tmap vip6 {{
\t\ttype ipv6_addr : verdict
\t}}

\tmap end4 {{
\t\ttypeof ip daddr . numgen random mod 65536 : ip daddr
\t}}

\tmap end6 {{
\t\ttypeof ip6 daddr . numgen random mod 65536 : ip6 daddr
\t}}

"""
"""As ``nft list table`` prints them, …"""


@functools.lru_cache
def chains(most: int) -> str:
    """… and the chains that they lead to, for services with up to so many backends."""
    balance = "".join(_chain(f"lb{number}", f"numgen random mod {number}", "") for number in range(1, most + 1))
    return f"""\
\tchain none {{
\t\tmeta l4proto tcp reject with tcp reset
\t\treject
\t}}

{balance}{_chain("sticky", f"jhash ip saddr mod {STICKY_BUCKETS}", f"jhash ip6 saddr mod {STICKY_BUCKETS}")}"""


def _chain(name: str, number: str, number6: str) -> str:
    mark = f"ct mark set ct mark | {VIP_MARK:#010x}"
    return f"""\
\tchain {name} {{
\t\tmeta l4proto udp counter name "{UDP_COUNTER}"
\t\t{mark} dnat ip to ip daddr . {number} map @end4
\t\t{mark} dnat ip6 to ip6 daddr . {number6 or number} map @end6
\t}}

"""


LOOKUP = "\t\tip daddr vmap @vip4\n\t\tip6 daddr vmap @vip6\n"
"""Where local output's destinations are translated."""


class Services:
    """What sandboxes need of the services on their segments; those on the same segments share it."""

    def __init__(self, segments: Iterable[Segment], before: Services | None = None) -> None:
        """``before``: what was made of an earlier state; services that are the same objects are not packed again."""
        self.by_vni = {segment.vni: segment.services for segment in segments}
        self._made: dict[tuple[int, ...], _Made] = {}
        known: dict[int, _Packed] = before._packed if before is not None else {}
        self._packed: dict[int, _Packed] = {
            id(one): known.get(id(one)) or (one, *_pack(one)) for services in self.by_vni.values() for one in services
        }
        """By identity: with the service itself, so that another cannot get its id meanwhile."""

    def on(self, vnis: Iterable[int]) -> _Made:
        key = tuple(sorted(vni for vni in {*vnis} if vni in self.by_vni))
        if key not in self._made:
            services = [service for vni in key for service in self.by_vni[vni]]
            self._made[key] = _Made(services, [self._packed[id(one)] for one in services])
        return self._made[key]


_Packed = tuple[VirtualService, str, dict[bytes, bytes | str]]
"""A service, the chain that its address leads to, and its backends as elements."""


class _Made:
    def __init__(self, services: list[VirtualService], packed: list[_Packed]) -> None:
        self.services = services
        most = max((len(one.backends) for one in services if not one.sticky), default=0)
        self.chains = max(CHAINS_MIN, 1 << (min(most, BACKENDS_MAX) - 1).bit_length() if most else 0)
        self.elements: Mapping[str, Elements] = _elements(packed)

    def backends(self) -> dict[IPAddress, set[IPAddress]]:
        return {one.address: {*one.backends, *one.draining} for one in self.services}


_INDEX = [struct.pack("=I", number) for number in range(BACKENDS_MAX)]


def _pack(service: VirtualService) -> tuple[str, dict[bytes, bytes | str]]:
    key = service.address.packed
    backends = service.backends[:BACKENDS_MAX]
    chain = "none" if not backends else "sticky" if service.sticky else f"lb{len(backends)}"
    return chain, {key + index: backend.packed for index, backend in zip(_INDEX, backends, strict=False)}


def _elements(packed: Iterable[_Packed]) -> dict[str, dict[bytes, bytes | str]]:
    found: dict[str, dict[bytes, bytes | str]] = {"vip4": {}, "vip6": {}, "end4": {}, "end6": {}}
    for service, chain, ends in packed:
        version = service.address.version
        found[f"vip{version}"][service.address.packed] = chain
        found[f"end{version}"].update(ends)
    return found
