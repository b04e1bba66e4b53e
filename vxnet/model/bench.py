"""What `vxnet bench` asks of two hosts, and what it measures between them."""

from __future__ import annotations

from vxnet.model.address import IPAddress
from vxnet.model.cluster import DATA_PORT, Record


class BenchWish(Record, frozen=True, kw_only=True):
    """One of the two ends that a measurement is taken between."""

    number: int
    """1 or 2: which end this is; addresses follow from it."""
    local: IPAddress
    """This end's VTEP."""
    peer: IPAddress
    mtu: int
    """Of the underlay between them."""
    data_port: int = DATA_PORT
    longest_s: float = 600.0
    """After that the end is over whatever happens."""
    queues: int = 1
    """Of the tunnel in user space, as the two below: what a host is configured with, filled in by its own daemon."""
    spin_us: int = 50
    virtual_underlay: bool = False


class BenchPlace(Record, frozen=True, kw_only=True):
    """Where a path begins, or ends."""

    descriptor: int
    """Of a network namespace, in the process of the end."""
    address: IPAddress


class BenchEnd(Record, frozen=True, kw_only=True):
    """What an end says first."""

    pid: int
    places: dict[str, BenchPlace] = {}
    missing: dict[str, str] = {}
    """Why a path is not there."""


class PathFigures(Record, frozen=True, kw_only=True):
    """Medians over the rounds; None: it could not be measured."""

    path: str
    tcp_bits_s: float | None = None
    rtt_us: float | None = None
    udp_packets_s: float | None = None
    """64 octets each, that arrived."""
    connections_s: float | None = None
    ratio: float | None = None
    """Of TCP, to the underlay's."""
    problem: str = ""


class HostFigures(Record, frozen=True, kw_only=True):
    """A line of ``bench``."""

    host: str
    address: IPAddress
    rounds: int
    paths: tuple[PathFigures, ...]
