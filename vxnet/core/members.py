"""Who is in the cluster, and the rules by which news about a node is believed.

The rules stand in :data:`RULES` and nowhere else; this file does not know who it is running on, nor how news travels.

::

              newer alive                 suspect                    no refutation in time, or dead
    (unknown) ───────────> alive ───────────────────────> suspect ────────────────────────────────> dead
                             ^ ^───── newer alive ──────────┘ │                                       │
                             │                                │ dead, said by itself (from any state) │
                             └──── newer alive ──── left <────┴───────────────────────────────────────┘

"Newer" is a higher incarnation, which only the node itself raises. So nobody can raise another to alive: an "alive"
that is not newer leaves a suspect, dead or left node as it is, and its sender is answered with the accusation
(memberlist#312, #311), to which only the node itself has the reply.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping
from enum import Enum, auto
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Literal, NamedTuple

from vxnet.core.serf import decode_tags
from vxnet.core.wire import VERSIONS, Alive, Dead, Suspect
from vxnet.model.address import IPAddress

Status = Literal["alive", "suspect", "dead", "left"]
ROWS_VERSIONS = (1, 1)
"""Of the row messages, that this release understands: least, most."""
Address = tuple[str, int]
"""As sockets have it, IPv6 without flow and scope."""


class Member(NamedTuple):
    name: str
    id: str
    """Its node id, from its tags; empty for agents that are not vxnet's."""
    address: IPAddress
    tags: Mapping[str, str]
    status: Status
    incarnation: int
    """SWIM's; says nothing of its rows."""
    port: int
    meta: bytes = b""
    versions: bytes = b""
    since: float = 0.0
    """Protocol time of the last change of ``status``."""

    @property
    def endpoint(self) -> Address:
        return str(self.address), self.port

    @property
    def is_vxnet(self) -> bool:
        """Takes rows, in a version that this node knows too."""
        return bool(self.id) and common_rows_version(self.tags.get("vxnet", "")) > 0

    @property
    def present(self) -> bool:
        return self.status in ("alive", "suspect")

    @property
    def speaks_crc(self) -> bool:
        return len(self.versions) > 1 and self.versions[1] >= 5


@lru_cache(maxsize=256)
def common_rows_version(tag: str) -> int:
    """The highest version of the row messages that both understand; 0: none. ``tag``: ``most`` or ``least-most``."""
    least, _, most = tag.rpartition("-")
    try:
        theirs = int(least or most), int(most)
    except ValueError:
        return 0
    common = min(theirs[1], ROWS_VERSIONS[1])
    return common if common >= max(theirs[0], ROWS_VERSIONS[0]) and theirs[0] > 0 else 0


def version_fault(versions: bytes) -> str:
    """Why a node with these versions of memberlist's protocol cannot be a member; empty if it can. Old agents send
    none."""
    if len(versions) < 3:
        return ""
    least, most, spoken = versions[:3]
    if not 0 < least <= most:
        return "impossible protocol versions"
    ours_least, ours_most, ours = VERSIONS[:3]
    if not (ours_least <= spoken <= ours_most and least <= ours <= most):
        return "speaks no protocol that is spoken here"
    return ""


class Verdict(Enum):
    IGNORE = auto()
    APPLY = auto()
    CONFIRM = auto()
    """It is suspected already: one accuser more."""
    ACCUSE = auto()
    """Stale: tell it what is said of it."""


_KEEP = Verdict.IGNORE
RULES: dict[tuple[str, Status], tuple[Verdict, Verdict, Verdict]] = {
    # (news, status): the news' incarnation is older, equal, newer
    ("alive", "alive"): (_KEEP, _KEEP, Verdict.APPLY),
    ("alive", "suspect"): (Verdict.ACCUSE, Verdict.ACCUSE, Verdict.APPLY),
    ("alive", "dead"): (Verdict.ACCUSE, Verdict.ACCUSE, Verdict.APPLY),
    ("alive", "left"): (Verdict.ACCUSE, Verdict.ACCUSE, Verdict.APPLY),
    ("suspect", "alive"): (_KEEP, Verdict.APPLY, Verdict.APPLY),
    ("suspect", "suspect"): (_KEEP, Verdict.CONFIRM, Verdict.CONFIRM),
    ("suspect", "dead"): (_KEEP, _KEEP, _KEEP),
    ("suspect", "left"): (_KEEP, _KEEP, _KEEP),
    ("dead", "alive"): (_KEEP, Verdict.APPLY, Verdict.APPLY),
    ("dead", "suspect"): (_KEEP, Verdict.APPLY, Verdict.APPLY),
    ("dead", "dead"): (_KEEP, _KEEP, _KEEP),
    ("dead", "left"): (_KEEP, _KEEP, _KEEP),
    ("left", "alive"): (_KEEP, Verdict.APPLY, Verdict.APPLY),
    ("left", "suspect"): (_KEEP, Verdict.APPLY, Verdict.APPLY),
    ("left", "dead"): (_KEEP, Verdict.APPLY, Verdict.APPLY),
    ("left", "left"): (_KEEP, _KEEP, _KEEP),
}


def kind_of(news: Alive | Suspect | Dead) -> Status:
    """Dead, said by the node itself, is left."""
    if isinstance(news, Alive):
        return "alive"
    if isinstance(news, Suspect):
        return "suspect"
    return "left" if news.source == news.node else "dead"


def judge(member: Member | None, news: Alive | Suspect | Dead) -> Verdict:
    """What to make of ``news`` about ``member``. Of an unknown node only that it lives is of interest."""
    if member is None:
        return Verdict.APPLY if isinstance(news, Alive) else Verdict.IGNORE
    difference = news.incarnation - member.incarnation
    return RULES[kind_of(news), member.status][1 + (difference > 0) - (difference < 0)]


def may_move(member: Member, news: Alive, node_id: str) -> bool:
    """Whether ``news`` may give ``member`` another address: it is gone, or it is known to be the same node."""
    same = (member.address, member.port) == (parse_address(news.address), news.port)
    return same or not member.present or bool(node_id and node_id == member.id)


def hash_member(member: Member) -> int:
    """64 bits over who it is and how often it spoke for itself."""
    identity = f"{member.incarnation} {member.name}".encode()
    return int.from_bytes(hashlib.blake2b(identity, digest_size=8).digest(), "big")


def read_tags(meta: bytes) -> tuple[dict[str, str], str]:
    """(tags, node id): the id is empty for agents that are not vxnet's."""
    tags = decode_tags(meta)
    return tags, tags.get("id", "") if "vxnet" in tags else ""


def parse_address(octets: bytes) -> IPAddress | None:
    """None for what no node can have. Go writes IPv4 addresses in either form."""
    if len(octets) not in (4, 16):
        return None
    address = ipaddress.ip_address(octets)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return None if address.is_unspecified or address.is_multicast else address
