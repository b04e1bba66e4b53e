"""Since when nodes are lost, as a manager has to know who decides about their tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from vxnet.core.gossip import planned_absence_s
from vxnet.core.members import Member
from vxnet.model.cluster import Node

MET_LIMIT = 20_000
MET_S = 30.0
"""After a manager's start, for the nodes to be met: gossip asks its seeds and the last members within seconds."""


class Absences:
    """``nodes``: all of the cluster. ``changed`` is called when somebody was lost, or is back; None: nobody asks."""

    def __init__(self, nodes: Callable[[], Iterable[Node]], changed: Callable[[], None] | None, own_id: str) -> None:
        self._nodes = nodes
        self._changed = changed
        self._since: dict[str, float] = {}
        """Since when the gossip calls a node dead; by a clock that nobody sets."""
        self._own_id = own_id
        self._met = {own_id}
        self._opened_at = time.monotonic()

    def look(self, members: Iterable[Member]) -> None:
        """All that gossip knows now."""
        now = time.monotonic()
        silent = {}
        for member in members:
            self._met.add(member.id)
            if not member.present:
                silent[member.id] = self._since.get(member.id, now + planned_absence_s(member))
        # What members call themselves is their own word, and may be another each time.
        if len(self._met) > MET_LIMIT:
            self._met &= {self._own_id, *(node.id for node in self._nodes())}
        if silent != self._since:
            self._since = silent
            if self._changed is not None:
                self._changed()

    def lost(self) -> Mapping[str, float]:
        """Since when, by node id, in seconds since 1970 as this host counts them now; of one that said when it will be
        back, from then on. One that was not met since this daemon's start is lost too, but not before it had time to be
        met: silence alone is no death.
        """
        now = time.monotonic()
        found = dict(self._since)
        if now > self._opened_at + MET_S:
            for node in self._nodes():
                if node.id not in self._met:
                    found[node.id] = self._opened_at + MET_S
        wall = time.time()
        return {id: wall + (since - now) for id, since in found.items()}
