"""Deadlines of a protocol in one heap, and a clock that does not count the time its process stood still.

All times that callers pass in are the shell's monotonic clock, in seconds. Inside, the protocol's time runs with it
except over a stall: a process that was frozen for ten seconds has missed ten seconds of acks, and must not take that
for the silence of everybody else.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from typing import NamedTuple

RESOLUTION_S = 1e-4
"""What is due within this is due: sums of times are not exact, and a timer that comes too early would come again."""


class Entry(NamedTuple):
    due: float
    order: int
    key: Hashable
    action: Callable[[], None]


class Agenda:
    """At most one entry a key; a new one takes the place of the old."""

    def __init__(self) -> None:
        self.now = 0.0
        """The protocol's time."""
        self._heap: list[Entry] = []
        self._live: dict[Hashable, int] = {}
        self._order = 0
        self._lost = 0.0

    def observe(self, now: float, tolerance_s: float) -> float:
        """Take over the shell's time. Returns the length of a stall that ends here, 0 if there was none."""
        due = self._next()
        stall = 0.0
        if due is not None and now - self._lost > due + tolerance_s:
            # Up to the deadline that was missed time did pass.
            stall = now - self._lost - max(due, self.now)
            self._lost += stall
        self.now = max(self.now, now - self._lost)
        return stall

    def after(self, delay_s: float, key: Hashable, action: Callable[[], None]) -> None:
        self._order += 1
        self._live[key] = self._order
        heapq.heappush(self._heap, Entry(self.now + delay_s, self._order, key, action))
        if len(self._heap) > 64 + 4 * len(self._live):
            self._heap = [entry for entry in self._heap if self._live.get(entry.key) == entry.order]
            heapq.heapify(self._heap)

    def cancel(self, key: Hashable) -> None:
        self._live.pop(key, None)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._live

    def __len__(self) -> int:
        return len(self._live)

    def run(self) -> None:
        """Everything that is due. An action may make entries; those that are due at once are run as well."""
        while (due := self._next()) is not None and due <= self.now + RESOLUTION_S:
            entry = heapq.heappop(self._heap)
            del self._live[entry.key]
            entry.action()

    def next_timer(self) -> float | None:
        """In the shell's time."""
        due = self._next()
        return None if due is None else due + self._lost

    def _next(self) -> float | None:
        heap, live = self._heap, self._live
        while heap:
            due, order, key, _ = heap[0]
            if live.get(key) == order:
                return due
            heapq.heappop(heap)
        return None
