"""What was made of records before, for as long as they are the same.

A plan is made of everything, each time, and most of it is what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Remembered(Generic[T]):
    """One look after the other; what a look did not ask for is forgotten with the next one."""

    def __init__(self) -> None:
        self._before: dict[Hashable, tuple[tuple[object, ...], T]] = {}
        self._now: dict[Hashable, tuple[tuple[object, ...], T]] = {}

    def look(self) -> None:
        """A new one begins."""
        self._before, self._now = self._now, {}

    def of(self, key: Hashable, things: tuple[object, ...], make: Callable[[], T]) -> T:
        """What ``make`` makes, which follows from ``things`` alone. The very same objects cost no comparison."""
        held = self._before.get(key)
        if held is None or held[0] != things:
            held = things, make()
        self._now[key] = held
        return held[1]
