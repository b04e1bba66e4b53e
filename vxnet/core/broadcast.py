"""News that is passed on a bounded number of times: what was sent least, then what is newest, goes first.

Used for membership (one queue) and for row batches (another). A newer piece of news about the same subject takes the
place of the older. Source: memberlist's TransmitLimitedQueue; the bound in octets is ours.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

SPARED = 0.9
"""The part of a full queue that stays."""


class Item(NamedTuple):
    transmissions: int
    urgency: int
    """Lower goes first among those sent equally often."""
    age: int
    """Negative and falling: the newest is least."""
    subject: Hashable
    message: bytes


class BroadcastQueue:
    def __init__(self, *, limit: int = 4096, byte_limit: int = 4 << 20) -> None:
        """Beyond ``limit`` items or ``byte_limit`` octets those that were sent most, and are oldest, are dropped:
        anti-entropy brings them."""
        self._items: dict[Hashable, Item] = {}
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
        self._items[subject] = Item(0, urgency, -self._count, subject, message)
        self._bytes += len(message)
        if len(self._items) > self._limit or self._bytes > self._byte_limit:
            self._make_room()

    def remove(self, subject: Hashable) -> None:
        item = self._items.pop(subject, None)
        if item is not None:
            self._bytes -= len(item.message)

    def _make_room(self) -> None:
        """For more than the one that is too many: to find the worst takes a look at all."""
        for item in sorted(self._items.values(), key=_rank, reverse=True):
            if len(self._items) <= self._limit * SPARED and self._bytes <= self._byte_limit * SPARED:
                break
            self.remove(item.subject)
            self.dropped += 1

    def take(self, room: int, overhead: int, limit: int) -> list[bytes]:
        """Messages that fit into ``room`` octets with ``overhead`` each; they count as sent once, and go after
        ``limit`` times."""
        if not self._items:
            return []
        taken: list[bytes] = []
        for item in sorted(self._items.values(), key=_rank):
            if len(item.message) + overhead > room:
                continue
            room -= len(item.message) + overhead
            taken.append(item.message)
            if item.transmissions + 1 >= limit:
                self.remove(item.subject)
            else:
                self._items[item.subject] = item._replace(transmissions=item.transmissions + 1)
            if room <= overhead:
                break
        return taken


def _rank(item: Item) -> tuple[int, int, int]:
    return item.transmissions, item.urgency, item.age
