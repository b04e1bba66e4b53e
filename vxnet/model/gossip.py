"""What is told of the gossip: its members, what is known of whose rows, its keys."""

from __future__ import annotations

from typing import Literal

from vxnet.model.address import IPAddress
from vxnet.model.cluster import GossipProfile, Record


class RotateKeys(Record, frozen=True, kw_only=True):
    key: bytes = b""
    """16, 24 or 32 octets; empty: a new one of ``bits``."""
    bits: Literal[128, 192, 256] = 256
    force: bool = False
    """Used without waiting for nodes that do not have it yet."""


class Rotation(Record, frozen=True, kw_only=True):
    """How far the change to the newest gossip key is."""

    epoch: int
    """Of the newest key."""
    in_use: bool
    made_at: float
    waiting: tuple[str, ...] = ()
    """Nodes that do not have it yet, or do not use it yet."""


class GossipKeyView(Record, frozen=True, kw_only=True):
    """A line of ``gossip keys``."""

    epoch: int
    key: str
    """Base64, as ``serf agent -encrypt`` takes it."""
    bits: int
    use: Literal["in use", "next", "old"]


class GossipMember(Record, frozen=True, kw_only=True):
    """A line of ``gossip members``: whoever speaks on 7946, also agents that are not vxnet's."""

    name: str
    node: str = ""
    """Node id; empty for a foreign agent."""
    address: IPAddress
    port: int
    status: Literal["alive", "suspect", "dead", "left"]
    since_s: float
    """How long it has been in this status, as seen from here."""
    incarnation: int
    tags: dict[str, str] = {}


class OwnerRows(Record, frozen=True, kw_only=True):
    """Rows that a node has on a network, as held here."""

    node: str
    """Name, or the id of one that is no member."""
    network: str
    """Name; empty: evidence and acknowledgements, which belong to none."""
    rows: int
    newest: str
    """``incarnation.number`` of the newest."""


class NetworkDigest(Record, frozen=True, kw_only=True):
    """Equal digests on two hosts mean equal tables for that network."""

    network: str
    rows: int
    digest: str
    """64 bits in hex over every row's owner, key, version and value."""


class GossipView(Record, frozen=True, kw_only=True):
    node: str
    """Name of the one that is asked."""
    label: str = ""
    profile: GossipProfile = "lan"
    encrypted: bool = True
    key_epoch: int = 0
    health: int = 0
    """Lifeguard's awareness score: 0 is healthy."""
    queue: int = 0
    """Pieces of news and of rows that wait to be passed on."""
    members: tuple[GossipMember, ...] = ()
    rows: tuple[OwnerRows, ...] = ()
    digests: tuple[NetworkDigest, ...] = ()
    rows_refused: dict[str, int] = {}
    """Rows kept without effect, by reason."""
    dropped: dict[str, int] = {}
    """Packets and messages that were of no use, by reason."""
    statistics: dict[str, int] = {}
