"""News that is passed on a bounded number of times: what was sent least, then what is newest, goes first.

Used for membership (one queue) and for row batches (another). A newer piece of news about the same subject takes the
place of the older. Source: memberlist's TransmitLimitedQueue; the bound in octets is ours.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import NamedTuple

SPARED = 0.9
"""The part of a full queue that stays."""


class Item(NamedTuple):
    """In the order in which they go. Ages differ, so that nothing behind them is ever compared."""

    transmissions: int
    urgency: int
    """Lower goes first among those sent equally often."""
    age: int
    """Negative and falling: the newest is least."""
    subject: Hashable
    message: bytes


class BroadcastQueue:
    STALE = 64
    """So many that are items no longer do no harm."""

    def __init__(self, *, limit: int = 4096, byte_limit: int = 4 << 20) -> None:
        """Beyond ``limit`` items or ``byte_limit`` octets those that were sent most, and are oldest, are dropped:
        anti-entropy brings them."""
        self._items: dict[Hashable, Item] = {}
        self._order: list[Item] = []
        """A heap of them, and of some that are items no longer."""
        self._smallest = 0
        """No message is smaller."""
        self._limit = limit
        self._byte_limit = byte_limit
        self._bytes = 0
        self._count = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def octets(self) -> int:
        return self._bytes

    def add(self, subject: Hashable, message: bytes, urgency: int = 0) -> None:
        self.remove(subject)
        self._count += 1
        self._smallest = min(self._smallest, len(message)) if self._items else len(message)
        self._put(Item(0, urgency, -self._count, subject, message))
        self._bytes += len(message)
        if len(self._items) > self._limit or self._bytes > self._byte_limit:
            self._make_room()

    def remove(self, subject: Hashable) -> None:
        item = self._items.pop(subject, None)
        if item is not None:
            self._bytes -= len(item.message)

    def _put(self, item: Item) -> None:
        self._items[item.subject] = item
        if len(self._order) <= 2 * len(self._items) + self.STALE:
            heapq.heappush(self._order, item)
        else:
            self._order = list(self._items.values())
            heapq.heapify(self._order)
            self._smallest = min(len(one.message) for one in self._order)

    def _make_room(self) -> None:
        """For more than the one that is too many: to find the worst takes a look at all."""
        for item in sorted(self._items.values(), reverse=True):
            if len(self._items) <= self._limit * SPARED and self._bytes <= self._byte_limit * SPARED:
                break
            self.remove(item.subject)
            self.dropped += 1

    def take(self, room: int, overhead: int, limit: int) -> list[bytes]:
        """Messages that fit into ``room`` octets with ``overhead`` each; they count as sent once, and go after
        ``limit`` times."""
        taken: list[bytes] = []
        sent: list[Item] = []
        skipped: list[Item] = []
        while self._items and room >= self._smallest + overhead and self._order:
            item = heapq.heappop(self._order)
            if self._items.get(item.subject) is not item:
                continue
            if len(item.message) + overhead > room:
                skipped.append(item)
                continue
            room -= len(item.message) + overhead
            taken.append(item.message)
            sent.append(item)
        for item in skipped:
            heapq.heappush(self._order, item)
        for item in sent:
            if item.transmissions + 1 >= limit:
                self.remove(item.subject)
            else:
                self._put(item._replace(transmissions=item.transmissions + 1))
        return taken
