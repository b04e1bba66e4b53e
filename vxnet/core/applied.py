"""A container's command begins when the others know the way back to it: who tells that, and who is waited for.

::

     this host                              a host with containers on the same network
     row "starting" ──────────────────────> its kernel carries the path
     command begins <── row "applied" ─────── "of you I carry all up to this version"

Without it the first packet races with gossip, and on a busy host loses now and then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from vxnet.model.row import Applied, Endpoint, RowKey, Value, Version


def acknowledgement(rows: Iterable[tuple[RowKey, Version, Value]], node: str, vnis: Collection[int]) -> Applied | None:
    """What ``node`` tells when its kernel carries ``rows`` in its segments ``vnis``; None: nobody waits to hear it."""
    waiting: set[str] = set()
    newest: dict[str, Version] = {}
    for key, version, value in rows:
        if key.owner == node or not isinstance(value, Endpoint):
            continue
        newest[key.owner] = max(version, newest.get(key.owner, version))
        if value.state == "starting" and value.vni in vnis:
            waiting.add(key.owner)
    if not waiting:
        return None
    return Applied(versions=tuple((owner, *newest[owner]) for owner in sorted(waiting)))


def unaware(rows: Iterable[tuple[RowKey, Version, Value]], node: str, ids: Collection[str]) -> frozenset[str]:
    """The nodes on the networks of ``node``'s starting rows ``ids`` that have not told yet that they carry them all."""
    mine: list[tuple[Version, int]] = []
    residents: dict[int, set[str]] = {}
    told: dict[str, Version] = {}
    for key, version, value in rows:
        if isinstance(value, Applied):
            for owner, incarnation, seq in value.versions:
                if owner == node:
                    told[key.owner] = Version(incarnation, seq)
        elif not isinstance(value, Endpoint):
            continue
        elif key.owner != node:
            residents.setdefault(value.vni, set()).add(key.owner)
        elif key.id in ids and value.state == "starting":
            mine.append((version, value.vni))
    return frozenset(
        resident
        for version, vni in mine
        for resident in residents.get(vni, ())
        if told.get(resident, Version(0, 0)) < version
    )
