"""A dict that may stand on another one, which it shares and never writes.

A node in production stands on nothing. The simulator puts 10,000 nodes on one view of the cluster, and each holds only
what it sees differently: 10,000 whole views would be 12 GB.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Layered(MutableMapping[K, V]):
    """Values must not be None. Iterates over the base first, then over its own keys."""

    def __init__(self, base: Layered[K, V] | None = None) -> None:
        """``base`` must not change any more, and stand on nothing itself."""
        self._base: dict[K, V] = {} if base is None else base._own
        self._own: dict[K, V] = {}
        self._removed: set[K] = set()
        self._covered = 0
        """How many of its own keys are the base's too."""

    def __getitem__(self, key: K) -> V:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def get(self, key: K, default: V | None = None) -> V | None:  # type: ignore[override]
        value = self._own.get(key)
        if value is None and self._base and key not in self._removed:
            value = self._base.get(key)
        return default if value is None else value

    def __setitem__(self, key: K, value: V) -> None:
        if self._base and key in self._base and key not in self._own:
            self._covered += 1
            self._removed.discard(key)
        self._own[key] = value

    def __delitem__(self, key: K) -> None:
        in_base = key in self._base and key not in self._removed
        if key in self._own:
            del self._own[key]
            self._covered -= in_base
        elif not in_base:
            raise KeyError(key)
        if in_base:
            self._removed.add(key)

    def __contains__(self, key: object) -> bool:
        return key in self._own or (key in self._base and key not in self._removed)

    def __iter__(self) -> Iterator[K]:
        if not self._base:
            yield from self._own
            return
        for key in self._base:
            if key not in self._removed:
                yield key
        for key in self._own:
            if key not in self._base:
                yield key

    def __len__(self) -> int:
        return len(self._own) + len(self._base) - len(self._removed) - self._covered

    def is_shared(self, key: K) -> bool:
        """It is the base's: whoever wants to change the value makes a copy first."""
        return key not in self._own and key in self
