"""A container's command begins when the others know the way back to it, and a task is told to end when they have ceased
to send to it: who tells that, and who is waited for.

::

     this host                              a host with containers on the same network
     row "starting" ──────────────────────> its kernel carries the path
     command begins <── row "applied" ─────── "of you I carry all up to this version"

     row "draining" ──────────────────────> its kernel sends no new connections there
     SIGTERM        <── row "applied" ───────

Without it the first packet races with gossip, and on a busy host loses now and then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from vxnet.core.facts import ByOwner, Fact, Facts
from vxnet.model.row import Applied, Endpoint, EndpointState, Gateway, Version

NEVER = Version(0, 0)
RESIDENTS_LIMIT = 64
"""Nodes with containers on a network: where there are more, no start waits for them, as each would make as many rows
that travel to everybody."""


class _Summary(NamedTuple):
    """Of one owner's rows."""

    newest: Version
    """Of its endpoints, and its foot in the ingress network."""
    residences: frozenset[int]
    """VNIs in which it has one of them."""
    waiting: tuple[tuple[str, int, Version, EndpointState], ...]
    """Id, VNI, version and state of those that wait to be carried: *starting* and *draining*."""
    told: Applied | None


class Acknowledgements:
    """Asked again and again over all rows; who has not changed since is read once."""

    def __init__(self) -> None:
        self._summaries = ByOwner(_summarize)

    def to_tell(
        self,
        rows: Iterable[Fact],
        node: str,
        vnis: Collection[int],
    ) -> Applied | None:
        """What ``node`` tells when its kernel carries ``rows`` in its segments ``vnis``; None: nobody waits to hear."""
        summaries = self._summaries.of(Facts.gather(rows))
        crowded = _crowded(summaries)
        waiting = [
            (owner, *summary.newest)
            for owner, summary in summaries.items()
            if owner != node
            and any(
                vni in vnis and not (state == "starting" and vni in crowded)
                for _id, vni, _version, state in summary.waiting
            )
        ]
        return Applied(versions=tuple(sorted(waiting))) if waiting else None

    def unaware(
        self, rows: Iterable[Fact], node: str, ids: Collection[str], state: EndpointState = "starting"
    ) -> frozenset[str]:
        """The nodes on the networks of those of ``node``'s rows ``ids`` that are in ``state`` which have not told yet
        that they carry them.
        """
        summaries = self._summaries.of(Facts.gather(rows))
        own = summaries.get(node)
        waiting = own.waiting if own is not None else ()
        mine = [(vni, version) for id_, vni, version, now in waiting if id_ in ids and now == state]
        if mine and state == "starting":
            crowded = _crowded(summaries)
            mine = [(vni, version) for vni, version in mine if vni not in crowded]
        if not mine:
            return frozenset()
        return frozenset(
            owner
            for owner, summary in summaries.items()
            if owner != node
            and any(vni in summary.residences and _told(summary, node) < version for vni, version in mine)
        )


def _crowded(summaries: Mapping[str, _Summary]) -> frozenset[int]:
    """VNIs with starting rows on more than :data:`RESIDENTS_LIMIT` nodes."""
    if len(summaries) <= RESIDENTS_LIMIT:
        return frozenset()
    asked = {vni for one in summaries.values() for _id, vni, _version, state in one.waiting if state == "starting"}
    return frozenset(vni for vni in asked if sum(vni in one.residences for one in summaries.values()) > RESIDENTS_LIMIT)


def _summarize(owner: str, rows: Iterable[Fact]) -> _Summary:
    newest = NEVER
    residences: set[int] = set()
    waiting: list[tuple[str, int, Version, EndpointState]] = []
    told = None
    for key, version, value in rows:
        if isinstance(value, Applied):
            told = value
        elif isinstance(value, Gateway):
            # A node that sends the mesh's connections there is waited for as one with a container on the network.
            newest = max(newest, version)
            residences.add(value.vni)
        elif isinstance(value, Endpoint):
            newest = max(newest, version)
            residences.add(value.vni)
            if value.state != "ready":
                waiting.append((key.id, value.vni, version, value.state))
    return _Summary(newest, frozenset(residences), tuple(waiting), told)


def _told(summary: _Summary, node: str) -> Version:
    """Up to where it carries ``node``'s rows."""
    versions = summary.told.versions if summary.told is not None else ()
    return next((Version(incarnation, seq) for owner, incarnation, seq in versions if owner == node), NEVER)
