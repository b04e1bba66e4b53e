"""The cluster's CAs, as people are shown them."""

from __future__ import annotations

from typing import Literal

from vxnet.model.cluster import Record


class AuthorityView(Record, frozen=True, kw_only=True):
    number: int
    use: Literal["signs", "next", "old"]
    digest: str
    """SHA-256 of its certificate."""
    pem: str
    ends_at: float


class CaView(Record, frozen=True, kw_only=True):
    """The CAs that nodes trust, and how far their change is."""

    authorities: tuple[AuthorityView, ...]
    """The one that signs first."""
    waiting: tuple[str, ...] = ()
    """Nodes that do not trust the newest yet, or do not have a certificate of it yet."""
