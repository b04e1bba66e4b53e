"""A container's command begins when the others know the way back to it: who tells that, and who is waited for.

::

     this host                              a host with containers on the same network
     row "starting" ──────────────────────> its kernel carries the path
     command begins <── row "applied" ─────── "of you I carry all up to this version"

Without it the first packet races with gossip, and on a busy host loses now and then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from vxnet.core.facts import ByOwner, Fact, Facts
from vxnet.model.row import Applied, Endpoint, Version

NEVER = Version(0, 0)


class _Summary(NamedTuple):
    """Of one owner's rows."""

    newest: Version
    """Of its endpoints."""
    residences: frozenset[int]
    """VNIs in which it has endpoints."""
    starting: tuple[tuple[str, int, Version], ...]
    """Id, VNI and version of those that wait."""
    told: Applied | None


class Acknowledgements:
    """Asked again and again over all rows; who has not changed since is read once."""

    def __init__(self) -> None:
        self._summaries = ByOwner(_summarize)

    def to_tell(self, rows: Iterable[Fact], node: str, vnis: Collection[int]) -> Applied | None:
        """What ``node`` tells when its kernel carries ``rows`` in its segments ``vnis``; None: nobody waits to hear."""
        waiting = [
            (owner, *summary.newest)
            for owner, summary in self._summaries.of(Facts.gather(rows)).items()
            if owner != node and any(vni in vnis for _id, vni, _version in summary.starting)
        ]
        return Applied(versions=tuple(sorted(waiting))) if waiting else None

    def unaware(self, rows: Iterable[Fact], node: str, ids: Collection[str]) -> frozenset[str]:
        """The nodes on the networks of ``node``'s starting rows ``ids`` that have not told yet that they carry them."""
        summaries = self._summaries.of(Facts.gather(rows))
        own = summaries.get(node)
        mine = [(vni, version) for id_, vni, version in own.starting if id_ in ids] if own is not None else []
        if not mine:
            return frozenset()
        return frozenset(
            owner
            for owner, summary in summaries.items()
            if owner != node
            and any(vni in summary.residences and _told(summary, node) < version for vni, version in mine)
        )


def _summarize(owner: str, rows: Iterable[Fact]) -> _Summary:
    newest = NEVER
    residences: set[int] = set()
    starting = []
    told = None
    for key, version, value in rows:
        if isinstance(value, Applied):
            told = value
        elif isinstance(value, Endpoint):
            newest = max(newest, version)
            residences.add(value.vni)
            if value.state == "starting":
                starting.append((key.id, value.vni, version))
    return _Summary(newest, frozenset(residences), tuple(starting), told)


def _told(summary: _Summary, node: str) -> Version:
    """Up to where it carries ``node``'s rows."""
    versions = summary.told.versions if summary.told is not None else ()
    return next((Version(incarnation, seq) for owner, incarnation, seq in versions if owner == node), NEVER)
