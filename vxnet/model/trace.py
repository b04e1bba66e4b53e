"""Which way a packet goes, as `vxnet trace` tells it."""

from __future__ import annotations

from vxnet.model.cluster import Record


class Hop(Record, frozen=True, kw_only=True):
    where: str
    found: str
    ok: bool = True
    """False: here it stops, or will."""
    advice: str = ""
