"""News of members on its way to the others: sent at once, then passed on a bounded number of times."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vxnet.core import wire
from vxnet.core.broadcast import BroadcastQueue

if TYPE_CHECKING:
    from vxnet.core.swim import Swim


class News:
    def __init__(self, swim: Swim) -> None:
        self._swim = swim
        self._queue = BroadcastQueue()
        self._fresh: list[bytes] = []

    def __len__(self) -> int:
        return len(self._queue)

    def tell(self, subject: str, message: bytes) -> None:
        """Something about the member ``subject``; what was said of it before is old."""
        agenda, settings = self._swim.agenda, self._swim.settings
        self._queue.add(subject, message)
        self._fresh.append(message)
        if "fresh" not in agenda:
            agenda.after(settings.coalesce_s, "fresh", self._flood)
        if "gossip" not in agenda:
            agenda.after(settings.gossip_interval_s, "gossip", self._gossip)

    def take(self, room: int) -> list[bytes]:
        """What else fits into a packet that goes anyway."""
        return self._queue.take(room, 2, self._swim.settings.retransmissions(self._swim.present))

    def _flood(self) -> None:
        """What is new goes out without waiting for a tick: to everybody if they are few."""
        fresh, self._fresh = self._fresh, []
        settings = self._swim.settings
        few = self._swim.present <= settings.direct_nodes
        count = settings.direct_nodes if few else settings.gossip_nodes
        for member in self._swim.pick(count, lambda member: member.present):
            for message in fresh:
                self._swim.send(member.endpoint, message)

    def _gossip(self) -> None:
        for member in self._swim.pick(self._swim.settings.gossip_nodes, lambda member: member.present):
            for message in self.take(wire.PACKET_CONTENT - 2):
                self._swim.send(member.endpoint, message)
        # Without anybody to tell it to, news waits for the first to come.
        if len(self._queue):
            self._swim.agenda.after(self._swim.settings.gossip_interval_s, "gossip", self._gossip)
